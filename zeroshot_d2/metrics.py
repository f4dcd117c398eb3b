"""Numbers that both tasks report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b), AlignZeg's hIoU of mIoU(S) and mIoU(U) (Sec. 4.1); 0 when both are 0, in the unit of the
    arguments.

    Raises:
        ValueError: a number is negative.
    """
    if a < 0 or b < 0:
        raise ValueError(f"the harmonic mean is for numbers >= 0, got {a} and {b}")
    return 2.0 * a * b / (a + b) if a + b > 0 else 0.0


def numbers_only(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The plain numbers among ``metrics``: no texts, no None, no tables of classes."""
    return {
        key: float(value)
        for key, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
