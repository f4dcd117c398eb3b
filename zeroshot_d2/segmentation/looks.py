"""How a segmenter looks at an image at test time: whole or in windows, at one size or several, mirrored or not.

A *look* is the image at one size, mirrored or not, and cut into a grid of windows, each of which the network sees as an
image of its own. Where windows overlap, what was found in them is blended: the weight of a window falls in a straight line
towards those of its edges that lie inside the image, so that no seam can be seen, and the weights add up to one. Looks of
several sizes count equally. With one window everything is as without.

All coordinates are in pixels from the upper left corner of the image; pixel i covers i to i + 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torch import Tensor

from ..ranges import declare, each, whole

Size = tuple[int, int]
"""Height and width."""

_LEAST_WEIGHT = 1e-6  # at the very edge of a window, beyond which there may be no other


def add_looks_config(cfg: CfgNode) -> None:
    """Add ``TEST.SLIDE``; Detectron2 has ``TEST.AUG`` already, which is read as it stands there."""
    slide = cfg.TEST.SLIDE = CfgNode()
    # The image goes through the network in windows, at the size that INPUT.MIN_SIZE_TEST gives it (0: its own).
    slide.ENABLED = False
    # Side of a window, and the distance between two, in pixels.
    slide.WINDOW = 640
    slide.STRIDE = 426


declare(
    "TEST",
    {
        "SLIDE.WINDOW": whole(1),
        "SLIDE.STRIDE": whole(1),
        "AUG.MIN_SIZES": each(whole(1), least=1, distinct=True),
        "AUG.MAX_SIZE": whole(1),
    },
)


# -------------------------------------------------------------------------------------------------------- one axis
@dataclass(frozen=True)
class Axis:
    """Windows along one side of an image.

    Args:
        side: of the image.
        starts: where the windows begin, the first at 0; the last one ends at ``side``.
        length: of a window.
        mirrored: the image was mirrored along this axis before it was cut. What follows is about pixels of the output, which
            is not mirrored.
    """

    side: int
    starts: tuple[int, ...]
    length: int
    mirrored: bool = False

    @classmethod
    def of_windows(cls, side: int, window: int, stride: int, *, mirrored: bool = False) -> Axis:
        """Windows every ``stride`` pixels; the last one is shifted so that it ends with the image."""
        length = min(side, window)
        count = -(-(side - length) // stride) + 1
        return cls(side, tuple(min(index * stride, side - length) for index in range(count)), length, mirrored)

    def span(self, index: int, output: int) -> slice:
        """Those of ``output`` pixels along the whole side whose centres lie in a window."""
        edges = [self.starts[index], self.starts[index] + self.length]
        if self.mirrored:
            edges = [self.side - edge for edge in reversed(edges)]
        first, last = (min(output, max(0, math.ceil(edge * output / self.side - 0.5))) for edge in edges)
        return slice(first, last)

    def positions(self, index: int, pixels: Tensor, output: int, cells: float) -> Tensor:
        """Where pixels of the output lie on a window's grid of features, of which ``cells`` cover it: 0 is the centre of the
        first cell."""
        return (self._places(pixels, output) - self.starts[index]) * (cells / self.length) - 0.5

    def weights(self, index: int, pixels: Tensor, output: int) -> Tensor:
        """What a window's share in pixels of the output is, in [0, 1]; those of all windows add up to 1."""
        places = self._places(pixels, output)
        total = sum(self._height(other, places) for other in range(len(self.starts)))
        return self._height(index, places) / total

    def _places(self, pixels: Tensor, output: int) -> Tensor:
        """Centres of pixels of the output, as coordinates of the image that was cut."""
        places = (pixels.double() + 0.5) * (self.side / output)
        return self.side - places if self.mirrored else places

    def _height(self, index: int, places: Tensor) -> Tensor:
        """Not normalised: the distance to the nearest edge that has the image on both sides; 0 outside of the window."""
        start, stop = self.starts[index], self.starts[index] + self.length
        inside = (places >= start) & (places <= stop)
        distance = torch.full_like(places, float(self.side))
        if start > 0:
            distance = torch.minimum(distance, places - start)
        if stop < self.side:
            distance = torch.minimum(distance, stop - places)
        return inside * distance.clamp(min=_LEAST_WEIGHT)


# ------------------------------------------------------------------------------------------------------------ looks
@dataclass(frozen=True)
class Look:
    """An image at one size, cut into windows.

    Args:
        rows, columns: windows along the height and the width.
        share: its part in the result, 1 / the number of looks.
    """

    rows: Axis
    columns: Axis
    share: float = 1.0

    @classmethod
    def whole(cls, size: Size) -> Look:
        """The image as it is, in one window."""
        height, width = size
        return cls(Axis(height, (0,), height), Axis(width, (0,), width))

    @property
    def size(self) -> Size:
        """Of the image, in pixels."""
        return self.rows.side, self.columns.side

    @property
    def window(self) -> Size:
        """Height and width of each window."""
        return self.rows.length, self.columns.length

    def places(self) -> list[Place]:
        """Its windows, row by row."""
        return [Place(self, i, j) for i, j in product(range(len(self.rows.starts)), range(len(self.columns.starts)))]

    def image(self, image: Tensor) -> Tensor:
        """An image (C, H, W) at this look's size, mirrored where the look is."""
        if image.shape[-2:] != self.size:
            shrinks = self.size[0] < image.shape[-2]
            image = F.interpolate(image[None], size=self.size, mode="bilinear", align_corners=False, antialias=shrinks)[0]
        return image.flip(-1) if self.columns.mirrored else image


@dataclass(frozen=True)
class Place:
    """A window of a look: its row and column in the grid."""

    look: Look
    row: int
    column: int

    def cut(self, image: Tensor) -> Tensor:
        """The window of an image (C, H, W) as :meth:`Look.image` gives it."""
        (height, width), rows, columns = self.look.window, self.look.rows, self.look.columns
        top, left = rows.starts[self.row], columns.starts[self.column]
        return image[..., top : top + height, left : left + width]

    def down(self, output: int) -> slice:
        """The rows of an output of that height which it covers."""
        return self.look.rows.span(self.row, output)

    def across(self, output: int) -> slice:
        """The columns of an output of that width which it covers."""
        return self.look.columns.span(self.column, output)

    @property
    def is_alone(self) -> bool:
        """Whether it is all there is, with weight 1 everywhere."""
        return self.look.share == 1 and len(self.look.rows.starts) == len(self.look.columns.starts) == 1


@dataclass(frozen=True)
class Looks:
    """The keys TEST.SLIDE and TEST.AUG of a config.

    Args:
        window, stride: of sliding windows; None: none.
        min_sizes: shorter sides of the sizes at which images are seen; (): as they come.
        max_size: no longer side is longer, with ``min_sizes``.
        mirrored: whether each size is also seen mirrored.
    """

    window: int | None = None
    stride: int = 1
    min_sizes: tuple[int, ...] = ()
    max_size: int = 4000
    mirrored: bool = False

    @classmethod
    def of_config(cls, cfg: CfgNode) -> Looks:
        """
        Raises:
            ValueError: windows would leave gaps.
        """
        slide, aug = cfg.TEST.SLIDE, cfg.TEST.AUG
        if slide.ENABLED and slide.STRIDE > slide.WINDOW:
            raise ValueError(
                f"TEST.SLIDE.STRIDE {slide.STRIDE} exceeds TEST.SLIDE.WINDOW {slide.WINDOW} and would leave gaps: lower it"
            )
        looks = cls(slide.WINDOW, slide.STRIDE) if slide.ENABLED else cls()
        if aug.ENABLED:
            looks = replace(looks, min_sizes=tuple(aug.MIN_SIZES), max_size=aug.MAX_SIZE, mirrored=aug.FLIP)
        return looks

    @property
    def once(self) -> bool:
        """Whether every image is seen once, as a whole."""
        return self.window is None and not self.min_sizes

    def of_image(self, size: Size) -> list[Look]:
        """Those of an image of this size."""
        sizes = [size]
        if self.min_sizes:
            sizes = [T.ResizeShortestEdge.get_output_shape(*size, short, self.max_size) for short in self.min_sizes]
            sizes = [(max(1, height), max(1, width)) for height, width in sizes]
        mirrors = (False, True) if self.mirrored else (False,)
        share = 1 / (len(sizes) * len(mirrors))
        return [
            Look(self._axis(height), self._axis(width, mirrored), share)
            for (height, width), mirrored in product(sizes, mirrors)
        ]

    def _axis(self, side: int, mirrored: bool = False) -> Axis:
        window = side if self.window is None else self.window
        return Axis.of_windows(side, window, self.stride, mirrored=mirrored)


# ---------------------------------------------------------------------------------------------------------- output
def regions(
    places: Sequence[Place], output_size: Size, rows: slice | None = None
) -> Iterator[tuple[slice, slice, list[int]]]:
    """Rectangles of the output in which the same windows meet.

    Args:
        places: windows, of any looks.
        output_size: (H, W).
        rows: only these rows of the output; None: all.

    Yields:
        rows, columns, and the indices of the windows. Each pixel that a window covers is in one rectangle.
    """
    height, width = output_size
    down = [place.down(height) for place in places]
    across = [place.across(width) for place in places]
    wanted = slice(0, height) if rows is None else rows
    row_edges = _edges(down, wanted)
    column_edges = _edges(across, slice(0, width))
    for top, bottom in row_edges:
        for left, right in column_edges:
            members = [
                index
                for index, (y, x) in enumerate(zip(down, across, strict=True))
                if y.start <= top and bottom <= y.stop and x.start <= left and right <= x.stop
            ]
            if members:
                yield slice(top, bottom), slice(left, right), members


def _edges(spans: Sequence[slice], within: slice) -> list[tuple[int, int]]:
    """The intervals between all edges."""
    edges = {edge for span in spans for edge in (span.start, span.stop)} | {within.start, within.stop}
    ordered = sorted(edge for edge in edges if within.start <= edge <= within.stop)
    return list(zip(ordered, ordered[1:], strict=False))
