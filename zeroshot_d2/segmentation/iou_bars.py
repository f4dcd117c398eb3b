"""IoU of each class as bars (AlignZeg's Fig. 5), from the numbers of ``results.json``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..pictures.style import INK, SERIES_COLORS, finish, mark_unseen, new_figure, plain_axes, starred

FloatArray = npt.NDArray[np.floating[Any]]

_CLASSES_PER_COLUMN = 40


def unseen_iou_figure(ious: Mapping[str, Mapping[str, float | None]], unseen: Sequence[str]) -> Figure:
    """IoU of each unseen class, with the mean as a dashed line (Fig. 5); arguments as for :func:`class_iou_figure`."""
    return class_iou_figure(ious, unseen, unseen)


def class_iou_figure(
    ious: Mapping[str, Mapping[str, float | None]], names: Sequence[str], unseen: Collection[str]
) -> Figure:
    """IoU of each class, with the mean over all that are shown as a dashed line (Fig. 5).

    Args:
        ious: {model: {class: IoU in percent, None where the class does not occur}}, as in the "IoU" of the results.
        names: the classes to show, in this order.
        unseen: which of them are unseen.

    Raises:
        ValueError: there is nothing to show, or a model has no entry for a class.
    """
    if not ious or not names:
        raise ValueError(f"class_iou_figure needs models and classes, got {list(ious)} and {list(names)}")
    for model, values in ious.items():
        missing = [name for name in names if name not in values]
        if missing:
            raise ValueError(f"the results of {model!r} have no IoU of {missing}")
    num_columns = -(-len(names) // _CLASSES_PER_COLUMN)
    rows = -(-len(names) // num_columns)
    figure = new_figure(6.4 if num_columns == 1 else 4.2 * num_columns, 0.9 + rows * (0.16 + 0.16 * len(ious)))
    panels = figure.subplots(1, num_columns, squeeze=False)[0]
    for i, (model, values) in enumerate(ious.items()):
        color = SERIES_COLORS[(i if len(ious) > 1 else 1) % len(SERIES_COLORS)]
        heights = np.array([np.nan if values[name] is None else values[name] for name in names], dtype=float)
        mean = float(np.nanmean(heights)) if np.isfinite(heights).any() else float("nan")
        bar = 0.8 / len(ious)
        offset = (i - (len(ious) - 1) / 2) * bar
        for column, axes in enumerate(panels):
            _draw_iou_bars(axes, heights[column * rows : (column + 1) * rows], offset, bar, color)
            label = f"{model} (mean {mean:.1f})" if column == 0 else None
            axes.axvline(mean, color=color, linestyle="--", linewidth=1.4, label=label)
    limit = max(axes.get_xlim()[1] for axes in panels)
    for column, axes in enumerate(panels):
        _label_iou_rows(axes, names[column * rows : (column + 1) * rows], unseen)
        axes.set_xlim(0, limit)
        axes.set_ylim(rows - 0.5, -0.5)
    figure.legend(loc="outside upper center", ncols=len(ious), frameon=False, fontsize=8)
    return finish(figure)


def _draw_iou_bars(axes: Axes, heights: FloatArray, offset: float, bar: float, color: str) -> None:
    """One model's bars with their numbers."""
    drawn = axes.barh(np.arange(len(heights)) + offset, np.nan_to_num(heights), height=0.92 * bar, color=color)
    for patch, height in zip(drawn, heights, strict=True):
        axes.annotate(
            "not in the images" if np.isnan(height) else f"{height:.1f}",
            (patch.get_width(), patch.get_y() + patch.get_height() / 2),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},  # ahead of the dashed means
        )


def _label_iou_rows(axes: Axes, names: Sequence[str], unseen: Collection[str]) -> None:
    """Names of the rows, unseen ones starred, bold and red."""
    axes.set_yticks(np.arange(len(names)), [starred(name, name in unseen) for name in names])
    axes.set_xlabel("IoU (%)", fontsize=9, color=INK)
    plain_axes(axes, grid="x")
    axes.tick_params(axis="y", length=0)
    for text, name in zip(axes.get_yticklabels(), names, strict=True):
        if name in unseen:
            mark_unseen(text)
