"""What both tasks write for Label Studio: tasks with predictions, and the labelling interface that shows them.

label_studio/config.xml   the labelling interface; paste it into the project's settings
label_studio/tasks.json   the images with their predictions; import it
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from .json_stream import write_json_array
from .pictures.colors import Color
from .storage import write_text

LOCAL_FILES = "/data/local-files/?d="
"""How Label Studio's links to files on its own machine begin; the path follows, from LOCAL_FILES_DOCUMENT_ROOT."""

IMAGE = "image"
"""The name of the image in the labelling interface, and its key in a task."""


def add_prefix_argument(parser: argparse.ArgumentParser) -> None:
    """How links to images begin."""
    parser.add_argument(
        "--image-prefix",
        metavar="TEXT",
        help="of --format label-studio: what links to the images begin with, such as "
        f"https://HOST/photos/; default: {LOCAL_FILES}",
    )


def task(file_name: str, prefix: str | None, model: str, score: float, result: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A task with one prediction.

    Args:
        file_name: of the image, as a path with "/".
        prefix: see :func:`add_prefix_argument`; None: the default.
        model: name of the model.
        score: of the prediction.
        result: its regions.
    """
    link = (LOCAL_FILES if prefix is None else prefix) + quote(file_name)
    prediction = {"model_version": model, "score": score, "result": list(result)}
    return {"data": {IMAGE: link}, "predictions": [prediction]}


def interface(control: str, item: str, name: str, attributes: str, classes: Sequence[str], colors: Sequence[Color]) -> str:
    """The labelling interface as XML.

    Args:
        control: tag of the control, such as "BrushLabels".
        item: tag of its items, such as "Label".
        name: what predictions call the control.
        attributes: further ones of the control.
        classes, colors: K each.
    """
    items = [
        f"    <{item} value={quoteattr(label)} background={quoteattr('#{:02x}{:02x}{:02x}'.format(*color))}/>"
        for label, color in zip(classes, colors, strict=True)
    ]
    return "\n".join(
        [
            "<View>",
            f'  <Image name="{IMAGE}" value="${IMAGE}" zoom="true"/>',
            f'  <{control} name="{name}" toName="{IMAGE}"{attributes}>',
            *items,
            f"  </{control}>",
            "</View>",
            "",
        ]
    )


def write_project(folder: Path, xml: str, tasks: Iterable[dict[str, Any]]) -> None:
    """Write both files."""
    write_text(folder / "config.xml", xml)
    write_json_array(folder / "tasks.json", tasks)
