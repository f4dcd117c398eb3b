"""Pre-annotations for Label Studio: one brush per class of an image; see :mod:`zeroshot_d2.label_studio`.

Brushes are masks of any shape, holes and islands included, as stuff needs them. Label Studio packs them with the
run-length code of the JavaScript library @thi.ng/rle-pack, a stream of bits, the highest of a number first:

    32      how many words follow; a pixel is four of them (red, green, blue, alpha)
    5       bits per word, less 1
    4 x 4   the four lengths in bits that a count may have, less 1
    then for each run: 1, which of the four lengths (2 bits), the run's count of words less 1, the word
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ...label_studio import IMAGE, add_prefix_argument, interface, task, write_project
from ..masks import Mask
from ..predictor import Segmentation
from ..regions import class_regions
from .base import Entry, Format, rounded

CONTROL = "segments"
_WORD = 8  # bits
_WORDS_OF_PIXEL = 4
_COUNT_BITS = np.array([3, 4, 8, 16])


def pack_mask(mask: Mask) -> list[int]:
    """A mask (H, W) in Label Studio's run-length code, as bytes."""
    flat = mask.ravel()
    begins = np.r_[0, np.flatnonzero(np.diff(flat)) + 1]
    lengths = _WORDS_OF_PIXEL * np.diff(np.r_[begins, flat.size])
    longest = 1 << int(_COUNT_BITS[-1])
    pieces = -(-lengths // longest)  # a longer run becomes several
    counts = np.full(int(pieces.sum()), longest)
    last = np.cumsum(pieces) - 1
    counts[last] = lengths - longest * (pieces - 1)
    words = np.repeat(np.where(flat[begins], (1 << _WORD) - 1, 0), pieces)

    which = np.searchsorted(1 << _COUNT_BITS, counts)  # the first of the four lengths that holds count - 1
    size = 1 + 2 + _COUNT_BITS[which] + _WORD
    first = np.r_[0, np.cumsum(size)]
    head = _bits(np.array([(_WORDS_OF_PIXEL * flat.size << 5) | (_WORD - 1)]), 37).ravel()
    head = np.r_[head, _bits(_COUNT_BITS - 1, 4).ravel()]
    body = np.zeros(int(first[-1]), dtype=np.uint8)
    for index, bits in enumerate(_COUNT_BITS):
        chosen = np.flatnonzero(which == index)
        value = ((0b100 | index) << int(bits) | (counts[chosen] - 1)) << _WORD | words[chosen]
        length = 1 + 2 + int(bits) + _WORD
        body[first[chosen][:, None] + np.arange(length)] = _bits(value, length)
    return np.packbits(np.r_[head, body]).tolist()


def _bits(values: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.uint8]:
    """(N,) -> (N, length), the highest first."""
    return ((values[:, None] >> np.arange(length - 1, -1, -1)) & 1).astype(np.uint8)


def brush_regions(found: Segmentation) -> list[dict[str, Any]]:
    """Label Studio's regions of an image: one brush per class."""
    height, width = found.labels.shape
    return [
        {
            "id": f"class-{region.index}",
            "type": "brushlabels",
            "from_name": CONTROL,
            "to_name": IMAGE,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": rounded(region.score),
            "value": {
                "format": "rle",
                "rle": pack_mask(region.mask()),
                "brushlabels": [found.vocabulary.names[region.index]],
            },
        }
        for region in class_regions(found)
    ]


class LabelStudioFormat(Format):
    """See the top of the file."""

    options = ("image_prefix",)

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_prefix_argument(parser)

    def image(self, file_name: str, found: Segmentation) -> dict[str, Any]:
        return {"score": rounded(float(found.confidence.mean(dtype=np.float64))), "result": brush_regions(found)}

    def collect(self, entries: Callable[[], Iterator[Entry]]) -> None:
        prefix, model = self.settings.args.image_prefix, self.settings.model
        xml = interface("BrushLabels", "Label", CONTROL, "", self.vocabulary.names, self.settings.colors)
        tasks = (task(entry["file_name"], prefix, model, entry["score"], entry["result"]) for entry in entries())
        write_project(self.folder, xml, tasks)
