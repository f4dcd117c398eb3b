"""The curves over the threshold of PBC."""

from __future__ import annotations

import numpy as np
import pytest

from alignzeg_d2.pictures.gamma import gamma_figure


def test_gamma_curves():
    points = [
        {"gamma": 0.3, "flagged": 40.0, "mIoU_seen": 50.0, "mIoU_unseen": 30.0, "hIoU": 37.5},
        {"gamma": 1.0, "flagged": 0.0, "mIoU_seen": 52.0, "mIoU_unseen": None, "hIoU": None},
    ]
    axes = gamma_figure(points, gamma=0.3).axes[0]
    curves = {line.get_label(): line for line in axes.lines}
    assert curves["mIoU(S)"].get_ydata().tolist() == [50, 52]
    assert curves["hIoU"].get_ydata()[0] == 37.5 and np.isnan(curves["hIoU"].get_ydata()[1])
    assert list(curves["hIoU"].get_xdata()) == [0.3, 1.0]
    assert any(line.get_linestyle() == "--" and list(line.get_xdata()) == [0.3, 0.3] for line in axes.lines)


def test_gamma_curves_need_the_numbers_of_gzs3():
    with pytest.raises(ValueError, match=r"mIoU_seen.*GZS3"):
        gamma_figure([{"gamma": 0.3, "flagged": 1.0, "mIoU": 3.0}])
    with pytest.raises(ValueError, match="at least one point"):
        gamma_figure([])
