"""LabelMe's JSON files: polygons, rectangles, circles and masks; later shapes cover earlier ones.

The label image has the name of the JSON file, as LabelMe names it after the photo.
"""

from __future__ import annotations

import base64
import binascii
import math
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...images import image_size, read_label_image
from ...json_stream import fields
from ...segmentation.masks import Mask
from ...storage import read_json
from .base import AnnotatedImage, Annotations, Shape, draw_box, draw_ellipse, segment

_WITHOUT_AREA = ("line", "linestrip", "point", "points")


def read_labelme(path: Path) -> Annotations:
    """The annotations of a folder of LabelMe's JSON files (those in folders inside too), or of one file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is not LabelMe's or is damaged; it is named.
    """
    folder = path if path.is_dir() else path.parent
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path} holds no .json file: name the folder of LabelMe's files")
    images, left_out = [], Counter[str]()
    for file in files:
        content = read_json(file, "LabelMe file")
        shapes, height, width = fields(content, file, shapes=list, imageHeight=int, imageWidth=int)
        drawn = []
        for entry in shapes:
            shape = _shape(entry, file)
            if shape is None:
                left_out[entry["shape_type"]] += 1
            else:
                drawn.append(shape)
        stem = file.relative_to(folder).with_suffix("").as_posix()
        images.append(AnnotatedImage(stem, str(file), height, width, drawn))
    names = sorted({shape.name for image in images for shape in image.shapes})
    return Annotations(names, images, left_out)


def _shape(entry: Any, file: Path) -> Shape | None:
    """None for a shape without area."""
    name, points = fields(entry, file, label=str, points=list)
    kind = entry.setdefault("shape_type", "polygon")  # which old files do not name
    if kind in _WITHOUT_AREA:
        return None
    for point in points:
        if not isinstance(point, list) or len(point) != 2 or not all(_is_number(value) for value in point):
            raise ValueError(f"{file} has a shape {name!r} with the point {str(point)[:60]}, which must be two numbers")
    if kind == "polygon":
        return segment(name, [[float(value) for point in points for value in point]])
    if kind not in ("rectangle", "circle", "mask") or len(points) != 2:
        raise ValueError(
            f"{file} has a shape {name!r} of the type {str(kind)[:60]!r} with {len(points)} points, which LabelMe does not "
            "write: correct it, or leave it out"
        )
    (x0, y0), (x1, y1) = points
    if kind == "circle":  # its centre, and a point on it
        radius = math.hypot(x1 - x0, y1 - y0)
        return Shape(name, partial(draw_ellipse, x0, y0, radius, radius, 0.0))
    left, right, top, bottom = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    if kind == "rectangle":
        return Shape(name, partial(draw_box, left, top, right, bottom))
    (packed,) = fields(entry, file, mask=str)
    return Shape(name, partial(_draw_mask, packed, int(left), int(top), int(right), int(bottom)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _draw_mask(packed: str, left: int, top: int, right: int, bottom: int, height: int, width: int) -> Mask:
    """LabelMe's mask: a PNG in base64 of the pixels from (left, top) to (right, bottom), both included."""
    if not (0 <= left <= right < width and 0 <= top <= bottom < height):
        raise ValueError(f"a mask at {(left, top, right, bottom)} does not lie in the image of {height} x {width} pixels")
    size = (bottom - top + 1, right - left + 1)
    with tempfile.TemporaryDirectory(prefix="zeroshot-d2-") as folder:
        file = Path(folder) / "mask.png"
        try:
            file.write_bytes(base64.b64decode(packed, validate=True))
        except binascii.Error as error:
            raise ValueError(f"a mask is no base64 ({error})") from error
        if image_size(file) != size:
            raise ValueError(f"a mask of {image_size(file)} (height, width) between corners that span {size}")
        pixels = read_label_image(file)
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[top : bottom + 1, left : right + 1] = pixels > 0
    return mask
