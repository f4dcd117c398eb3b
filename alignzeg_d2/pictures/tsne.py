"""Proposal features on a plane (Fig. 8 and suppl. Fig. 4).

Shapes: n proposals, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.pictures.style import GRID, INK, MUTED, finish, mark_unseen, new_figure
from zeroshot_d2.segmentation.pictures import FloatArray, LabelArray

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
    figure = new_figure(max(4.4, 4.0 * len(panels)), 4.9)
    for axes, (name, panel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for k, color in colors.items():
            _scatter_class(axes, panel.positions[panel.classes == k], color, unseen=split.names[k] in split.unseen)
        for k, (x, y) in panel.prototypes.items():
            axes.scatter(x, y, s=90, marker="X", color=colors[k], edgecolors="black", linewidths=1.3, zorder=4)
        axes.set_title(name, fontsize=10, color=INK)
        axes.set_xlabel(panel.note, fontsize=8, color=MUTED)
        axes.set(xticks=[], yticks=[])  # distances have no unit, and only near ones have a meaning
        for spine in axes.spines.values():
            spine.set_color(GRID)
    _add_tsne_legend(figure, colors, split, any(panel.prototypes for panel in panels.values()))
    return finish(figure)


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
            mark_unseen(text)
