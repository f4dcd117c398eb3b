"""What the tabs of the web page share: reading uploads within limits, messages, examples, and the server.

Shapes: (H, W) an image; images are (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

import argparse
import base64
import functools
import html
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

import gradio as gr
from detectron2.config import CfgNode
from PIL import Image
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import demo_world
from .cli import positive
from .images import ImageArray, UnreadableImage, image_size, read_image, write_image

P = ParamSpec("P")
R = TypeVar("R")

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_ASPECT = 10  # longer to shorter side: pictures of a thin strip would be of any height
KEPT_SECONDS = 3600  # for how long uploads and results stay on the server
KEPT_SESSIONS = 100  # visitors whose last result is kept
# Of every event: one photo at a time, whichever the button, and from the page only.
EVENT = {"concurrency_id": "photos", "concurrency_limit": 1, "api_visibility": "private"}
# The fonts of the system: a page that works without a network loads none.
THEME = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
CSS = """
footer {display: none !important}
.photo img {width: 100%; height: 100%; object-fit: contain}
.results {width: 100%; border-collapse: collapse; border: 0 !important}
.results th, .results td {padding: 6px 8px; text-align: right !important; border: 0 !important}
.results th:first-child, .results td:first-child {text-align: left !important}
.results tr {border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important}
.captioned {display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 12px}
.captioned figure {margin: 0}
.captioned img {width: 100%; border-radius: 4px}
.captioned figcaption {font-size: 13px; line-height: 1.3; margin-top: 4px; white-space: pre-line}
"""


# ------------------------------------------------------------------------------------------------ input and output


def read_upload(path: str | None, max_pixels: int) -> ImageArray:
    """An uploaded photo, upright; its size is known from the header, before anything is decoded.

    Raises:
        ValueError: there is none, it is no readable image, or it is too large or too thin; the file is named.
    """
    if path is None:
        raise ValueError("There is no photo yet: upload one, or choose an example.")
    name = Path(path).name
    try:
        height, width = image_size(path, formats=FORMATS, max_pixels=sys.maxsize)  # any, for a message that says what to do
        _check_size(name, width, height, max_pixels)
        return read_image(path, formats=FORMATS, max_pixels=max_pixels)
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


def explained(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` with its ValueErrors as messages on the page."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            # Messages are shown as HTML, and they quote what was typed.
            raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error

    return wrapper


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
    """The "web_tab" part of a system: one model behind a tab of the page. Safe to call from several threads."""

    def __init__(self, cfg: CfgNode, max_pixels: int) -> None: ...

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
    photo.preprocess = lambda payload: None if payload is None else payload.path
    gr.Examples([[str(path)] for path in examples], [photo], label="Examples from the demo world")
    return photo


# ------------------------------------------------------------------------------------------------------ the server


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the page is served, and what it takes."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: this machine alone")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    parser.add_argument("--max-upload-mb", type=positive, default=10, help="size of an uploaded file; default: 10")
    parser.add_argument("--max-pixels", type=positive, default=4_000_000, help="width x height; default: 4000000")


def build_page(title: str, tabs: dict[str, Callable[[], None]]) -> gr.Blocks:
    """A page with these tabs: name -> a function that makes the content. It sends no telemetry."""
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gr.Markdown(f"# {title}")
        for name, build in tabs.items():
            with gr.Tab(name):
                build()
    return page


def start(page: gr.Blocks, *, host: str, port: int, max_upload_mb: int) -> str:
    """Serve a page in the background until ``page.close()``; its address."""
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        max_file_size=max_upload_mb * 2**20,
        share=False,
        ssr_mode=False,
        enable_monitoring=False,
        state_session_capacity=KEPT_SESSIONS,
        theme=THEME,
        css=CSS,
        app_kwargs={"middleware": [Middleware(StayAtHome)]},
        prevent_thread_lock=True,
        quiet=True,
    )
    return url


def serve(page: gr.Blocks, args: argparse.Namespace) -> None:
    """Serve a page as :func:`add_server_arguments` says, until Ctrl+C."""
    print(f"the page is at {start(page, host=args.host, port=args.port, max_upload_mb=args.max_upload_mb)} (Ctrl+C ends it)")
    page.block_thread()


class StayAtHome:
    """Tells browsers to load nothing from elsewhere: Gradio's page asks content networks for scripts otherwise."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
                MutableHeaders(scope=message)["Content-Security-Policy"] = policy
            await send(message)

        await self.app(scope, receive, send_with_policy)


def picture_output(elem_id: str, *, buttons: Sequence[str] = (), visible: bool = True) -> gr.Image:
    """A drawn picture; what it shows is said above it, for a label would cover its corner."""
    return gr.Image(
        show_label=False, format="png", interactive=False, buttons=list(buttons), visible=visible, elem_id=elem_id
    )
