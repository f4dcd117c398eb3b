"""The comparisons that other tests use see what they should see."""

import numpy as np
import pytest
import torch
from comparisons import STEP, assert_close, assert_same_labels


def test_numbers_differ_relative_to_the_largest():
    assert_close(torch.tensor([100.0, 1e-4]), torch.tensor([100.0, 0.0]), tolerance=100 * STEP)
    with pytest.raises(AssertionError):
        assert_close(torch.tensor([1.0, 1e-4]), torch.tensor([1.0, 0.0]), tolerance=100 * STEP)
    with pytest.raises(AssertionError):
        assert_close(torch.zeros(2, 1), torch.zeros(2))


def test_labels_differ_only_where_scores_are_alike():
    scores = np.array([[[0.5, 0.9]], [[0.5 + STEP, 0.1]]])
    assert_same_labels([[0, 0]], [[1, 0]], scores, tolerance=10 * STEP)
    with pytest.raises(AssertionError):
        assert_same_labels([[1, 1]], [[1, 0]], scores, tolerance=10 * STEP)
