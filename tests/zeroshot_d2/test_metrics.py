"""Numbers that both tasks report."""

import pytest

from zeroshot_d2.metrics import harmonic_mean


def test_harmonic_mean():
    assert harmonic_mean(40.0, 60.0) == pytest.approx(48.0)
    assert harmonic_mean(0.0, 0.0) == 0.0 == harmonic_mean(0.0, 80.0)
    assert harmonic_mean(7.0, 7.0) == pytest.approx(7.0)
    with pytest.raises(ValueError, match="-1"):
        harmonic_mean(-1.0, 2.0)
