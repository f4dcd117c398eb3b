"""What the tabs of the web page share: uploads and their limits, messages, examples, and a server that stays at home."""

from __future__ import annotations

import argparse
import re
import socket
import struct
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zeroshot_d2 import demo_world

gr = pytest.importorskip("gradio", reason="the extra 'web' is not installed")
from zeroshot_d2 import web  # noqa: E402


def save(path: Path, size: tuple[int, int] = (40, 30), **options: object) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return str(path)


# ------------------------------------------------------------------------------------------------------- uploads


def test_an_upload_comes_as_upright_rgb(tmp_path):
    path = save(tmp_path / "a.png")
    assert np.array_equal(web.read_upload(path, 1200), np.asarray(Image.open(path)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert web.read_upload(save(tmp_path / "turned.jpg", exif=exif), 1200).shape == (40, 30, 3)
    Image.new("P", (8, 8)).save(tmp_path / "palette.gif")
    assert web.read_upload(str(tmp_path / "palette.gif"), 1200).shape == (8, 8, 3)


def test_without_an_upload_the_message_says_what_to_do():
    with pytest.raises(ValueError, match="no photo yet: upload one, or choose an example"):
        web.read_upload(None, 100)


def test_too_many_pixels(tmp_path):
    with pytest.raises(ValueError, match=r"a\.png has 40 x 30 pixels, more than the 1,199 .* --max-pixels"):
        web.read_upload(save(tmp_path / "a.png"), 1199)


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
        web.read_upload(str(tmp_path / "bomb.png"), 4_000_000)


def test_a_strip_is_refused(tmp_path):
    assert web.read_upload(save(tmp_path / "panorama.png", (100, 10)), 9999).shape == (10, 100, 3)
    with pytest.raises(ValueError, match="strip of 101 x 10 pixels: crop it to at most 10 : 1"):
        web.read_upload(save(tmp_path / "strip.png", (101, 10)), 9999)


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
        web.read_upload(str(path), 9999)


def test_value_errors_become_messages_and_others_stay():
    @web.explained
    def fails(error: Exception) -> None:
        raise error

    with pytest.raises(gr.Error, match="the class &lt;b&gt; is there twice"):
        fails(ValueError("the class <b> is there twice"))
    with pytest.raises(KeyError):
        fails(KeyError("a mistake of ours"))


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


# -------------------------------------------------------------------------------------------------------- server


def test_the_server_listens_on_loopback_with_limits_unless_told_otherwise():
    parser = argparse.ArgumentParser()
    web.add_server_arguments(parser)
    assert vars(parser.parse_args([])) == {
        "host": "127.0.0.1", "port": 7860, "max_upload_mb": 10, "max_pixels": 4_000_000
    }  # fmt: skip
    assert parser.parse_args(["--host", "0.0.0.0", "--port", "8000"]).host == "0.0.0.0"


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_limits_are_positive(value, capsys):
    parser = argparse.ArgumentParser()
    web.add_server_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([f"--max-pixels={value}"])
    assert f"must be a positive whole number, got '{value}'" in capsys.readouterr().err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    page = web.build_page("A page", {"First": lambda: gr.Markdown("one"), "Second": lambda: gr.Markdown("two")})
    yield web.start(page, host="127.0.0.1", port=free_port(), max_upload_mb=1)
    page.close()


def test_a_page_has_its_title_and_tabs_and_asks_nothing_of_other_hosts(url):
    with urllib.request.urlopen(url) as answer:
        content = answer.read().decode()
        policy = answer.headers["Content-Security-Policy"]
    assert "A page" in content and "First" in content and "Second" in content
    assert '"analytics_enabled":false' in content.replace(" ", "")
    assert policy.startswith("default-src 'self'") and "http" not in policy
    with urllib.request.urlopen(f"{url}theme.css") as answer:
        css = answer.read().decode()
    assert "system-ui" in css and not re.findall(r"@import|@font-face|url\((?![\"']?data:)", css)


def upload(url: str, content: bytes) -> urllib.request.Request:
    boundary = "a-boundary"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return urllib.request.Request(f"{url}gradio_api/upload", data=body, headers=headers)


def test_the_server_refuses_large_uploads(url):
    with urllib.request.urlopen(upload(url, b"x" * (2**20 - 10))) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(upload(url, b"x" * (2**20 + 10)))
    assert refused.value.code == 413
    refused.value.close()


def test_photo_inputs_hand_over_files_as_they_are(tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    with gr.Blocks(analytics_enabled=False):
        photo = web.photo_input(web.example_photos(tmp_path, count=1))
    payload = photo.data_model(path=str(tmp_path / "broken.png"))
    assert photo.preprocess(payload) == str(tmp_path / "broken.png") and photo.preprocess(None) is None
