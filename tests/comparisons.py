"""Float32 results that were computed in another order: in other batches, strips, threads, vocabularies or runtimes.

How a sum is grouped depends on the shapes, the number of threads and the CPU, so such results are never compared bit by bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

STEP = torch.finfo(torch.float32).eps
"""The relative distance of neighbouring float32 numbers."""

NETWORK = 2000 * STEP  # 2.4e-4
"""For what a whole network gives: some twenty roundings in a row, multiplied by CLIP's logit scale of up to 100."""


def assert_close(given: Any, expected: Any, tolerance: float = NETWORK) -> None:
    """No element of ``given`` is off by more than ``tolerance`` times the largest of ``expected``."""
    given, expected = (torch.as_tensor(values).detach().float() for values in (given, expected))
    largest = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(given, expected, rtol=0, atol=tolerance * largest)


def assert_same_labels(given: Any, expected: Any, scores: Any, tolerance: float = NETWORK) -> None:
    """Two label maps are the same, but for pixels where both labels are as good.

    Args:
        given, expected: (H, W), indices of classes.
        scores: (K, H, W), the scores that ``expected`` is the best of.
        tolerance: how far two scores may lie apart to count as equal, relative to the largest of all.
    """
    given, expected, scores = (np.asarray(values) for values in (given, expected, scores))
    assert given.shape == expected.shape == scores.shape[1:]
    by_given, by_expected = (np.take_along_axis(scores, labels[None], axis=0)[0] for labels in (given, expected))
    assert np.abs(by_expected - by_given).max(initial=0) <= tolerance * np.abs(scores).max()
