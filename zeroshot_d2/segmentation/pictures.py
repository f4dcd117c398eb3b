"""The paper's figures from arrays: label maps with names, comparisons (Fig. 7), IoU per class (Fig. 5), the threshold gamma
(Fig. 6 left), t-SNE of proposal features (Fig. 8, suppl. Fig. 4) and the proposals that PBC changed (suppl. Fig. 3).

Every function takes arrays and returns a ``matplotlib.figure.Figure``, drawn without pyplot's global state; write it with
:func:`save_figure`. Unseen classes carry a star and are printed bold on red.

Shapes: Q proposals, K classes, (h, w) the masks' grid, (H, W) the image. Images are (H, W, 3) uint8 RGB; label maps (H, W)
hold vocabulary indices, and any other value means "ignored".
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from scipy import ndimage

from alignzeg_d2.postprocessing import class_probabilities
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.figures import save_figure as save_figure

ImageArray = npt.NDArray[np.uint8]
LabelArray = npt.NDArray[np.integer[Any]]
FloatArray = npt.NDArray[np.floating[Any]]
Colors = Sequence[tuple[int, int, int]]

UNSEEN_COLOR = "#b3122b"
STAR = "★"
_NAMING_SIDE = 400  # places for names are looked for at about this resolution; a photograph would take seconds
_INK, _MUTED, _GRID = "#22262b", "#6b7480", "#dde1e6"
_CLASSES_PER_COLUMN = 40  # of the bars of Fig. 5
# Okabe and Ito's palette, which colour-blind readers can tell apart; grey first, for the baseline.
_SERIES_COLORS = ("#a7afb9", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
_TEXT_ON_BOX: dict[str, Any] = {"color": "white", "ha": "center", "va": "center", "linespacing": 1.0}


def class_text(split: ClassSplit, index: int) -> str:
    """The name of a class, starred if it is unseen."""
    name = split.names[index]
    return f"{STAR} {name}" if name in split.unseen else name


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
        blended[ignored] = _paled(blended[ignored])
    show_image(axes, blended)
    axes.add_collection(
        LineCollection(list(_borders(label)), colors="white", linewidths=0.9, alpha=0.9, capstyle="projecting"),
        autolim=False,
    )
    regions = np.where((label >= 0) & (label < len(split)), label, len(split))
    for k, row, column in _name_positions(regions, len(split) + bool(ignored_name), min_share):
        name = ignored_name if k == len(split) else class_text(split, k)
        _draw_name(axes, name, row, column, font_size, unseen=k < len(split) and split.names[k] in split.unseen)


def show_image(axes: Axes, image: ImageArray) -> None:
    """Show an image pixel by pixel, without axes."""
    axes.imshow(image, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _paled(pixels: npt.NDArray[Any]) -> ImageArray:
    """(..., 3) -> the same in faint greys."""
    return np.rint(0.3 * pixels.mean(axis=-1, keepdims=True) + 0.7 * np.full(3, 255)).astype(np.uint8)


def _borders(label: LabelArray) -> FloatArray:
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
            text.set(color=UNSEEN_COLOR, fontweight="bold")


def _classes_of(label: LabelArray, num_classes: int) -> set[int]:
    return {int(k) for k in np.unique(label) if 0 <= k < num_classes}


def _new_figure(width: float, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.03, wspace=0.0, hspace=0.0)
    return Figure(figsize=(width, height), layout=layout)


def _finish(figure: Figure) -> Figure:
    """Settle the layout, then move the names that stick out of their panel back into it."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        frame = axes.get_window_extent(renderer)
        for text in axes.texts:
            patch = text.get_bbox_patch()
            if patch is None:
                continue
            box = patch.get_window_extent(renderer)
            dx = max(frame.x0 - box.x0, 0.0) - max(box.x1 - frame.x1, 0.0)
            dy = max(frame.y0 - box.y0, 0.0) - max(box.y1 - frame.y1, 0.0)
            x, y = axes.transData.transform(text.get_position())
            x, y = axes.transData.inverted().transform((x + dx, y + dy))
            text.set_position((x, y))
    return figure


def label_figure(
    image: ImageArray,
    label: LabelArray,
    split: ClassSplit,
    colors: Colors,
    *,
    title: str = "",
    alpha: float = 0.6,
    ignored_name: str = "",
) -> Figure:
    """One label map over its image, with names and a legend; arguments as for :func:`draw_labels`."""
    width = 5.0
    classes = _classes_of(label, len(split))
    figure = _new_figure(
        width, width * image.shape[0] / image.shape[1] + 0.1 + 0.3 * bool(title) + 0.22 * -(-len(classes) // 3)
    )
    axes = figure.subplots()
    draw_labels(axes, image, label, split, colors, alpha=alpha, font_size=9, ignored_name=ignored_name)
    axes.set_title(title, fontsize=10, color=_INK)
    _add_legend(figure, classes, split, colors, columns=3)
    return _finish(figure)


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
    heights = [row.image.shape[0] / row.image.shape[1] for row in rows]
    legend_columns = max(1, round(panel * len(headings) / 1.9))
    legend_height = 0.19 * -(-len(present) // legend_columns) + 0.1
    row_heights = [(panel - 0.1) * height + (0.2 if has_truth else 0.04) for height in heights]
    figure = _new_figure(panel * len(headings), sum(row_heights) + 0.25 + legend_height)
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
                axes.set_xlabel(f"{right:.0f} % of labelled pixels right", fontsize=8, color=_MUTED, labelpad=2)
    for heading, axes in zip(headings, grid[0], strict=True):
        axes.set_title(heading, fontsize=10, color=_INK)
    _add_legend(figure, present, split, colors, columns=legend_columns)
    return _finish(figure)


# ------------------------------------------------------------------------------------------------------- numbers


def _plain_axes(axes: Axes, *, grid: Literal["x", "y"]) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_MUTED)
    axes.tick_params(colors=_INK, labelsize=8)
    axes.grid(axis=grid, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)


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
    figure = _new_figure(6.4 if num_columns == 1 else 4.2 * num_columns, 0.9 + rows * (0.16 + 0.16 * len(ious)))
    panels = figure.subplots(1, num_columns, squeeze=False)[0]
    for i, (model, values) in enumerate(ious.items()):
        color = _SERIES_COLORS[(i if len(ious) > 1 else 1) % len(_SERIES_COLORS)]
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
    return _finish(figure)


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
            color=_INK,
            path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
        )


def _label_iou_rows(axes: Axes, names: Sequence[str], unseen: Collection[str]) -> None:
    """Names of the rows, unseen ones starred, bold and red."""
    axes.set_yticks(np.arange(len(names)), [f"{STAR} {name}" if name in unseen else name for name in names])
    axes.set_xlabel("IoU (%)", fontsize=9, color=_INK)
    _plain_axes(axes, grid="x")
    axes.tick_params(axis="y", length=0)
    for text, name in zip(axes.get_yticklabels(), names, strict=True):
        if name in unseen:
            text.set(color=UNSEEN_COLOR, fontweight="bold")


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
    figure = _new_figure(5.6, 3.4)
    axes = figure.subplots()
    axes.plot(gammas, [p["flagged"] for p in points], color=_MUTED, linestyle=":", linewidth=1.2)
    for key, name in series.items():
        color, marker = styles[key]
        values = [np.nan if point[key] is None else point[key] for point in points]
        axes.plot(
            gammas, values, color=color, marker=marker, markersize=8 if marker == "*" else 5, linewidth=1.8, label=name
        )
    axes.lines[0].set_label("proposals taken as unseen")
    if gamma is not None:
        axes.axvline(gamma, color=_INK, linestyle="--", linewidth=1)
        axes.annotate(
            f"$\\gamma$ = {gamma:g}",
            (gamma, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, -2),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color=_INK,
        )
    ticks = [tick for tick in np.linspace(0, 1, 11) if min(gammas) - 0.1 < tick < max(gammas) + 0.05]
    axes.set_xticks(ticks, ["1\n(off)" if tick == 1 else f"{tick:.1f}" for tick in ticks])
    axes.set_xlim(min(gammas) - 0.04, max(gammas) + 0.04)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("threshold $\\gamma$ of Predictive Bias Correction", fontsize=9, color=_INK)
    axes.set_ylabel("%", fontsize=9, color=_INK)
    _plain_axes(axes, grid="y")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return _finish(figure)


# ----------------------------------------------------------------------------------------------- proposal features

# Paul Tol's light palette for seen classes and his bright one for unseen ones; the markers tell them apart as well.
_SEEN_COLORS = ("#77aadd", "#ee8866", "#eedd88", "#ffaabb", "#44bb99", "#bbcc33", "#99ddff")
_UNSEEN_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#000000")
MAX_CLASSES_PER_GROUP = len(_SEEN_COLORS)


@dataclass(frozen=True, eq=False)
class EmbeddedFeatures:
    """Proposal features of one model on the plane of t-SNE; n proposals.

    Args:
        positions: (n, 2).
        classes: (n,), the vocabulary index of the class that each proposal covers.
        prototypes: (2,) by vocabulary index, the text prototypes where they are wanted.
        note: below the panel.
    """

    positions: FloatArray
    classes: LabelArray
    prototypes: Mapping[int, FloatArray] = field(default_factory=dict)
    note: str = ""


def tsne_figure(panels: Mapping[str, EmbeddedFeatures], split: ClassSplit) -> Figure:
    """A panel per model: proposal features by class, circles for seen classes and stars for unseen ones (Fig. 8).

    Args:
        panels: by the name of the model, with the same classes each.
        split: the K classes.

    Raises:
        ValueError: there is no panel, or more classes than colours.
    """
    if not panels:
        raise ValueError("tsne_figure needs at least one panel")
    present = sorted({int(k) for panel in panels.values() for k in panel.classes})
    colors: dict[int, str] = {}
    for group, palette in ((split.seen_indices, _SEEN_COLORS), (split.unseen_indices, _UNSEEN_COLORS)):
        members = [k for k in present if k in group]
        if len(members) > len(palette):
            raise ValueError(f"there are colours for {len(palette)} seen and as many unseen classes, got {len(members)}")
        colors |= dict(zip(members, palette, strict=False))
    figure = _new_figure(max(4.4, 4.0 * len(panels)), 4.9)
    for axes, (name, panel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for k, color in colors.items():
            _scatter_class(axes, panel.positions[panel.classes == k], color, unseen=split.names[k] in split.unseen)
        for k, (x, y) in panel.prototypes.items():
            axes.scatter(x, y, s=90, marker="X", color=colors[k], edgecolors="black", linewidths=1.3, zorder=4)
        axes.set_title(name, fontsize=10, color=_INK)
        axes.set_xlabel(panel.note, fontsize=8, color=_MUTED)
        axes.set(xticks=[], yticks=[])  # distances have no unit, and only near ones have a meaning
        for spine in axes.spines.values():
            spine.set_color(_GRID)
    _add_tsne_legend(figure, colors, split, any(panel.prototypes for panel in panels.values()))
    return _finish(figure)


def _scatter_class(axes: Axes, positions: FloatArray, color: str, *, unseen: bool) -> None:
    x, y = positions.T
    if unseen:
        axes.scatter(x, y, s=42, marker="*", color=color, edgecolors="black", linewidths=0.5, zorder=3)
    else:
        axes.scatter(x, y, s=16, marker="o", color=color, edgecolors="none", zorder=2)


def _add_tsne_legend(figure: Figure, colors: Mapping[int, str], split: ClassSplit, with_prototypes: bool) -> None:
    order = sorted(colors, key=lambda k: (split.names[k] in split.unseen, k))
    unseen = [split.names[k] in split.unseen for k in order]
    handles = []
    for k, is_unseen in zip(order, unseen, strict=True):
        handle = Line2D([], [], linestyle="none", color=colors[k], label=split.names[k] + is_unseen * " (unseen)")
        handle.set(marker="*" if is_unseen else "o", markersize=10 if is_unseen else 6)
        handle.set(markeredgecolor="black" if is_unseen else "none", markeredgewidth=0.5)
        handles.append(handle)
    if with_prototypes:
        handles.append(Line2D([], [], linestyle="none", marker="X", markersize=9, color="white", markeredgecolor="black"))
        handles[-1].set_label("text prototype")
    columns = max(2, round(figure.get_figwidth() / 1.9))
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    for text, is_unseen in zip(legend.get_texts(), unseen, strict=False):
        if is_unseen:
            text.set(color=UNSEEN_COLOR, fontweight="bold")


# ----------------------------------------------------------------------------------- what the correction changed


@dataclass(frozen=True, eq=False)
class ChangedProposal:
    """A proposal to which PBC gave another class.

    Args:
        index: its number among the Q proposals.
        before, after: vocabulary indices of its best class without and with the correction.
        indicator: I, the class indicator, in [0, 1].
        mask: (h, w), probabilities.
        probabilities_before, probabilities_after: (K,), the classes' probabilities.
        weight: how much of the image it claims without the correction: mean of the mask times the probability of any
            class at all.
    """

    index: int
    before: int
    after: int
    indicator: float
    mask: FloatArray
    probabilities_before: FloatArray
    probabilities_after: FloatArray
    weight: float


def changed_proposals(proposals: Mapping[str, Any], *, background_in_softmax: bool = True) -> list[ChangedProposal]:
    """Those of an image's proposals whose best class PBC changed, heaviest first.

    Args:
        proposals: "mask_logits" (Q, h, w), "class_logits" and "corrected_logits" (Q, K + 1), "class_indicator" (Q,), as
            the model returns them with MODEL.ALIGNZEG.TEST.RETURN_PROPOSALS.
        background_in_softmax: as in MODEL.ALIGNZEG.TEST.

    Raises:
        ValueError: the proposals come from a model without a class indicator.
    """
    if proposals.get("class_indicator") is None:
        raise ValueError("the proposals have no class indicator: train with MODEL.ALIGNZEG.PBC.ENABLED True")
    before, after = (
        class_probabilities(proposals[key], background_in_softmax=background_in_softmax).cpu().numpy()
        for key in ("class_logits", "corrected_logits")
    )
    masks = proposals["mask_logits"].sigmoid().cpu().numpy()
    indicator = proposals["class_indicator"].cpu().numpy()
    changed = [
        ChangedProposal(
            index=int(q),
            before=int(before[q].argmax()),
            after=int(after[q].argmax()),
            indicator=float(indicator[q]),
            mask=masks[q],
            probabilities_before=before[q],
            probabilities_after=after[q],
            weight=float(masks[q].mean() * before[q].sum()),
        )
        for q in np.flatnonzero(before.argmax(axis=1) != after.argmax(axis=1))
    ]
    return sorted(changed, key=lambda proposal: (-proposal.weight, proposal.index))


def class_under_mask(mask: FloatArray, truth: LabelArray, num_classes: int) -> int | None:
    """The ground-truth class with the largest soft overlap, as the oracle has it; None without a labelled pixel.

    Args:
        mask: (h, w), probabilities; brought to the size of ``truth``.
        truth: (H, W), vocabulary indices, other values ignored.
        num_classes: K.
    """
    labelled = (truth >= 0) & (truth < num_classes)
    if not labelled.any():
        return None
    overlap = np.bincount(truth[labelled], weights=_zoom(mask, truth.shape)[labelled], minlength=num_classes)
    return int(overlap.argmax())


def _zoom(mask: FloatArray, size: tuple[int, ...]) -> FloatArray:
    """Bilinear, cell borders aligned: (h, w) -> ``size``."""
    factors = (size[0] / mask.shape[0], size[1] / mask.shape[1])
    return np.clip(ndimage.zoom(mask, factors, order=1, grid_mode=True, mode="nearest"), 0, 1)


@dataclass(frozen=True, eq=False)
class Correction:
    """A changed proposal with its image (H, W, 3), and, if known, the ground-truth class that it mostly covers."""

    image: ImageArray
    proposal: ChangedProposal
    truth: int | None = None


def corrections_figure(corrections: Sequence[Correction], split: ClassSplit, *, gamma: float, top: int = 4) -> Figure:
    """Proposals that PBC changed, a row each: mask and class indicator, best classes before and after (suppl. Fig. 3).

    Args:
        corrections: the rows.
        split: the K classes.
        gamma: the threshold, for the titles.
        top: number of classes shown.

    Raises:
        ValueError: there is no row.
    """
    if not corrections:
        raise ValueError("corrections_figure needs at least one changed proposal")
    figure = _new_figure(8.2, 1.85 * len(corrections) + 0.2)
    grid = figure.subplots(len(corrections), 3, squeeze=False, width_ratios=(1, 1.45, 1.45))
    for row, (correction, axes_row) in enumerate(zip(corrections, grid, strict=True)):
        proposal = correction.proposal
        _draw_mask(axes_row[0], correction.image, proposal.mask)
        axes_row[0].set_title(f"$I$ = {proposal.indicator:.2f} > $\\gamma$ = {gamma:g}", fontsize=8, color=_INK)
        if correction.truth is not None:
            unseen = split.names[correction.truth] in split.unseen
            axes_row[0].set_xlabel(
                f"truth: {class_text(split, correction.truth)}",
                fontsize=6.5,
                color=UNSEEN_COLOR if unseen else _INK,
                fontweight="bold" if unseen else "normal",
                labelpad=3,
            )
        sides = (proposal.probabilities_before, proposal.probabilities_after)
        limit = 1.25 * max(float(side.max()) for side in sides)
        for axes, probabilities in zip(axes_row[1:], sides, strict=True):
            _draw_probabilities(axes, probabilities, split, correction.truth, top=top, limit=limit)
        axes_row[2].annotate(
            "",
            xy=(-0.62, 0.5),
            xytext=(-0.74, 0.5),
            xycoords="axes fraction",
            arrowprops={"arrowstyle": "-|>", "color": _INK, "linewidth": 1.4},
        ).set_in_layout(False)
        if row == 0:
            axes_row[1].set_title("before PBC", fontsize=9, color=_INK)
            axes_row[2].set_title("after PBC", fontsize=9, color=_INK)
    return _finish(figure)


def _draw_mask(axes: Axes, image: ImageArray, mask: FloatArray) -> None:
    """The image, grey and pale outside of the mask, whose border is drawn."""
    zoomed = _zoom(mask, image.shape[:2])
    inside = zoomed[..., None]
    show_image(axes, np.rint(inside * image + (1 - inside) * _paled(image)).astype(np.uint8))
    axes.add_collection(
        LineCollection(
            list(_borders((zoomed > 0.5).astype(int))), colors=UNSEEN_COLOR, linewidths=1.2, capstyle="projecting"
        ),
        autolim=False,
    )


def _draw_probabilities(
    axes: Axes, probabilities: FloatArray, split: ClassSplit, truth: int | None, *, top: int, limit: float
) -> None:
    """Bars of the ``top`` best classes; the first is bold, a tick marks the true one."""
    best = np.argsort(-probabilities, kind="stable")[:top]
    unseen = [split.names[k] in split.unseen for k in best]
    drawn = axes.barh(
        np.arange(len(best)), probabilities[best], height=0.72, color=[UNSEEN_COLOR if u else "#a7afb9" for u in unseen]
    )
    for patch, k in zip(drawn, best, strict=True):
        axes.annotate(
            f"{probabilities[k]:.2f}" + (" ✓" if k == truth else ""),
            (patch.get_width(), patch.get_y() + patch.get_height() / 2),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=_INK,
        )
    axes.set_yticks(np.arange(len(best)), [class_text(split, k) for k in best])
    axes.invert_yaxis()
    axes.set_xlim(0, limit)
    axes.set_xticks([])
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(_MUTED)
    axes.tick_params(axis="y", length=0, labelsize=8)
    for rank, (text, is_unseen) in enumerate(zip(axes.get_yticklabels(), unseen, strict=True)):
        text.set(color=UNSEEN_COLOR if is_unseen else _INK, fontweight="bold" if rank == 0 else "normal")
