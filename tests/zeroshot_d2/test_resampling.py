"""The paired bootstrap: what is drawn, and its interval against the theory of a mean."""

import numpy as np
import pytest

from zeroshot_d2 import resampling
from zeroshot_d2.resampling import draw_weights, interval


def test_every_sample_has_as_many_images_as_the_set(monkeypatch):
    monkeypatch.setattr(resampling, "_AT_ONCE", 30)  # blocks of three
    blocks = list(draw_weights(10, 7, seed=1))
    assert [len(block) for block in blocks] == [3, 3, 1]
    weights = np.concatenate(blocks)
    assert weights.shape == (7, 10) and (weights.sum(axis=1) == 10).all() and (weights >= 0).all()


def test_the_same_seed_draws_the_same():
    first, again, other = (np.concatenate(list(draw_weights(50, 20, seed))) for seed in (3, 3, 4))
    assert (first == again).all() and (first != other).any()


def test_the_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(0).normal(1.0, 2.0, 400)
    weights = np.concatenate(list(draw_weights(400, 4000, seed=0)))
    low, high = interval(weights.astype(np.float64) @ values / 400)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_samples_that_cannot_tell_are_left_out_unless_they_are_most():
    assert interval(np.array([1.0, np.nan, 1.0, 1.0])) == (1.0, 1.0)
    assert interval(np.array([np.nan, np.nan, 1.0])) is None
