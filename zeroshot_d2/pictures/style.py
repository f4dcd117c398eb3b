"""The look of every picture: colours, the mark of unseen classes, axes, and how a figure becomes a file or pixels.

Figures are matplotlib's, drawn without pyplot's global state. Unseen classes carry a star and stand bold on or in red,
wherever a name is shown. (H, W) is an image.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

from ..class_split import ClassSplit
from ..images import ImageArray
from ..storage import PathLike, whole_file
from .texts import PlainTextFigure

FORMATS = (".png", ".pdf", ".svg")
SAVED_DPI = 160

INK, MUTED, GRID = "#22262b", "#6b7480", "#dde1e6"
UNSEEN_COLOR = "#b3122b"
STAR = "★"
# Okabe and Ito's palette, which colour-blind readers can tell apart; grey first, for the baseline.
SERIES_COLORS = ("#a7afb9", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")


def class_text(split: ClassSplit, index: int) -> str:
    """The name of a class, starred if it is unseen."""
    return starred(split.names[index], split.names[index] in split.unseen)


def starred(name: str, unseen: bool) -> str:
    """``name``, with a star where it is that of an unseen class."""
    return f"{STAR} {name}" if unseen else name


def mark_unseen(text: Text) -> None:
    """Set a text as the name of an unseen class."""
    text.set(color=UNSEEN_COLOR, fontweight="bold")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, its panels laid out closely."""
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.03, wspace=0.0, hspace=0.0)
    return PlainTextFigure(figsize=(width, height), layout=layout)


def finish(figure: Figure) -> Figure:
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


def show_image(axes: Axes, image: ImageArray, interpolation: str = "nearest") -> None:
    """Show an image (H, W, 3) without axes."""
    axes.imshow(image, interpolation=interpolation)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def plain_axes(axes: Axes, *, grid: Literal["x", "y"]) -> None:
    """Two thin spines and a pale grid."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=8)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def save_figure(figure: Figure, path: PathLike, *, dpi: int = SAVED_DPI) -> None:
    """Write a figure; the ending of ``path`` decides the format (.png, .pdf, .svg)."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=dpi, facecolor="white")


def figure_pixels(figure: Figure, dpi: int = SAVED_DPI) -> ImageArray:
    """Draw a figure: (H, W, 3) RGB."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels: Any = np.asarray(canvas.buffer_rgba())
    return np.array(pixels[:, :, :3])
