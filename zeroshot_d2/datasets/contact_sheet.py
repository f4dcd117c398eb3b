"""A picture of a data set: some of its images with their labels laid over and named."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from ..images import read_image
from ..pictures.style import class_text
from ..pictures.texts import families_for
from ..registration import DatasetDict
from ..segmentation.labels import IGNORE_LABEL, read_label
from ..storage import PathLike, whole_file
from .check import evenly, registered, size_fault

_TILE_WIDTH, _TILE_HEIGHT = 320, 240  # in pixels
_LEGEND_LINE, _FONT_SIZE = 14, 11


def contact_sheet(name: str, file: PathLike, count: int = 12, columns: int = 4) -> None:
    """Draw ``count`` images of a data set, evenly spaced, with their labels laid over and named; unseen names
    have a star.

    Files that cannot be read are drawn as a grey tile with the fault.
    """
    records, meta = registered(name)
    chosen = evenly(len(records), count)
    draw = _draw_sem_seg if hasattr(meta, "label_table") else _draw_multilabel
    tiles = [_tile(records[i], meta, draw) for i in chosen]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("RGB", (columns * (_TILE_WIDTH + 8), sum(heights) + 8 * len(rows)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for k, tile in enumerate(row):
            sheet.paste(tile, (k * (_TILE_WIDTH + 8), top))
        top += height + 8
    with whole_file(file) as temporary:
        sheet.save(temporary, format="PNG")


_Legend = list[tuple[tuple[int, int, int], str]]
_Drawing = Callable[[DatasetDict, Any], tuple[Image.Image, _Legend]]


def _draw_sem_seg(record: DatasetDict, meta: Any) -> tuple[Image.Image, _Legend]:
    """The photo with its labels laid over, and a colour and name for each class in it, largest first."""
    photo = read_image(record["file_name"])
    label = read_label(record["sem_seg_file_name"], meta.label_table, photo=record["file_name"])
    if label.shape != photo.shape[:2]:
        raise ValueError(size_fault(record, photo.shape[:2], label.shape))
    labelled = label != IGNORE_LABEL
    colors = np.array(meta.stuff_colors, dtype=np.float64)
    photo = photo.copy()
    photo[labelled] = 0.5 * photo[labelled] + 0.5 * colors[label[labelled]]
    classes, pixels = np.unique(label[labelled], return_counts=True)
    names = _starred(meta)
    return Image.fromarray(photo), [(meta.stuff_colors[k], names[k]) for k in classes[np.argsort(-pixels)]]


def _draw_multilabel(record: DatasetDict, meta: Any) -> tuple[Image.Image, _Legend]:
    """The photo, and its labels: black where present, red where verified to be absent."""
    names = _starred(meta)
    legend: _Legend = [((0, 0, 0), names[k]) for k in record["positive_labels"]]
    legend += [((200, 0, 0), f"not {names[k]}") for k in record["negative_labels"]]
    return Image.fromarray(read_image(record["file_name"])), legend


def _starred(meta: Any) -> list[str]:
    split = meta.class_split
    return [class_text(split, k) for k in range(len(split))]


def _tile(record: DatasetDict, meta: Any, draw: _Drawing) -> Image.Image:
    try:
        photo, legend = draw(record, meta)
    except (ValueError, FileNotFoundError) as error:
        photo, legend = Image.new("RGB", (_TILE_WIDTH, _TILE_HEIGHT), "lightgrey"), []
        fault = str(error)
        lines = [fault[start : start + 50] for start in range(0, len(fault), 50)][:12]
        ImageDraw.Draw(photo).multiline_text((6, 6), "\n".join(lines), fill="black")
    photo = _fitted(photo)
    legend = legend[:10]
    tile = Image.new("RGB", (_TILE_WIDTH, _TILE_HEIGHT + _LEGEND_LINE * (1 + len(legend))), "white")
    tile.paste(photo, (0, 0))
    pen = ImageDraw.Draw(tile)
    _write(pen, (2, _TILE_HEIGHT), str(record["image_id"]), "grey")
    for line, (color, text) in enumerate(legend, start=1):
        y = _TILE_HEIGHT + line * _LEGEND_LINE
        pen.rectangle((2, y + 2, 12, y + 12), fill=color)
        _write(pen, (18, y), text, "black")
    return tile


def _fitted(photo: Image.Image) -> Image.Image:
    """As large as a tile takes; what is much smaller grows by a whole number, so that its pixels stay squares."""
    times = min(_TILE_WIDTH // photo.width, _TILE_HEIGHT // photo.height)
    if times > 1:
        return photo.resize((times * photo.width, times * photo.height), Image.Resampling.NEAREST)
    photo.thumbnail((_TILE_WIDTH, _TILE_HEIGHT))
    return photo


def _write(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, color: str) -> None:
    """The beginning of ``text`` in a font that has its letters; Pillow's own has no star."""
    pen.text(place, text[:48], fill=color, font=_font(families_for(text)[-1]))


@functools.cache
def _font(family: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont(family), _FONT_SIZE)
