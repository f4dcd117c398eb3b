"""CVAT's "Segmentation mask 1.1", which is PASCAL VOC's layout; a .zip of the folder's content is what CVAT imports.

    cvat/labelmap.txt                            the classes and their colours
    cvat/ImageSets/Segmentation/default.txt      the images, without their ending
    cvat/SegmentationClass/                      a PNG per image in the colours of the classes
    cvat/SegmentationObject/                     the same with a colour of VOC's map for each mask; a class is one mask

Pixels without a class are black, the colour of "background".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ...images import ImageArray, write_image
from ...pictures.colors import Color
from ...storage import write_text
from ..predictor import Segmentation
from .base import Entry, Format, Settings, stem_of

BACKGROUND = "background"
_MOST_MASKS = 255  # VOC's colours of masks, black left out


def voc_color(index: int) -> Color:
    """The colour of an index from 0 to 255 in PASCAL VOC's map."""
    red = green = blue = 0
    for bit in range(8):  # three bits of the index at a time fill the channels from their highest bit on
        red |= ((index >> (3 * bit)) & 1) << (7 - bit)
        green |= ((index >> (3 * bit + 1)) & 1) << (7 - bit)
        blue |= ((index >> (3 * bit + 2)) & 1) << (7 - bit)
    return red, green, blue


def label_colors(names: Sequence[str], colors: Sequence[Color]) -> list[Color]:
    """Colours that CVAT can tell apart: black for a class "background" alone, and no colour twice.

    A colour that is taken becomes the next one that is not.
    """
    taken: set[Color] = {(0, 0, 0)}
    result: list[Color] = []
    for name, color in zip(names, colors, strict=True):
        if name == BACKGROUND:
            result.append((0, 0, 0))
            continue
        value = (color[0] << 16) | (color[1] << 8) | color[2]
        while (unused := (value >> 16, (value >> 8) & 255, value & 255)) in taken:
            value = (value + 1) % 0x1000000
        taken.add(unused)
        result.append(unused)
    return result


def cvat_masks(found: Segmentation, colors: Sequence[Color]) -> tuple[ImageArray, ImageArray]:
    """The images (H, W, 3) in ``SegmentationClass`` and in ``SegmentationObject``.

    Args:
        found: the segmentation.
        colors: K, see :func:`label_colors`.

    Raises:
        ValueError: more classes are present than PASCAL VOC has colours of masks.
    """
    num_classes = len(found.vocabulary)
    known = np.where((found.labels >= 0) & (found.labels < num_classes), found.labels, num_classes)
    classes = np.array([*colors, (0, 0, 0)], dtype=np.uint8)
    present = [int(k) for k in np.unique(known) if k < num_classes and tuple(colors[k]) != (0, 0, 0)]
    if len(present) > _MOST_MASKS:
        raise ValueError(f"CVAT's segmentation mask 1.1 holds {_MOST_MASKS} masks per image, got {len(present)} classes")
    masks = np.zeros_like(classes)
    for number, k in enumerate(present, start=1):
        masks[k] = voc_color(number)
    return classes[known], masks[known]


class CvatFormat(Format):
    """See the top of the file."""

    file_of_each = "SegmentationClass/{stem}.png"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        for name in self.vocabulary.names:
            if ":" in name or name.startswith("#"):
                raise ValueError(f"CVAT's labelmap.txt cannot hold the class {name!r}, because of its ':' or '#': rename it")
        self._colors = label_colors(self.vocabulary.names, settings.colors)

    def image(self, file_name: str, found: Segmentation) -> dict[str, Any]:
        try:
            masks = cvat_masks(found, self._colors)
        except ValueError as error:
            raise ValueError(f"{file_name}: {error}; leave out --format cvat") from error
        for kind, pixels in zip(("Class", "Object"), masks, strict=True):
            write_image(self.folder / f"Segmentation{kind}" / f"{stem_of(file_name)}.png", pixels)
        return {}

    def collect(self, entries: Callable[[], Iterator[Entry]]) -> None:
        rows = [(name, color) for name, color in zip(self.vocabulary.names, self._colors, strict=True) if name != BACKGROUND]
        lines = [f"{name}:{','.join(map(str, color))}::" for name, color in [(BACKGROUND, (0, 0, 0)), *rows]]
        head = "# label:color_rgb:parts:actions"
        write_text(self.folder / "labelmap.txt", "\n".join([head, *lines]) + "\n")
        stems = (f"{stem_of(entry['file_name'])}\n" for entry in entries())
        write_text(self.folder / "ImageSets" / "Segmentation" / "default.txt", "".join(stems))
