"""The paper's pictures: the first K labels of images (Fig. 4), where the groups look (Fig. 1), and the mAP against a
hyper-parameter (Fig. 3).

Every function takes arrays and returns a ``matplotlib.figure.Figure``, drawn without pyplot's global state; write it with
:func:`save_figure`.

Shapes: K classes, G groups (the paper's M), (h, w) the grid of patches, (H, W) the image. Images are (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.figures import save_figure as save_figure

ImageArray = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.floating[Any]]

MODULES = {"GPA": "group_attention", "GFP": "global_attention"}  # by what the model calls their attention

_INK, _MUTED, _UNSEEN = "#22262b", "#8a929c", "#b3122b"


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


def best_labels(scores: FloatArray, top_k: int, threshold: float | None = None) -> list[int]:
    """Indices of the ``top_k`` best scores at or above ``threshold``, best first; equal scores in vocabulary order.

    Raises:
        ValueError: ``top_k`` is not between 1 and the number of scores.
    """
    if not 1 <= top_k <= len(scores):
        raise ValueError(f"top_k must be between 1 and the {len(scores)} classes of the vocabulary, got {top_k}")
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [int(k) for k in order if threshold is None or scores[k] >= threshold]


def top_labels_figure(
    examples: Sequence[LabelledImage], split: ClassSplit, *, top_k: int = 10, threshold: float | None = None
) -> Figure:
    """Fig. 4: under each image its first labels. Unseen ones carry an asterisk, right ones are bold, and what is known to be
    wrong is grey.

    Raises:
        ValueError: no example, or ``top_k`` beyond the vocabulary.
    """
    if not examples:
        raise ValueError("there is no image to draw")
    columns = min(4, len(examples))
    rows = -(-len(examples) // columns)
    line = 0.19  # inches
    figure = Figure(figsize=(2.4 * columns, rows * (2.5 + line * top_k)), layout="constrained")
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[2.3, line * top_k + 0.1] * rows)
    for axes in grid.flat:
        axes.axis("off")
    for i, example in enumerate(examples):
        row, column = divmod(i, columns)
        show_image(grid[2 * row, column], example.image)
        grid[2 * row, column].set_title(example.title, fontsize=8, color=_INK)
        _write_labels(grid[2 * row + 1, column], example, split, top_k, threshold)
    return figure


def _write_labels(axes: Axes, example: LabelledImage, split: ClassSplit, top_k: int, threshold: float | None) -> None:
    axes.set(xlim=(0, 1), ylim=(top_k, 0))
    for place, k in enumerate(best_labels(example.scores, top_k, threshold)):
        unseen = split.names[k] in split.unseen
        known, right = example.present is not None, example.present is not None and k in example.present
        axes.text(
            0.02,
            place + 0.5,
            f"{split.names[k]}{' *' if unseen else ''}",
            fontsize=8,
            va="center",
            fontweight="bold" if right else "normal",
            color=_MUTED if known and not right else _UNSEEN if unseen else _INK,
        )
        axes.text(0.98, place + 0.5, f"{example.scores[k]:.2f}", fontsize=7, va="center", ha="right", color=_MUTED)


def labels_of_groups(
    scores: FloatArray, group_of_class: npt.NDArray[np.integer[Any]], split: ClassSplit, num_groups: int, top_k: int = 10
) -> list[str]:
    """For each group the best label that it speaks for: whose score is its own (Eq. 9), among the image's first labels.

    Args:
        scores: (K,).
        group_of_class: (K,), the group that gave each score.
        split: the vocabulary; unseen labels get an asterisk.
        num_groups: G.
        top_k: how many of the image's labels count; a group with none of them gets an empty text.
    """
    labels = [""] * num_groups
    for k in reversed(best_labels(scores, min(top_k, len(scores)))):
        labels[group_of_class[k]] = f"{split.names[k]}{' *' if split.names[k] in split.unseen else ''}"
    return labels


def attention_by_module(output: Mapping[str, Any]) -> dict[str, Any]:
    """{"GPA", "GFP": (G, h, w)} of the modules that the model has, out of what it gives for an image."""
    return {module: output[key] for module, key in MODULES.items() if key in output}


def spoken_labels(output: Mapping[str, Any], split: ClassSplit, top_k: int = 10) -> list[str] | None:
    """:func:`labels_of_groups` of what the model gives for an image, as arrays; None for a model without attention."""
    attention = next(iter(attention_by_module(output).values()), None)
    if attention is None:
        return None
    return labels_of_groups(output["scores"], output["group_of_class"], split, len(attention), top_k)


def attention_figure(
    image: ImageArray, attention: FloatArray, *, title: str = "", labels: Sequence[str] | None = None
) -> Figure:
    """Where each group looks, over the image.

    Args:
        image: (H, W, 3).
        attention: (G, h, w), non-negative, covering the whole image; each group has a colour scale of its own.
        title: above everything.
        labels: for each group what it speaks for, as :func:`labels_of_groups` gives it.
    """
    groups = len(attention)
    columns = min(5, groups + 1)
    rows = -(-(groups + 1) // columns)
    height = 1.85 + 0.15 * (labels is not None)
    figure = Figure(figsize=(1.7 * columns, height * rows + 0.3 * bool(title)), layout="constrained")
    figure.suptitle(title, fontsize=10, color=_INK)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.axis("off")
    _draw_groups(panels[: groups + 1], image, attention, labels)
    return figure


def _draw_groups(
    panels: Sequence[Axes], image: ImageArray, attention: FloatArray, labels: Sequence[str] | None
) -> None:
    """The image in the first of the G + 1 panels, a group in each of the others."""
    show_image(panels[0], image)
    panels[0].set_title("image", fontsize=8, color=_INK)
    height, width = image.shape[:2]
    for group, axes in enumerate(panels[1:]):
        axes.imshow(image.mean(axis=-1), cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
        overlay = axes.imshow(attention[group], cmap="inferno", alpha=0.65, extent=(0, width, height, 0), vmin=0)
        overlay.set_interpolation("bilinear" if min(height, width) > 4 * max(attention.shape[1:]) else "nearest")
        below = "" if labels is None else f"\n{labels[group] or '–'}"
        axes.set_title(f"group {group + 1}{below}", fontsize=7.5, color=_INK)


@dataclass(frozen=True)
class AttendedImage:
    """An image and where the groups of each module look.

    Args:
        image: (H, W, 3).
        attention: {"GPA" or "GFP": (G, h, w)}, as for :func:`attention_figure`.
        labels: for each group what it speaks for, as :func:`labels_of_groups` gives it.
    """

    image: ImageArray
    attention: Mapping[str, FloatArray]
    labels: Sequence[str] | None = None


def attentions_figure(examples: Sequence[AttendedImage]) -> Figure:
    """Fig. 1, the attention of Epsilon: a row per image and module, a column per group.

    Raises:
        ValueError: no example, or a model whose modules give no attention.
    """
    rows = [(example, module, maps) for example in examples for module, maps in example.attention.items()]
    if not rows:
        raise ValueError("there is no attention to draw: the model needs GPA or GFP, and at least one image")
    columns = max(len(maps) for _, _, maps in rows) + 1
    figure = Figure(figsize=(1.3 * columns, 1.6 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for panels, (example, module, maps) in zip(grid, rows, strict=True):
        for axes in panels:
            axes.set(xticks=[], yticks=[], frame_on=False)
        _draw_groups(panels[: len(maps) + 1], example.image, maps, example.labels)
        panels[0].set_ylabel(module, fontsize=9, color=_INK)
    return figure


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
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.subplots()
    for series, (color, marker) in zip(points[values[0]], (("#d55e00", "s"), ("#0072b2", "o")), strict=False):
        runs = [np.asarray(points[value][series], dtype=float) for value in values]
        means = [run.mean() for run in runs]
        spreads = [run.std(ddof=1) if len(run) > 1 else 0.0 for run in runs]
        axes.errorbar(range(len(values)), means, yerr=spreads, color=color, marker=marker, capsize=3, label=series)
    counts = {len(runs) for point in points.values() for runs in point.values()}
    axes.set_xticks(range(len(values)), [f"{value:g}" if isinstance(value, float) else str(value) for value in values])
    axes.set_xlabel(label, fontsize=9, color=_INK)
    axes.set_ylabel("mAP (%)", fontsize=9, color=_INK)
    axes.tick_params(labelsize=8, colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dde1e6", linewidth=0.8)
    if counts != {1}:
        runs_text = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
        axes.set_title(f"mean and standard deviation of {runs_text} runs", fontsize=8, color=_MUTED)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def show_image(axes: Axes, image: ImageArray) -> None:
    """Small images keep their pixels sharp."""
    axes.imshow(image, interpolation="nearest" if max(image.shape[:2]) < 200 else "antialiased")
