"""Pure functions from counts to numbers. K is the number of classes.

A confusion matrix here is (K+1, K+1) int64, ``[prediction, ground truth]``, as Detectron2's
``SemSegEvaluator`` keeps it; the last row and column stand for "ignored". Matrices of different images,
batches and processes simply add up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Counts = npt.NDArray[Any]


def confusion_matrix(prediction: IntArray, truth: IntArray, num_classes: int) -> npt.NDArray[np.int64]:
    """Count pixels by (predicted, true) class.

    Args:
        prediction: vocabulary indices in [0, K), any shape; K stands for "no prediction".
        truth: vocabulary indices in [0, K), same shape; K stands for "ignored".
        num_classes: K.

    Returns:
        (K+1, K+1) int64, ``[prediction, truth]``.

    Raises:
        ValueError: the shapes differ or an index lies outside [0, K].
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and ground truth {truth.shape} differ in shape")
    for what, array in (("prediction", prediction), ("ground truth", truth)):
        if array.size and not (int(array.min()) >= 0 and int(array.max()) <= num_classes):
            raise ValueError(
                f"{what} has indices in [{array.min()}, {array.max()}], the vocabulary has {num_classes} classes"
            )
    side = num_classes + 1
    cell = prediction.reshape(-1).astype(np.int64) * side + truth.reshape(-1).astype(np.int64)
    return np.bincount(cell, minlength=side * side).reshape(side, side).astype(np.int64)


def iou_per_class(confusion: npt.NDArray[np.int64], *, predicted_counts: bool = False) -> FloatArray:
    """(K,) intersection over union in percent; NaN for a class that no labelled pixel has.

    With ``predicted_counts``, 0 instead for such a class where it was predicted, as Detectron2 up to 0.6 has it.

    Ignored pixels count neither as truth nor as prediction. A class without ground truth has no IoU even where
    it was predicted: its false positives show in the IoU of the classes whose pixels it took.
    """
    return iou_of_counts(*class_counts(confusion), predicted_counts=predicted_counts)


def class_counts(
    confusion: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pixels of each class that are right, that have it, and that are predicted as it; each (K,), labelled pixels only."""
    labelled = confusion[:-1, :-1]
    # A pixel labelled with the class but predicted as "no prediction" is still a miss.
    return labelled.diagonal().copy(), confusion[:, :-1].sum(axis=0), labelled.sum(axis=1)


def iou_of_counts(hit: Counts, truth: Counts, predicted: Counts, *, predicted_counts: bool = False) -> FloatArray:
    """As :func:`iou_per_class`, from :func:`class_counts` or weighted sums of them, all (..., K)."""
    hit, truth, predicted = (np.asarray(counts, dtype=np.float64) for counts in (hit, truth, predicted))
    iou = np.full(hit.shape, np.nan)
    occurs = (truth > 0) | (predicted > 0) if predicted_counts else truth > 0
    iou[occurs] = 100.0 * hit[occurs] / (truth + predicted - hit)[occurs]
    return iou


def mean_over(values: FloatArray, mask: BoolArray | None = None) -> float | None:
    """Mean of the finite entries of ``values`` (K,), where ``mask`` (K,) is True; None when there is none."""
    chosen = values if mask is None else values[mask]
    chosen = chosen[~np.isnan(chosen)]
    return float(chosen.mean()) if chosen.size else None


def pixel_accuracy(confusion: npt.NDArray[np.int64]) -> float | None:
    """Share of labelled pixels whose class is right, in percent; None when no pixel is labelled."""
    labelled = int(confusion[:, :-1].sum())
    return 100.0 * float(confusion[:-1, :-1].trace()) / labelled if labelled else None


def sum_confusions(confusions: Iterable[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """The matrix of the union of disjoint parts (images, batches, processes).

    Raises:
        ValueError: there is nothing to add.
    """
    parts = list(confusions)
    if not parts:
        raise ValueError("no confusion matrix to add up")
    return np.sum(np.stack(parts), axis=0)
