"""The task's pictures from arrays: label maps with names and comparisons (AlignZeg's Fig. 7).

Every function takes arrays and returns a ``matplotlib.figure.Figure``; write it with
:func:`zeroshot_d2.pictures.style.save_figure`.

Shapes: K classes, (H, W) the image. Images are (H, W, 3) uint8 RGB; label maps (H, W) hold vocabulary indices, and any other
value means "ignored".
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from scipy import ndimage

from ..class_split import ClassSplit
from ..images import ImageArray
from ..pictures.colors import Color
from ..pictures.style import (
    INK,
    MUTED,
    SAVED_DPI,
    UNSEEN_COLOR,
    class_text,
    finish,
    mark_unseen,
    new_figure,
    show_image,
)

LabelArray = npt.NDArray[np.integer[Any]]
FloatArray = npt.NDArray[np.floating[Any]]
Colors = Sequence[Color]

SMALLEST_WIDTH, LARGEST_SIDE = 200, 4000  # pixels of a picture of one label map
_DEFAULT_WIDTHS = (800, 1600)
_LOWEST_PANEL = 32  # pixels
_FLATTEST_PANEL, _TALLEST_PANEL = 0.1, 4.0  # times its width, in a comparison
_NAMING_SIDE = 400  # places for names are looked for at about this resolution; a photograph would take seconds
_TEXT_ON_BOX: dict[str, Any] = {"color": "white", "ha": "center", "va": "center", "linespacing": 1.0}


# ---------------------------------------------------------------------------------------------------- label maps


def blend_labels(image: ImageArray, label: LabelArray, colors: Colors, *, alpha: float = 0.6) -> ImageArray:
    """Lay the colours of a label map over an image; ignored pixels show the image alone.

    Args:
        image: (H, W, 3).
        label: (H, W).
        colors: (K) RGB, 0-255, as in ``metadata.stuff_colors``.
        alpha: weight of the colours.

    Raises:
        ValueError: image and label map differ in size, or ``alpha`` is not in [0, 1].
    """
    if image.shape[:2] != label.shape:
        raise ValueError(f"the image is {image.shape[:2]}, its label map {label.shape} (height, width)")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    labelled = (label >= 0) & (label < len(colors))
    palette = np.asarray(colors, dtype=np.float64)
    blended = image.astype(np.float64)
    blended[labelled] = (1 - alpha) * blended[labelled] + alpha * palette[label[labelled]]
    return np.rint(blended).astype(np.uint8)


def draw_labels(
    axes: Axes,
    image: ImageArray,
    label: LabelArray,
    split: ClassSplit,
    colors: Colors,
    *,
    alpha: float = 0.6,
    font_size: float = 7.0,
    min_share: float = 0.02,
    ignored_name: str = "",
) -> None:
    """Draw a label map over its image: colours, borders, and the name of every class in its regions.

    Args:
        axes: where.
        image, label, colors, alpha: as for :func:`blend_labels`.
        split: the K classes.
        font_size: of the names, in points.
        min_share: regions below this share of the image get no name.
        ignored_name: what to write into ignored regions, which then are paled as well.
    """
    blended = blend_labels(image, label, colors, alpha=alpha)
    if ignored_name:
        ignored = (label < 0) | (label >= len(split))
        blended[ignored] = paled(blended[ignored])
    show_image(axes, blended)
    axes.add_collection(
        LineCollection(list(borders(label)), colors="white", linewidths=0.9, alpha=0.9, capstyle="projecting"),
        autolim=False,
    )
    regions = np.where((label >= 0) & (label < len(split)), label, len(split))
    for k, row, column in _name_positions(regions, len(split) + bool(ignored_name), min_share):
        name = ignored_name if k == len(split) else class_text(split, k)
        _draw_name(axes, name, row, column, font_size, unseen=k < len(split) and split.names[k] in split.unseen)


def paled(pixels: npt.NDArray[Any]) -> ImageArray:
    """(..., 3) -> the same in faint greys."""
    return np.rint(0.3 * pixels.mean(axis=-1, keepdims=True) + 0.7 * np.full(3, 255)).astype(np.uint8)


def borders(label: LabelArray) -> FloatArray:
    """(S, 2, 2) line segments ((x, y), (x, y)) between pixels of different classes."""
    segments = []
    for pairs, ends in (
        (label[:, 1:] != label[:, :-1], [(0.5, -0.5), (0.5, 0.5)]),  # to the right of a pixel
        (label[1:] != label[:-1], [(-0.5, 0.5), (0.5, 0.5)]),  # below it
    ):
        positions = np.argwhere(pairs)[:, ::-1]  # (x, y)
        segments.append(positions[:, None, :] + np.array(ends))
    return np.concatenate(segments)


def _name_positions(label: LabelArray, num_classes: int, min_share: float) -> list[tuple[int, float, float]]:
    """(class, row, column) where names have most room: one per class, and one per further large region of it."""
    positions = []
    step = max(1, max(label.shape) // _NAMING_SIDE)
    label = label[::step, ::step]
    for k in np.unique(label):
        if not 0 <= k < num_classes:
            continue
        regions, count = ndimage.label(label == k)
        areas = ndimage.sum_labels(np.ones(label.shape), regions, np.arange(1, count + 1)) / label.size
        for region in np.argsort(-areas):
            least = min_share if region == areas.argmax() else max(min_share, 0.1)
            if areas[region] < least:
                break
            inside = np.pad(regions == region + 1, 1)
            # Names are wide: clearance to the left and right counts half.
            clearance = ndimage.distance_transform_edt(inside, sampling=(1.0, 0.5))
            row, column = np.unravel_index(clearance.argmax(), clearance.shape)
            positions.append((int(k), step * (float(row) - 1), step * (float(column) - 1)))
    return positions


def _draw_name(axes: Axes, name: str, row: float, column: float, font_size: float, *, unseen: bool) -> Text:
    return axes.text(
        column,
        row,
        "\n".join(textwrap.wrap(name, width=14, break_long_words=False)),
        fontsize=font_size,
        fontweight="bold" if unseen else "normal",
        bbox={
            "boxstyle": "round,pad=0.25,rounding_size=0.3",
            "facecolor": UNSEEN_COLOR if unseen else "black",
            "alpha": 0.85 if unseen else 0.55,
            "linewidth": 0,
        },
        **_TEXT_ON_BOX,
    )


def _add_legend(figure: Figure, present: Iterable[int], split: ClassSplit, colors: Colors, *, columns: int) -> None:
    """Patches of the classes that occur, seen ones first, below the panels."""
    order = sorted(set(present), key=lambda k: (split.names[k] in split.unseen, k))
    patches = [Patch(facecolor=np.divide(colors[k], 255.0), edgecolor="none", label=class_text(split, k)) for k in order]
    if not patches:
        return
    legend = figure.legend(
        handles=patches,
        loc="outside lower center",
        ncols=min(columns, len(patches)),
        frameon=False,
        fontsize=8,
        handlelength=1.0,
        handleheight=1.0,
        columnspacing=1.4,
    )
    for k, text in zip(order, legend.get_texts(), strict=True):
        if split.names[k] in split.unseen:
            mark_unseen(text)


def _classes_of(label: LabelArray, num_classes: int) -> set[int]:
    return {int(k) for k in np.unique(label) if 0 <= k < num_classes}


def check_width(width: int) -> None:
    """Raise ValueError unless ``width`` can be that of a picture of one label map, in pixels."""
    if not SMALLEST_WIDTH <= width <= LARGEST_SIDE:
        raise ValueError(f"the width of an overlay must be {SMALLEST_WIDTH} to {LARGEST_SIDE} pixels, got {width}")


def label_figure(
    image: ImageArray,
    label: LabelArray,
    split: ClassSplit,
    colors: Colors,
    *,
    title: str = "",
    alpha: float = 0.6,
    ignored_name: str = "",
    width: int | None = None,
) -> Figure:
    """One label map over its image, with names and a legend.

    Args:
        image, label, split, colors, alpha, ignored_name: as for :func:`draw_labels`.
        title: above it.
        width: of the picture when saved, in pixels, 200 to 4000; None: that of the image, within 800 and 1600. The image in
            it is no higher than 4000: of a tall one, the picture has wide margins.

    Raises:
        ValueError: the width is not within these.
    """
    if width is None:
        width = min(max(image.shape[1], _DEFAULT_WIDTHS[0]), _DEFAULT_WIDTHS[1])
    check_width(width)
    classes = _classes_of(label, len(split))
    height = min(max(width * image.shape[0] / image.shape[1], _LOWEST_PANEL), LARGEST_SIDE)
    inches = width / SAVED_DPI
    columns = max(1, round(inches / 1.7))
    figure = new_figure(inches, height / SAVED_DPI + 0.1 + 0.3 * bool(title) + 0.22 * -(-len(classes) // columns))
    axes = figure.subplots()
    draw_labels(axes, image, label, split, colors, alpha=alpha, font_size=9, ignored_name=ignored_name)
    axes.set_title(title, fontsize=10, color=INK)
    _add_legend(figure, classes, split, colors, columns=columns)
    return finish(figure)


@dataclass(frozen=True)
class Comparison:
    """One row of Fig. 7.

    Args:
        image: (H, W, 3).
        truth: (H, W), the ground truth, or None where there is none.
        predictions: label maps (H, W) by the title of their column, such as {"Baseline": ..., "Ours": ...}.
    """

    image: ImageArray
    truth: LabelArray | None
    predictions: Mapping[str, LabelArray]


def comparison_figure(
    rows: Sequence[Comparison],
    split: ClassSplit,
    colors: Colors,
    *,
    panel: float = 2.5,
    alpha: float = 0.7,
    ignored_name: str = "",
) -> Figure:
    """Image | ground truth | predictions, a row per image (Fig. 7).

    Under a prediction stands the share of labelled pixels that it has right.

    Args:
        rows: with the same columns each.
        split: the K classes.
        colors: (K) RGB, 0-255.
        panel: width of a panel in inches.
        alpha: weight of the colours.
        ignored_name: as for :func:`draw_labels`.

    Raises:
        ValueError: there is no row, or the rows differ in their columns.
    """
    if not rows:
        raise ValueError("comparison_figure needs at least one row")
    titles = list(rows[0].predictions)
    has_truth = rows[0].truth is not None
    if any(list(row.predictions) != titles or (row.truth is not None) != has_truth for row in rows):
        raise ValueError("all rows of a comparison must have the same columns")
    headings = ["Image", *(["Ground truth"] if has_truth else []), *titles]
    present = {
        k
        for row in rows
        for label in [*row.predictions.values(), *([] if row.truth is None else [row.truth])]
        for k in _classes_of(label, len(split))
    }
    heights = [np.clip(row.image.shape[0] / row.image.shape[1], _FLATTEST_PANEL, _TALLEST_PANEL) for row in rows]
    legend_columns = max(1, round(panel * len(headings) / 1.9))
    legend_height = 0.19 * -(-len(present) // legend_columns) + 0.1
    row_heights = [(panel - 0.1) * height + (0.2 if has_truth else 0.04) for height in heights]
    figure = new_figure(panel * len(headings), sum(row_heights) + 0.25 + legend_height)
    grid = figure.subplots(len(rows), len(headings), squeeze=False, height_ratios=heights)
    for row, axes_row in zip(rows, grid, strict=True):
        show_image(axes_row[0], row.image)
        panels = [*([] if row.truth is None else [row.truth]), *row.predictions.values()]
        for label, axes in zip(panels, axes_row[1:], strict=True):
            draw_labels(axes, row.image, label, split, colors, alpha=alpha, font_size=2.8 * panel, ignored_name=ignored_name)
        if row.truth is not None:
            labelled = (row.truth >= 0) & (row.truth < len(split))
            for label, axes in zip(row.predictions.values(), axes_row[2:], strict=True):
                right = 100 * float((label == row.truth)[labelled].mean()) if labelled.any() else float("nan")
                axes.set_xlabel(f"{right:.0f} % of labelled pixels right", fontsize=8, color=MUTED, labelpad=2)
    for heading, axes in zip(headings, grid[0], strict=True):
        axes.set_title(heading, fontsize=10, color=INK)
    _add_legend(figure, present, split, colors, columns=legend_columns)
    return finish(figure)
