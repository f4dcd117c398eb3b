"""Masks as COCO writes them: polygons, run lengths as numbers, and run lengths as text.

They are checked before pycocotools' C code sees them, which ends the process at a NaN, and believes any count.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

Mask = npt.NDArray[np.bool_]


def decode_mask(segmentation: Any, height: int, width: int) -> Mask:
    """The mask (H, W) of one segment.

    Args:
        segmentation: a list of polygons [x0, y0, x1, y1, ...] in pixels, or {"size": [H, W], "counts": ...}.
        height, width: of the image.

    Raises:
        ValueError: it is none of these, does not fit the image, or holds what is no number.
    """
    if isinstance(segmentation, list):
        for polygon in segmentation:
            _check_polygon(polygon, height, width)
        if not segmentation:
            raise ValueError("a mask without a polygon")
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))).astype(np.bool_)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError(f'a mask must be a list of polygons or {{"size", "counts"}}, got {_shortened(segmentation)}')
    size, counts = segmentation["size"], segmentation["counts"]
    if size != [height, width]:
        raise ValueError(f"a mask of {_shortened(size)} in an image of {(height, width)} (height, width)")
    runs = _runs_of_text(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(_is_whole(run) and run >= 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(
            f"the run lengths {_shortened(counts)} must be whole numbers from 0 that add up to {height} x {width} pixels"
        )
    return (np.repeat(np.arange(len(runs)) % 2, runs) > 0).reshape(width, height).T


def encode_positions(positions: npt.NDArray[np.int64], height: int, width: int) -> dict[str, Any]:
    """COCO's compressed run lengths of some pixels: {"size": [H, W], "counts": text}; :func:`decode_mask` reads them.

    Args:
        positions: (N,) ascending and not empty; pixel (y, x) has the position x H + y.
        height, width: of the image.
    """
    breaks = np.flatnonzero(np.diff(positions) != 1)
    begins, ends = positions[np.r_[0, breaks + 1]], positions[np.r_[breaks, -1]] + 1
    bounds = np.r_[0, np.stack([begins, ends], axis=1).ravel()]
    if bounds[-1] != height * width:
        bounds = np.r_[bounds, height * width]
    runs = {"size": [height, width], "counts": np.diff(bounds).tolist()}
    return {"size": [height, width], "counts": coco_mask.frPyObjects(runs, height, width)["counts"].decode("ascii")}


def _check_polygon(polygon: Any, height: int, width: int) -> None:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"a polygon must have x and y of at least three points, got {_shortened(polygon)}")
    reach = max(height, width)
    for value in polygon:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"a polygon must have finite numbers, got {value!r}")
        if not -reach <= value <= 2 * reach:
            raise ValueError(f"a polygon must lie in the image of {height} x {width} pixels, got the coordinate {value!r}")


def _runs_of_text(text: str) -> list[int]:
    """COCO's compressed run lengths: groups of five bits, the lowest first; from the fourth on, what to add to the last but
    one."""
    runs: list[int] = []
    value = shift = 0
    for sign in text:
        code = ord(sign) - 48
        if not 0 <= code < 64:
            raise ValueError(f"the run lengths {_shortened(text)} hold {sign!r}, which must not be there")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_size(height: int, width: int, most: int) -> None:
    """Raise ValueError where an image cannot have this size."""
    if min(height, width) < 1 or height * width > most:
        raise ValueError(f"height {height} and width {width} must be from 1, and at most {most:,} pixels together")
