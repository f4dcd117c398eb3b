"""Metrics by hand on a few pixels, and against a set-based reference."""

import math

import numpy as np
import pytest

from zeroshot_d2.segmentation.metrics import confusion_matrix, iou_per_class, mean_over, pixel_accuracy, sum_confusions


def test_three_pixels_by_hand():
    # truth: a a b, prediction: a b b  ->  IoU a = 1/2, b = 1/2, accuracy 2/3
    confusion = confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), 3)
    assert confusion.shape == (4, 4) and confusion.sum() == 3
    iou = iou_per_class(confusion)
    np.testing.assert_allclose(iou[:2], [50.0, 50.0])
    assert math.isnan(iou[2])  # class c does not occur
    assert pixel_accuracy(confusion) == pytest.approx(200 / 3)
    assert mean_over(iou) == pytest.approx(50.0)
    assert mean_over(iou, np.array([False, False, True])) is None


def test_ignored_pixels_are_neither_truth_nor_false_positive():
    confusion = confusion_matrix(np.array([0, 1, 1]), np.array([0, 2, 2]), 2)
    np.testing.assert_allclose(iou_per_class(confusion)[0], 100.0)
    assert pixel_accuracy(confusion) == 100.0


def test_a_pixel_without_prediction_is_a_miss():
    confusion = confusion_matrix(np.array([0, 2]), np.array([0, 0]), 2)
    assert iou_per_class(confusion)[0] == pytest.approx(50.0)
    assert pixel_accuracy(confusion) == pytest.approx(50.0)


def test_no_labelled_pixel_gives_none():
    confusion = confusion_matrix(np.array([0, 1]), np.array([2, 2]), 2)
    assert np.isnan(iou_per_class(confusion)).all()
    assert pixel_accuracy(confusion) is None


def reference_iou(prediction: np.ndarray, truth: np.ndarray, classes: int) -> list[float]:
    """By sets of pixel positions, without a confusion matrix."""
    labelled = [i for i, t in enumerate(truth) if t != classes]
    ious = []
    for k in range(classes):
        is_k = {i for i in labelled if truth[i] == k}
        says_k = {i for i in labelled if prediction[i] == k}
        ious.append(100 * len(is_k & says_k) / len(is_k | says_k) if is_k else math.nan)
    return ious


@pytest.mark.parametrize("seed", range(5))
def test_against_sets_and_additive(seed):
    rng = np.random.default_rng(seed)
    prediction, truth = rng.integers(0, 6, 400), rng.integers(0, 7, 400)
    truth[truth == 3] = 6  # class 3 never occurs
    whole = confusion_matrix(prediction, truth, 6)
    np.testing.assert_allclose(iou_per_class(whole), reference_iou(prediction, truth, 6))
    halves = [confusion_matrix(prediction[part], truth[part], 6) for part in (slice(0, 150), slice(150, None))]
    np.testing.assert_array_equal(sum_confusions(halves), whole)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        confusion_matrix(np.zeros(2, int), np.zeros(3, int), 2)
    with pytest.raises(ValueError, match="ground truth has indices"):
        confusion_matrix(np.zeros(2, int), np.array([0, 5]), 2)
    with pytest.raises(ValueError, match="no confusion matrix"):
        sum_confusions([])
