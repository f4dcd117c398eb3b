"""Pure functions from scores and labels to ranking numbers.

* AP of a class: mean over its positive images of the precision at their rank, without interpolation.
* P, R and F1 at K are micro averages over the images: P = TP / (N K), R = TP / positives.
* Of equal scores the wrong ones come first, in AP and among the top K alike: a result never depends on an order of images or
  classes, and a model that gives every class one score gains nothing by it.

Shapes: N images, B of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..metrics import harmonic_mean

BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
FlagArray = npt.NDArray[np.uint8]


def average_precision(scores: Float32Array, positive: BoolArray) -> float:
    """AP in [0, 1] of one class, from its score and its presence in each image (N,); NaN without a positive."""
    return average_precisions(scores, positive, np.ones(len(scores), dtype=np.uint8), 1)[0]


def average_precisions(scores: Float32Array, positive: BoolArray, flags: FlagArray, num_sets: int) -> list[float]:
    """AP in [0, 1] of one class over each of several sets of images; NaN for a set without a positive.

    Args:
        scores, positive: (N,).
        flags: (N,), whose bit i says whether an image is in set i.
        num_sets: at most 8.
    """
    present, present_flags = scores[positive], flags[positive]
    order = np.argsort(-present)
    present, present_flags = present[order], present_flags[order]
    absent, absent_flags = scores[~positive], flags[~positive]
    # How many absent images come before each present one, for those of one combination of sets at a time: so every score is
    # sorted once, whatever the number of sets, and a plain sort of floats is the fastest there is.
    before = {}
    for kind in np.flatnonzero(np.bincount(absent_flags)):
        rising = np.sort(absent.compress(absent_flags == kind))
        before[kind] = len(rising) - np.searchsorted(rising, present)
    result = []
    for bit in range(num_sets):
        inside = present_flags >> bit & 1 == 1
        place = np.arange(1, np.count_nonzero(inside) + 1)  # among the present ones
        ranks = place + sum(count[inside] for kind, count in before.items() if kind >> bit & 1)
        result.append(float((place / ranks).mean()) if len(place) else float("nan"))
    return result


def pooled_average_precision(
    image: npt.NDArray[np.int32], klass: npt.NDArray[np.int32], scores: Float32Array, positive: BoolArray, num_classes: int
) -> npt.NDArray[np.float64]:
    """What BiAM's code calls a class's AP on Open Images: that of *all* annotated pairs of the images annotated for it.

    It ranks pairs of other classes too, so it is no AP of a class, but published numbers are means of it.

    Args:
        image, klass, scores, positive: of the annotated (image, class) pairs, all (P,).
        num_classes: C.

    Returns:
        (C,) in [0, 1]; NaN for a class that no image is annotated for, or whose images have no positive at all.
    """
    order = np.argsort(image, kind="stable")
    image, klass, scores, positive = image[order], klass[order], scores[order], positive[order]
    _, first, size = np.unique(image, return_index=True, return_counts=True)
    group = np.repeat(np.arange(len(size)), size)
    by_class = np.argsort(klass, kind="stable")
    bounds = np.searchsorted(klass[by_class], np.arange(num_classes + 1))
    result = np.full(num_classes, np.nan)
    for k in range(num_classes):
        groups = group[by_class[bounds[k] : bounds[k + 1]]]
        if len(groups):
            pairs = np.concatenate([np.arange(first[g], first[g] + size[g]) for g in groups])
            result[k] = average_precision(scores[pairs], positive[pairs])
    return result


def hits_at(scores: Float32Array, positive: BoolArray, top_k: Sequence[int]) -> IntArray:
    """(B, len(top_k)) positives among the K best of each row of ``scores`` (B, classes)."""
    scores = np.ascontiguousarray(scores)
    lowest = torch.from_numpy(scores).topk(max(top_k), dim=1, sorted=False).values.amin(dim=1, keepdim=True).numpy()
    found = np.flatnonzero(scores >= lowest)  # the best, and whatever equals the last of them; a full sort takes long
    rows, classes = np.divmod(found, scores.shape[1])
    hit = positive[rows, classes]
    order = np.lexsort((hit, -scores[rows, classes], rows))
    rows, hit = rows[order], hit[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    return np.stack([np.bincount(rows[hit & (rank < k)], minlength=len(scores)) for k in top_k], axis=1)


def precision_recall_f1(hits: int, images: int, positives: int, k: int) -> tuple[float | None, float | None, float | None]:
    """Micro P, R and F1 at K in percent; None where nothing is there to be divided by."""
    precision = 100 * hits / (images * k) if images else None
    recall = 100 * hits / positives if positives else None
    f1 = None if precision is None or recall is None else harmonic_mean(precision, recall)
    return precision, recall, f1
