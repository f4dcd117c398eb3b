"""What the tabs of the web page share: inputs within limits, work that can be stopped, messages, examples.

Shapes: (H, W) an image; images are (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

import base64
import html
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import gradio as gr
from detectron2.config import CfgNode
from PIL import Image
from torch.overrides import TorchFunctionMode

from . import demo_world
from .images import ImageArray, UnreadableImage, image_size, read_image, write_image
from .vocabulary import parse_names
from .web_server import Limits, Stopped, Visitor, mark_used, uploaded

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_ASPECT = 10  # longer to shorter side: pictures of a thin strip would be of any height
MAX_SCANS = 100  # passes over a JPEG, each of which decodes the whole image: cameras write 1, progressive files about 10
# Of every event: one photo at a time, whichever the button, and from the page only.
EVENT = {"concurrency_id": "photos", "concurrency_limit": 1, "api_visibility": "private"}


# ------------------------------------------------------------------------------------------------ input and output


def read_upload(path: str | None, limits: Limits) -> ImageArray:
    """An uploaded photo, upright; its size is known from the header, before anything is decoded.

    Raises:
        ValueError: there is none, it is no readable image, or it is too large or too thin; the file is named.
    """
    if path is None:
        raise ValueError("There is no photo yet: upload one, or choose an example.")
    name = Path(path).name
    try:
        height, width = image_size(path, formats=FORMATS, max_pixels=sys.maxsize)  # any, for a message that says what to do
        _check_size(name, width, height, limits.pixels)
        _check_scans(path)
        return read_image(path, formats=FORMATS, max_pixels=limits.pixels)
    except FileNotFoundError as error:
        raise ValueError(f"{name} is gone, uploads stay for {limits.kept_seconds} seconds: upload it again.") from error
    except UnreadableImage as error:
        raise ValueError(
            f"{name} cannot be read as an image. It may be damaged or of an unknown kind: save it anew as JPEG or PNG "
            f"(this page takes {', '.join(FORMATS)}) and upload that."
        ) from error


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ValueError(
            f"{name} has {width} x {height} pixels, more than the {max_pixels:,} that this page takes: make it smaller, or "
            "start the page with a greater --max-pixels."
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{name} is a strip of {width} x {height} pixels: crop it to at most {MAX_ASPECT} : 1.")


def _check_scans(path: str) -> None:
    """Refuse a JPEG of so many passes that a small file takes minutes, in which nothing can stop the decoder."""
    content = Path(path).read_bytes()
    scans = content.count(b"\xff\xda") if content.startswith(b"\xff\xd8") else 0
    if scans > MAX_SCANS:
        raise ValueError(f"{Path(path).name} is a JPEG of {scans} passes, this page takes {MAX_SCANS}: save it anew.")


def typed_names(text: str | None, limits: Limits) -> list[str]:
    """Names as typed, see :func:`zeroshot_d2.vocabulary.parse_names`.

    Raises:
        ValueError: there are more, or longer ones, than the page takes.
    """
    names = parse_names(text or "")
    texts = [synonym for name in names for synonym in name.split("|")]
    if len(texts) > limits.names:
        raise ValueError(
            f"You typed {len(texts):,} names, synonyms counted, and this page takes {limits.names:,}: shorten the list, or "
            "start the page with a greater --max-names."
        )
    longest = max(texts, key=len, default="")
    if len(longest) > limits.name_length:
        raise ValueError(
            f"The name {longest[:20]!r}... has {len(longest):,} characters, and this page takes {limits.name_length:,}: "
            "separate names by commas, or start the page with a greater --max-name-length."
        )
    return names


class Watched(TorchFunctionMode):
    """Calls ``check`` at every function of torch, which is where a computation spends its time."""

    def __init__(self, check: Callable[[], None]) -> None:
        super().__init__()
        self._check = check

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._check()
        return func(*args, **(kwargs or {}))


def answering(function: Callable[..., Any], limits: Limits) -> Callable[..., Any]:
    """``function`` of a visitor and the inputs, as Gradio calls it.

    It is stopped when its time is over or nobody waits for it. That, and a ValueError, becomes a message on the page.
    """

    def answer(request: gr.Request, *values: Any) -> Any:
        visitor = Visitor.of_request(request, limits.seconds)
        check = visitor.watch()
        for value in filter(uploaded, values):
            mark_used(value)  # it waited, and may stay as long as any other from now on
        try:
            check()
            with Watched(check):
                return function(visitor, *values)
        except (ValueError, Stopped) as error:
            # Messages are shown as HTML, and they quote what was typed.
            raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error

    return answer


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as HTML; the first column is text, the others are set to the right."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in headers)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>" for row in rows)
    return f'<table class="results"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def captioned(pictures: list[tuple[ImageArray, str]]) -> str:
    """Pictures with their captions below them, as HTML; unlike gr.Gallery it shows long captions whole."""
    figures = []
    for pixels, caption in pictures:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG", quality=90)
        source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
        figures.append(f'<figure><img src="{source}" alt=""><figcaption>{html.escape(caption)}</figcaption></figure>')
    return f'<div class="captioned">{"".join(figures)}</div>'


class WebTab(Protocol):
    """The "web_tab" part of a system: one model behind a tab of the page. Safe to call from several threads.

    Its events are functions for :func:`answering`, on images, texts and numbers
    (:data:`zeroshot_d2.web_server.KINDS`): the server lets no other inputs through.
    """

    def __init__(self, cfg: CfgNode, limits: Limits) -> None: ...

    def build(self, folder: Path) -> None:
        """Components and events, to be called inside a gr.Blocks; ``folder`` takes the files of examples."""


def example_photos(folder: Path, *, count: int = 5, num_objects: tuple[int, int] = (2, 3)) -> list[Path]:
    """Write the first ``count`` images of the demo world (validation seed) that show an unseen class."""
    paths: list[Path] = []
    unseen = set(demo_world.SPLIT.unseen_indices)
    index = 0
    while len(paths) < count:
        rendered = demo_world.render(demo_world.VAL_SEED, index, num_objects=num_objects)
        if not unseen.isdisjoint(rendered.classes):
            paths.append(folder / f"demo_world_{index}.png")
            write_image(paths[-1], rendered.image)
        index += 1
    return paths


def photo_input(examples: list[Path]) -> gr.Image:
    """Where to upload a photo, with examples below it; it gives the path of the file, whatever the file holds."""
    photo = gr.Image(
        type="filepath", sources=["upload", "clipboard"], label="Photo", height=320, buttons=[], elem_classes="photo"
    )
    # Gradio would decode the file before our checks, and answer a broken one with a traceback.
    photo.preprocess = _path_of_upload
    samples = gr.Dataset(
        components=[photo], samples=[[str(path)] for path in examples], type="index", label="Examples from the demo world"
    )

    # gr.Examples would replace the photo's component, and with it what was said above.
    def choose(index: object) -> str:
        if type(index) is not int or not 0 <= index < len(examples):
            raise gr.Error("There is no such example.", print_exception=False)
        return str(examples[index])

    samples.click(choose, [samples], [photo], show_progress="hidden", queue=False, api_visibility="private")
    return photo


def _path_of_upload(payload: Any) -> str | None:
    if payload is None:
        return None
    if not uploaded(payload.path):
        raise gr.Error("The photo was not uploaded to this page: upload it.", print_exception=False)
    return payload.path


def picture_output(elem_id: str, *, buttons: Sequence[str] = (), visible: bool = True) -> gr.Image:
    """A drawn picture; what it shows is said above it, for a label would cover its corner."""
    return gr.Image(
        show_label=False, format="png", interactive=False, buttons=list(buttons), visible=visible, elem_id=elem_id
    )
