"""mIoU against the threshold gamma of Predictive Bias Correction (Fig. 6 left)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from zeroshot_d2.pictures.style import INK, MUTED, UNSEEN_COLOR, finish, new_figure, plain_axes


def gamma_figure(points: Sequence[Mapping[str, Any]], gamma: float | None = None) -> Figure:
    """mIoU of seen and unseen classes and hIoU against the threshold of PBC (Fig. 6 left).

    Args:
        points: {"gamma", "flagged", "mIoU_seen", "mIoU_unseen", "hIoU"} each, as the "gamma_sweep" of
            :class:`alignzeg_d2.gamma_sweep.GammaSweepEvaluator` has them.
        gamma: the threshold in use, marked by a vertical line.

    Raises:
        ValueError: there is no point, or the points are not of the GZS3 protocol.
    """
    if not points:
        raise ValueError("gamma_figure needs at least one point")
    series = {"mIoU_seen": "mIoU(S)", "mIoU_unseen": "mIoU(U)", "hIoU": "hIoU"}
    missing = [key for key in ("gamma", "flagged", *series) if any(key not in point for point in points)]
    if missing:
        raise ValueError(f"the points lack {missing}: sweep gamma on a data set of protocol GZS3")
    styles = {"mIoU_seen": ("#a7afb9", "s"), "mIoU_unseen": (UNSEEN_COLOR, "*"), "hIoU": ("#0072b2", "o")}
    gammas = [point["gamma"] for point in points]
    figure = new_figure(5.6, 3.4)
    axes = figure.subplots()
    axes.plot(gammas, [p["flagged"] for p in points], color=MUTED, linestyle=":", linewidth=1.2)
    for key, name in series.items():
        color, marker = styles[key]
        values = [np.nan if point[key] is None else point[key] for point in points]
        axes.plot(
            gammas, values, color=color, marker=marker, markersize=8 if marker == "*" else 5, linewidth=1.8, label=name
        )
    axes.lines[0].set_label("proposals taken as unseen")
    if gamma is not None:
        axes.axvline(gamma, color=INK, linestyle="--", linewidth=1)
        axes.annotate(
            f"γ = {gamma:g}",
            (gamma, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, -2),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color=INK,
        )
    ticks = [tick for tick in np.linspace(0, 1, 11) if min(gammas) - 0.1 < tick < max(gammas) + 0.05]
    axes.set_xticks(ticks, ["1\n(off)" if tick == 1 else f"{tick:.1f}" for tick in ticks])
    axes.set_xlim(min(gammas) - 0.04, max(gammas) + 0.04)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("threshold γ of Predictive Bias Correction", fontsize=9, color=INK)
    axes.set_ylabel("%", fontsize=9, color=INK)
    plain_axes(axes, grid="y")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return finish(figure)
