"""What the tabs of the web page share: uploads and names within limits, work that can be stopped, messages, examples."""

from __future__ import annotations

import struct
import threading
import time
import zlib
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from zeroshot_d2 import demo_world

gr = pytest.importorskip("gradio", reason="the extra 'web' is not installed")
from zeroshot_d2 import web, web_server  # noqa: E402
from zeroshot_d2.images import ImageArray  # noqa: E402


def read(path: str | None, pixels: int) -> ImageArray:
    return web.read_upload(path, web_server.Limits(pixels=pixels))


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of uploads."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return tmp_path


def save(path: Path, size: tuple[int, int] = (40, 30), **options: object) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return str(path)


# ------------------------------------------------------------------------------------------------------- uploads


def test_an_upload_comes_as_upright_rgb(tmp_path):
    path = save(tmp_path / "a.png")
    assert np.array_equal(read(path, 1200), np.asarray(Image.open(path)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert read(save(tmp_path / "turned.jpg", exif=exif), 1200).shape == (40, 30, 3)
    Image.new("P", (8, 8)).save(tmp_path / "palette.gif")
    assert read(str(tmp_path / "palette.gif"), 1200).shape == (8, 8, 3)


def test_without_an_upload_the_message_says_what_to_do():
    with pytest.raises(ValueError, match="no photo yet: upload one, or choose an example"):
        read(None, 100)


def test_too_many_pixels(tmp_path):
    with pytest.raises(ValueError, match=r"a\.png has 40 x 30 pixels, more than the 1,199 .* --max-pixels"):
        read(save(tmp_path / "a.png"), 1199)


def png_of_size(width: int, height: int) -> bytes:
    """The header of a PNG without any pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 9_000), (60_000, 60_000)])  # PIL warns of the first and refuses the second
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png_of_size(*size))
    message = rf"bomb\.png has {size[0]} x {size[1]} pixels, more than the 4,000,000 that this page takes"
    with pytest.raises(ValueError, match=message):
        read(str(tmp_path / "bomb.png"), 4_000_000)


def test_a_strip_is_refused(tmp_path):
    assert read(save(tmp_path / "panorama.png", (100, 10)), 9999).shape == (10, 100, 3)
    with pytest.raises(ValueError, match="strip of 101 x 10 pixels: crop it to at most 10 : 1"):
        read(save(tmp_path / "strip.png", (101, 10)), 9999)


@pytest.mark.parametrize("content", ["text", "truncated", "broken chunk", "postscript"])
def test_a_broken_upload_is_named(tmp_path, content):
    path = tmp_path / "broken.png"
    whole = Path(save(tmp_path / "whole.png")).read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "text": b"no image",
            "truncated": whole[:middle],
            "broken chunk": whole[:middle] + b"\0" * 16 + whole[middle + 16 :],
            # A program: PIL would have an interpreter run it.
            "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
        }[content]
    )
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image.* save it anew as JPEG or PNG"):
        read(str(path), 9999)


def test_a_jpeg_of_many_passes_is_refused(tmp_path):
    path = save(tmp_path / "passes.jpg", progressive=True)
    content = Path(path).read_bytes()
    assert read(path, 9999).shape == (30, 40, 3)
    last = content.rindex(b"\xff\xda")
    Path(path).write_bytes(content[:last] + content[last:-2] * 100 + content[-2:])
    with pytest.raises(ValueError, match=r"passes\.jpg is a JPEG of 10\d passes, this page takes 100"):
        read(path, 9999)


def test_an_upload_that_is_gone(tmp_path):
    with pytest.raises(ValueError, match=r"a\.png is gone, uploads stay for 600 seconds: upload it again"):
        read(str(tmp_path / "a.png"), 9999)


# --------------------------------------------------------------------------------------------------------- parts


def test_tables_hold_text():
    content = web.table(["class", "area"], [["<b>cat</b>", "1.0"], ["dog", "2.0"]])
    assert content.count("<tr>") == 3 and "<td>&lt;b&gt;cat&lt;/b&gt;</td><td>1.0</td>" in content and "<b>" not in content


def test_captions_are_text():
    page = web.captioned([(np.zeros((4, 4, 3), dtype=np.uint8), "<b>cat</b>"), (np.zeros((4, 4, 3), dtype=np.uint8), "dog")])
    assert page.count("<img") == 2 and "&lt;b&gt;cat" in page and "<b>" not in page


def test_examples_show_unseen_classes(tmp_path):
    paths = web.example_photos(tmp_path, count=3)
    assert len(set(paths)) == 3
    for path in paths:
        index = int(path.stem.rpartition("_")[2])
        rendered = demo_world.render(demo_world.VAL_SEED, index)
        assert np.array_equal(np.asarray(Image.open(path)), rendered.image)
        assert any(demo_world.SPLIT.names[k] in demo_world.SPLIT.unseen for k in rendered.classes)


def test_photo_inputs_hand_over_uploads_as_they_are(uploads):
    broken = uploads / ("0" * 64) / "broken.png"
    broken.parent.mkdir()
    broken.write_text("no image")
    with gr.Blocks(analytics_enabled=False):
        photo = web.photo_input(web.example_photos(uploads, count=1))
    assert photo.preprocess(photo.data_model(path=str(broken))) == str(broken) and photo.preprocess(None) is None
    with pytest.raises(gr.Error, match="was not uploaded to this page"):
        photo.preprocess(photo.data_model(path=str(uploads / "demo_world_0.png")))


# -------------------------------------------------------------------------------------------------- work that can stop


class FakeRequest:
    """A request as Gradio gives it to an event, of someone who has (not) a stream open."""

    def __init__(self, *, present: bool, arrived: float) -> None:
        visitors = web_server.Visitors()
        self.session_hash = "someone"
        self.request = SimpleNamespace(state=SimpleNamespace(visitors=visitors, arrived=arrived))
        self.stream = ExitStack()
        if present:
            self.stream.enter_context(visitors.stream("someone"))


def work(steps: int = 10**9) -> str:
    """Many small steps."""
    for _ in range(steps):
        torch.ones(2).add(1)
    return "done"


def answer(request: FakeRequest, steps: int, seconds: int = 60) -> str:
    function = web.answering(lambda visitor, steps: work(steps), web_server.Limits(seconds=seconds))
    return function(request, steps)


def test_work_whose_visitor_waits_is_done():
    assert answer(FakeRequest(present=True, arrived=-1e9), 10) == "done"
    assert answer(FakeRequest(present=False, arrived=time.monotonic()), 10) == "done"  # its stream is about to come


def test_work_that_nobody_waits_for_does_not_begin():
    with pytest.raises(gr.Error, match="Nobody waits"):
        answer(FakeRequest(present=False, arrived=-1e9), 10)


def test_work_ends_when_its_visitor_leaves():
    request = FakeRequest(present=True, arrived=-1e9)
    leave = threading.Timer(0.2, request.stream.close)
    leave.start()
    with pytest.raises(gr.Error, match="Nobody waits"):
        answer(request, 10**9)
    leave.join()


def test_work_ends_when_its_time_is_over():
    with pytest.raises(gr.Error, match="longer than the 1 seconds .* --max-seconds"):
        answer(FakeRequest(present=True, arrived=-1e9), 10**9, seconds=1)


def test_value_errors_become_messages_and_others_stay():
    def fails(visitor: web_server.Visitor, error: Exception) -> None:
        raise error

    function = web.answering(fails, web_server.Limits())
    with pytest.raises(gr.Error, match="the class &lt;b&gt; is there twice"):
        function(FakeRequest(present=True, arrived=0), ValueError("the class <b> is there twice"))
    with pytest.raises(KeyError):
        function(FakeRequest(present=True, arrived=0), KeyError("a mistake of ours"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x" * 101, "The name 'xxxxxxxxxxxxxxxxxxxx'... has 101 characters, and this page takes 100.* --max-name-length"),
        ("x" * 1_000_000, "has 1,000,000 characters"),
        (", ".join(map(str, range(2001))), "You typed 2,001 names, .* and this page takes 2,000.* --max-names"),
        ("|".join(map(str, range(2001))), "You typed 2,001 names"),
    ],
)
def test_names_that_are_too_long_or_too_many(text, message):
    with pytest.raises(ValueError, match=message):
        web.typed_names(text, web_server.Limits())


def test_names_within_the_limits():
    limits = web_server.Limits(names=3, name_length=4)
    assert web.typed_names("tree|bush, cats", limits) == ["tree|bush", "cats"]
    assert web.typed_names(None, limits) == web.typed_names(" , ", limits) == []
