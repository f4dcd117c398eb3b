"""The regions of a segmentation: all pixels of a class, or those of them that hang together.

H, W are the height and width of the image in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .masks import Mask, encode_positions
from .predictor import Segmentation

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.bool_)


@dataclass(frozen=True, eq=False)
class Region:
    """Pixels of one class.

    Args:
        index: of the class in the vocabulary.
        score: mean score of the class over these pixels.
        positions: (N,) int64, ascending; pixel (y, x) has the position x H + y, as in COCO's run lengths.
        height, width: of the image.
    """

    index: int
    score: float
    positions: npt.NDArray[np.int64]
    height: int
    width: int

    @property
    def area(self) -> int:
        """Number of pixels."""
        return len(self.positions)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x, y, width and height, in pixels, as COCO has it."""
        x, y = np.divmod(self.positions, self.height)
        left, top = int(x.min()), int(y.min())
        return left, top, int(x.max()) - left + 1, int(y.max()) - top + 1

    def mask(self) -> Mask:
        """(H, W)."""
        mask = np.zeros(self.height * self.width, dtype=np.bool_)
        mask[self.positions] = True
        return mask.reshape(self.width, self.height).T

    def run_lengths(self) -> dict[str, object]:
        """COCO's compressed run lengths: {"size": [H, W], "counts": text}."""
        return encode_positions(self.positions, self.height, self.width)


def class_regions(found: Segmentation) -> list[Region]:
    """A region for each class that is present, in vocabulary order."""
    return [_region(found, k, positions) for k, positions in _pixels(found, connected=False)]


def connected_regions(found: Segmentation, min_area: int = 1) -> list[Region]:
    """The connected components of each class, in vocabulary order; pixels that touch at a corner are connected.

    Args:
        found: the segmentation.
        min_area: pixels that a region must have; smaller ones are left out.
    """
    return [_region(found, k, pixels) for k, pixels in _pixels(found, connected=True) if len(pixels) >= min_area]


def _region(found: Segmentation, index: int, positions: npt.NDArray[np.int64]) -> Region:
    height, width = found.labels.shape
    x, y = np.divmod(positions, height)
    return Region(index, float(found.confidence[y, x].mean(dtype=np.float64)), positions, height, width)


def _pixels(found: Segmentation, *, connected: bool) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """(class, positions); labels outside of the vocabulary are no class."""
    num_classes, height = len(found.vocabulary), len(found.labels)
    known = np.where((found.labels >= 0) & (found.labels < num_classes), found.labels + 1, 0)
    for k, window in enumerate(ndimage.find_objects(known, num_classes)):
        if window is None:
            continue
        rows, columns = window
        mask = (known[window] == k + 1).T  # so that flat positions go down the columns
        parts = ndimage.label(mask, _EIGHT_NEIGHBOURS)[0] if connected else mask
        flat = np.flatnonzero(parts)
        x, y = np.divmod(flat, mask.shape[1])
        positions = (x + columns.start) * height + y + rows.start
        part = parts.ravel()[flat]
        order = np.argsort(part, kind="stable")
        for pixels in np.split(positions[order], np.flatnonzero(np.diff(part[order])) + 1):
            yield k, pixels
