"""AP and P, R, F1 at K by hand; of equal scores the wrong ones come first."""

import math

import numpy as np
import pytest

from zeroshot_d2.multilabel.ranking import average_precision, average_precisions, hits_at, precision_recall_f1


def test_average_precision_by_hand():
    # present at ranks 1, 3 and 4: (1/1 + 2/3 + 3/4) / 3
    scores = np.array([0.1, 0.8, 0.5, 0.4, 0.9], dtype=np.float32)
    assert average_precision(scores, np.array([0, 0, 1, 1, 1], dtype=bool)) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert math.isnan(average_precision(scores, np.zeros(5, dtype=bool)))
    assert average_precision(scores, np.ones(5, dtype=bool)) == 1
    assert math.isnan(average_precision(scores[:0], np.zeros(0, dtype=bool)))


def test_all_floats_have_their_order_and_wrong_ones_come_first_among_equals():
    scores = np.array([0.0, -1.0, np.inf, 1e-40, -np.inf, -0.0, 2.0, 2.0, -np.inf], dtype=np.float32)
    positive = np.array([1, 0, 1, 0, 1, 0, 1, 0, 0], dtype=bool)
    # inf, 2 (absent), 2 (present), 1e-40, -0 (absent), 0 (present), -1, -inf (absent), -inf (present)
    assert average_precision(scores, positive) == pytest.approx((1 / 1 + 2 / 3 + 3 / 6 + 4 / 9) / 4)


def test_sets_of_images_have_the_ap_of_their_images_alone():
    rng = np.random.default_rng(5)
    for num_images in (1, 40):
        scores = rng.integers(0, 6, num_images).astype(np.float32)  # with ties
        positive = rng.random(num_images) < 0.4
        flags = rng.integers(0, 8, num_images).astype(np.uint8)
        inside = [flags & 1 << bit != 0 for bit in range(3)]
        expected = [average_precision(scores[rows], positive[rows]) for rows in inside]
        np.testing.assert_allclose(average_precisions(scores, positive, flags, 3), expected, rtol=1e-9)


def test_ap_is_that_of_the_whole_ranking():
    rng = np.random.default_rng(6)
    for _ in range(20):
        scores = rng.choice([-np.inf, -1, -0.0, 0, 0.5, np.inf], size=50).astype(np.float32)
        positive = rng.random(50) < 0.3
        ranks = np.flatnonzero(whole_ranking(scores, positive)) + 1
        expected = np.mean(np.arange(1, len(ranks) + 1) / ranks)
        assert average_precision(scores, positive) == pytest.approx(expected)


def whole_ranking(scores, positive):
    """``positive`` by falling score, the wrong ones first among equals."""
    return positive[np.lexsort((positive, -scores))]


def test_hits_are_those_of_the_whole_ranking():
    rng = np.random.default_rng(4)
    scores = rng.choice([-np.inf, -1, -0.0, 0, 0.5, np.inf], size=(200, 9)).astype(np.float32)  # ties wherever K cuts
    positive = rng.random(scores.shape) < 0.4
    order = np.stack([whole_ranking(*row) for row in zip(scores, positive, strict=True)])
    expected = np.stack([order[:, :k].sum(axis=1) for k in (3, 1, 9)], axis=1)
    np.testing.assert_array_equal(hits_at(scores, positive, (3, 1, 9)), expected)


def test_precision_recall_f1_by_hand():
    assert precision_recall_f1(hits=3, images=2, positives=5, k=3) == pytest.approx((50, 60, 2 * 50 * 60 / 110))
    assert precision_recall_f1(0, 2, 0, 3) == (0, None, None)
    assert precision_recall_f1(0, 0, 0, 3) == (None, None, None)
