"""The task's pictures from arrays: the first labels of images (Epsilon's Fig. 4), mAP against a hyper-parameter (Fig. 3).

Every function takes arrays and returns a ``matplotlib.figure.Figure``; write it with
:func:`zeroshot_d2.pictures.style.save_figure`.

Shapes: K classes, (H, W) the image. Images are (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..class_split import ClassSplit
from ..images import ImageArray
from ..pictures.style import INK, UNSEEN_COLOR, class_text, show_image
from ..pictures.texts import PlainTextFigure
from .predictor import Threshold, best_labels

FloatArray = npt.NDArray[np.floating[Any]]

_PALE = "#8a929c"


@dataclass(frozen=True)
class LabelledImage:
    """An image and what was predicted for it.

    Args:
        image: (H, W, 3).
        scores: (K,), in the order of the vocabulary.
        present: indices of the right labels, or None where they are not known.
        title: above the image.
    """

    image: ImageArray
    scores: FloatArray
    present: Collection[int] | None = None
    title: str = ""


def top_labels_figure(
    examples: Sequence[LabelledImage], split: ClassSplit, *, top_k: int = 10, threshold: Threshold = None
) -> Figure:
    """Fig. 4: under each image its first labels. Unseen ones carry a star, right ones are bold, and what is known to be
    wrong is grey.

    Raises:
        ValueError: no example, or ``top_k`` beyond the vocabulary.
    """
    if not examples:
        raise ValueError("there is no image to draw")
    columns = min(4, len(examples))
    rows = -(-len(examples) // columns)
    line = 0.19  # inches
    figure = PlainTextFigure(figsize=(2.4 * columns, rows * (2.5 + line * top_k)), layout="constrained")
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[2.3, line * top_k + 0.1] * rows)
    for axes in grid.flat:
        axes.axis("off")
    for i, example in enumerate(examples):
        row, column = divmod(i, columns)
        show_photo(grid[2 * row, column], example.image)
        grid[2 * row, column].set_title(example.title, fontsize=8, color=INK)
        _write_labels(grid[2 * row + 1, column], example, split, top_k, threshold)
    return figure


def _write_labels(axes: Axes, example: LabelledImage, split: ClassSplit, top_k: int, threshold: Threshold) -> None:
    axes.set(xlim=(0, 1), ylim=(top_k, 0))
    for place, k in enumerate(best_labels(example.scores, top_k, threshold)):
        unseen = split.names[k] in split.unseen
        known, right = example.present is not None, example.present is not None and k in example.present
        axes.text(
            0.02,
            place + 0.5,
            class_text(split, k),
            fontsize=8,
            va="center",
            fontweight="bold" if right else "normal",
            color=_PALE if known and not right else UNSEEN_COLOR if unseen else INK,
        )
        axes.text(0.98, place + 0.5, f"{example.scores[k]:.2f}", fontsize=7, va="center", ha="right", color=_PALE)


def sweep_figure(points: Mapping[Any, Mapping[str, Sequence[float]]], label: str) -> Figure:
    """Fig. 3: the mean over the runs of each value of a hyper-parameter, and their sample standard deviation as a bar.

    Args:
        points: {value: {series, such as "ZSL": mAP of each run, in percent}}; values are drawn at even distances, ascending.
        label: what the values are.

    Raises:
        ValueError: there is no value.
    """
    if not points:
        raise ValueError("sweep_figure needs at least one value")
    values = sorted(points)
    figure = PlainTextFigure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.subplots()
    for series, (color, marker) in zip(points[values[0]], (("#d55e00", "s"), ("#0072b2", "o")), strict=False):
        runs = [np.asarray(points[value][series], dtype=float) for value in values]
        means = [run.mean() for run in runs]
        spreads = [run.std(ddof=1) if len(run) > 1 else 0.0 for run in runs]
        axes.errorbar(range(len(values)), means, yerr=spreads, color=color, marker=marker, capsize=3, label=series)
    counts = {len(runs) for point in points.values() for runs in point.values()}
    axes.set_xticks(range(len(values)), [f"{value:g}" if isinstance(value, float) else str(value) for value in values])
    axes.set_xlabel(label, fontsize=9, color=INK)
    axes.set_ylabel("mAP (%)", fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dde1e6", linewidth=0.8)
    if counts != {1}:
        runs_text = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
        axes.set_title(f"mean and standard deviation of {runs_text} runs", fontsize=8, color=_PALE)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def show_photo(axes: Axes, image: ImageArray) -> None:
    """Small images keep their pixels sharp."""
    show_image(axes, image, "nearest" if max(image.shape[:2]) < 200 else "antialiased")
