"""Where the groups look (Fig. 1).

Shapes: K classes, G groups (the paper's M), (h, w) the grid of patches, (H, W) the image. Images are (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.images import ImageArray
from zeroshot_d2.multilabel.pictures import FloatArray, show_photo
from zeroshot_d2.multilabel.predictor import Tags, best_labels
from zeroshot_d2.pictures.style import INK, class_text
from zeroshot_d2.pictures.texts import PlainTextFigure

MODULES = {"GPA": "group_attention", "GFP": "global_attention"}  # by what the model calls their attention


def labels_of_groups(
    scores: FloatArray, group_of_class: npt.NDArray[np.integer[Any]], split: ClassSplit, num_groups: int, top_k: int = 10
) -> list[str]:
    """For each group the best label that it speaks for: whose score is its own (Eq. 9), among the image's first labels.

    Args:
        scores: (K,).
        group_of_class: (K,), the group that gave each score.
        split: the vocabulary; unseen labels get a star.
        num_groups: G.
        top_k: how many of the image's labels count; a group with none of them gets an empty text.
    """
    labels = [""] * num_groups
    for k in reversed(best_labels(scores, min(top_k, len(scores)))):
        labels[group_of_class[k]] = class_text(split, k)
    return labels


def attention_by_module(tags: Tags) -> dict[str, FloatArray]:
    """{"GPA", "GFP": (G, h, w)} of the modules that the model has; empty for tags without attention."""
    found = tags.attention or {}
    return {module: found[key] for module, key in MODULES.items() if key in found}


def spoken_labels(tags: Tags, top_k: int = 10) -> list[str] | None:
    """:func:`labels_of_groups` of a result; None for one without attention."""
    attention = next(iter(attention_by_module(tags).values()), None)
    if attention is None or tags.attention is None:
        return None
    return labels_of_groups(tags.scores, tags.attention["group_of_class"], tags.vocabulary, len(attention), top_k)


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
    figure = PlainTextFigure(figsize=(1.7 * columns, height * rows + 0.3 * bool(title)), layout="constrained")
    figure.suptitle(title, fontsize=10, color=INK)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.axis("off")
    _draw_groups(panels[: groups + 1], image, attention, labels)
    return figure


def _draw_groups(panels: Sequence[Axes], image: ImageArray, attention: FloatArray, labels: Sequence[str] | None) -> None:
    """The image in the first of the G + 1 panels, a group in each of the others."""
    show_photo(panels[0], image)
    panels[0].set_title("image", fontsize=8, color=INK)
    height, width = image.shape[:2]
    for group, axes in enumerate(panels[1:]):
        axes.imshow(image.mean(axis=-1), cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
        overlay = axes.imshow(attention[group], cmap="inferno", alpha=0.65, extent=(0, width, height, 0), vmin=0)
        overlay.set_interpolation("bilinear" if min(height, width) > 4 * max(attention.shape[1:]) else "nearest")
        below = "" if labels is None else f"\n{labels[group] or '–'}"
        axes.set_title(f"group {group + 1}{below}", fontsize=7.5, color=INK)


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
    figure = PlainTextFigure(figsize=(1.3 * columns, 1.6 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for panels, (example, module, maps) in zip(grid, rows, strict=True):
        for axes in panels:
            axes.set(xticks=[], yticks=[], frame_on=False)
        _draw_groups(panels[: len(maps) + 1], example.image, maps, example.labels)
        panels[0].set_ylabel(module, fontsize=9, color=INK)
    return figure
