"""How far a difference between two methods may be chance: the paired bootstrap over the images of a test set.

An image that is drawn counts for both methods, so what makes an image hard for both does not blur their difference.
Shapes: N images, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_AT_ONCE = 1 << 24  # weights held at a time: 64 MB

FloatArray = npt.NDArray[np.float64]


def draw_weights(num_images: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.float32]]:
    """How often each image is drawn in each of R samples with replacement, in blocks of at most 64 MB.

    Args:
        num_images: N.
        resamples: R.
        seed: of the draws.

    Yields:
        (r, N), whose rows sum to N.
    """
    random = np.random.default_rng(seed)
    block = max(1, min(resamples, _AT_ONCE // num_images))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = random.integers(num_images, size=(rows, num_images))
        drawn += num_images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * num_images).reshape(rows, num_images).astype(np.float32)


def interval(differences: FloatArray, level: float = 0.95) -> tuple[float, float] | None:
    """The percentile interval of R differences; None where fewer than half of them are numbers."""
    known = differences[~np.isnan(differences)]
    if 2 * len(known) < len(differences) or not len(known):
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
