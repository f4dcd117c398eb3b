"""AP and P, R, F1 at K by hand; of equal scores the wrong ones come first."""

import math

import numpy as np
import pytest

from zeroshot_d2.multilabel.ranking import average_precision, hits_at, precision_recall_f1, ranked


def test_average_precision_by_hand():
    # present at ranks 1, 3 and 4: (1/1 + 2/3 + 3/4) / 3
    assert average_precision(np.array([1, 0, 1, 1, 0], dtype=bool)) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert math.isnan(average_precision(np.zeros(3, dtype=bool)))


def test_ranked_orders_all_floats_and_puts_wrong_ones_first_among_equals():
    scores = np.array([0.0, -1.0, np.inf, 1e-40, -np.inf, -0.0, 2.0, 2.0], dtype=np.float32)
    positive = np.array([1, 0, 1, 0, 1, 0, 1, 0], dtype=bool)
    flag = np.array([0, 0, 1, 1, 0, 1, 0, 1], dtype=bool)
    ours, flags = ranked(scores, positive, flag)
    # inf, 2 (absent), 2 (present), 1e-40, -0 (absent), 0 (present), -1, -inf
    assert ours.astype(int).tolist() == [1, 0, 1, 0, 0, 1, 0, 1]
    assert flags.astype(int).tolist() == [1, 1, 0, 1, 1, 0, 0, 0]


def test_hits_are_those_of_the_whole_ranking():
    rng = np.random.default_rng(4)
    scores = rng.choice([-np.inf, -1, -0.0, 0, 0.5, np.inf], size=(200, 9)).astype(np.float32)  # ties wherever K cuts
    positive = rng.random(scores.shape) < 0.4
    expected = np.stack([ranked(scores, positive)[0][:, :k].sum(axis=1) for k in (3, 1, 9)], axis=1)
    np.testing.assert_array_equal(hits_at(scores, positive, (3, 1, 9)), expected)


def test_precision_recall_f1_by_hand():
    assert precision_recall_f1(hits=3, images=2, positives=5, k=3) == pytest.approx((50, 60, 2 * 50 * 60 / 110))
    assert precision_recall_f1(0, 2, 0, 3) == (0, None, None)
    assert precision_recall_f1(0, 0, 0, 3) == (None, None, None)
