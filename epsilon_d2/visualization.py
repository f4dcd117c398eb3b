"""The paper's pictures: the first K labels of images (Fig. 4) and where the groups look (Fig. 1).

Every function takes arrays and returns a ``matplotlib.figure.Figure``, drawn without pyplot's global state; write it with
:func:`save_figure`.

Shapes: K classes, G groups (the paper's M), (h, w) the grid of patches, (H, W) the image. Images are (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zeroshot_d2.class_split import ClassSplit

ImageArray = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.floating[Any]]

_INK, _MUTED, _UNSEEN = "#22262b", "#8a929c", "#b3122b"


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 160) -> None:
    """Write a figure; the ending of ``path`` decides the format (.png, .pdf, .svg)."""
    figure.savefig(path, dpi=dpi, facecolor="white")


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


def attention_figure(image: ImageArray, attention: FloatArray, *, title: str = "") -> Figure:
    """Where each group looks, over the image.

    Args:
        image: (H, W, 3).
        attention: (G, h, w), non-negative, covering the whole image; each group has a colour scale of its own.
        title: above everything.
    """
    groups = len(attention)
    columns = min(5, groups + 1)
    rows = -(-(groups + 1) // columns)
    figure = Figure(figsize=(1.7 * columns, 1.85 * rows + 0.3 * bool(title)), layout="constrained")
    figure.suptitle(title, fontsize=10, color=_INK)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.axis("off")
    show_image(panels[0], image)
    panels[0].set_title("image", fontsize=8, color=_INK)
    height, width = image.shape[:2]
    for group, axes in enumerate(panels[1 : groups + 1]):
        axes.imshow(image.mean(axis=-1), cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
        overlay = axes.imshow(attention[group], cmap="inferno", alpha=0.65, extent=(0, width, height, 0), vmin=0)
        overlay.set_interpolation("bilinear" if min(height, width) > 4 * max(attention.shape[1:]) else "nearest")
        axes.set_title(f"group {group + 1}", fontsize=8, color=_INK)
    return figure


def show_image(axes: Axes, image: ImageArray) -> None:
    """Small images keep their pixels sharp."""
    axes.imshow(image, interpolation="nearest" if max(image.shape[:2]) < 200 else "antialiased")
