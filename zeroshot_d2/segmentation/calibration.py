"""Which confidence of a pixel is enough: what `calibrate` does for segmentation.

Shapes: K classes, B steps of the threshold, (H, W) an image.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..class_split import ClassSplit
from ..images import ImageArray
from ..pictures.command import Record, predictions
from ..pictures.style import INK, SERIES_COLORS, UNSEEN_COLOR, finish, new_figure, plain_axes
from ..predictor import Predictor
from ..thresholds import Calibration
from .figures import read_truth, shows_unseen
from .pictures import Colors, draw_labels
from .predictor import Segmentation
from .writer import OTHER_COLOR

STEPS = 100  # of the threshold, from 0 to 1
KINDS = ("seen", "unseen", "unlabelled")

_STYLES = {
    "seen": ("seen classes", SERIES_COLORS[1]),
    "unseen": ("unseen classes", UNSEEN_COLOR),
    "unlabelled": ("no label", SERIES_COLORS[0]),
}
_NONE = "none of these"

Counts = npt.NDArray[np.int64]


class ConfidenceCounts:
    """Counts pixels by their confidence, in :data:`STEPS` steps: right and all, of seen and unseen classes; and those
    without a label of the vocabulary, which may be anything."""

    def __init__(self, split: ClassSplit) -> None:
        self._unseen = np.append(split.unseen_mask, False)
        self._num_classes = len(split)
        self.right: dict[str, Counts] = {kind: np.zeros(STEPS, np.int64) for kind in KINDS}
        self.all: dict[str, Counts] = {kind: np.zeros(STEPS, np.int64) for kind in KINDS}

    def add(self, found: Segmentation, truth: npt.NDArray[np.int64]) -> None:
        """Count an image; ``truth`` (H, W) holds vocabulary indices, and any other value where there is no label."""
        step = np.minimum((found.confidence * STEPS).astype(np.int64), STEPS - 1)
        labelled = (truth >= 0) & (truth < self._num_classes)
        unseen = self._unseen[np.where(labelled, truth, self._num_classes)]
        masks = {"seen": labelled & ~unseen, "unseen": labelled & unseen, "unlabelled": ~labelled}
        for kind, mask in masks.items():
            self.all[kind] += np.bincount(step[mask], minlength=STEPS)
            self.right[kind] += np.bincount(step[mask & (found.labels == truth)], minlength=STEPS)

    def kept(self, *kinds: str) -> npt.NDArray[np.float64]:
        """(B,) the share of the pixels that keep their class at the thresholds 0, 1/B, ...; NaN without such pixels."""
        total = _from(sum(self.all[kind] for kind in kinds))
        return _share(total, total[0])

    def accuracy(self, *kinds: str) -> npt.NDArray[np.float64]:
        """(B,) how many of those are right; NaN where none is left."""
        return _share(_from(sum(self.right[kind] for kind in kinds)), _from(sum(self.all[kind] for kind in kinds)))


def _from(counts: Any) -> Counts:
    """What lies at or above each step."""
    return counts[::-1].cumsum()[::-1]


def _share(part: Any, whole: Any) -> npt.NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(STEPS, np.nan), where=np.broadcast_to(np.asarray(whole) > 0, STEPS))


def lowest_threshold(counts: ConfidenceCounts, accuracy: float) -> float:
    """The lowest threshold from which on the pixels that keep their class are right with this ``accuracy``, in percent.

    Raises:
        ValueError: there is none, or no labelled pixel.
    """
    found = 100 * counts.accuracy("seen", "unseen")
    if np.isnan(found).all():
        raise ValueError("the data set has no labelled pixel: choose another")
    enough = np.flatnonzero(found >= accuracy)
    if not len(enough):
        best = int(np.nanargmax(found))
        raise ValueError(
            f"no threshold makes {accuracy:g} % of the pixels right: the most are {found[best]:.1f} %, at {best / STEPS:g}; "
            "lower --accuracy"
        )
    return float(enough[0] / STEPS)


class Calibrator:
    """See :class:`zeroshot_d2.thresholds.Calibrator`."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """``--accuracy``."""
        parser.add_argument(
            "--accuracy",
            type=float,
            default=95.0,
            metavar="PERCENT",
            help="of the pixels that keep their class, so many are to be right; default: 95",
        )

    @staticmethod
    def calibrate(predictor: Predictor[Any], records: Sequence[Record], args: argparse.Namespace) -> Calibration:
        """
        Raises:
            ValueError: as :func:`lowest_threshold`.
        """
        split = predictor.vocabulary
        counts = ConfidenceCounts(split)
        example: tuple[ImageArray, Segmentation] | None = None  # the first image that shows an unseen class, else the first
        example_shows_unseen = False
        for record, image, found in predictions(predictor, records):
            truth = read_truth(record)
            counts.add(found, truth)
            if example is None or (not example_shows_unseen and shows_unseen(truth, split)):
                example, example_shows_unseen = (image, found), shows_unseen(truth, split)
        threshold = lowest_threshold(counts, args.accuracy)
        assert example is not None
        at, right = round(threshold * STEPS), counts.accuracy("seen", "unseen")
        curve = {
            "threshold": [step / STEPS for step in range(STEPS)],
            "accuracy": _listed(right),
            **{f"kept_{kind}": _listed(counts.kept(kind)) for kind in KINDS},
            **{f"accuracy_{kind}": _listed(counts.accuracy(kind)) for kind in ("seen", "unseen")},
        }
        lines = [
            f"threshold {threshold:g}: {100 * right[at]:.1f} % of the pixels that keep their class are right, "
            f"{100 * right[0]:.1f} % without a threshold",
            *(
                f"{kind} pixels that keep a class: {100 * counts.kept(kind)[at]:.1f} %"
                for kind in KINDS
                if counts.all[kind].any()
            ),
        ]
        figure = threshold_figure(counts, threshold, *example, predictor.colors)
        return Calibration({"threshold": threshold, "accuracy": args.accuracy, "curve": curve}, figure, lines)


def _listed(values: npt.NDArray[np.float64]) -> list[float | None]:
    """In percent; None for NaN."""
    return [None if np.isnan(value) else round(100 * float(value), 3) for value in values]


def threshold_figure(
    counts: ConfidenceCounts, threshold: float, image: ImageArray, found: Segmentation, colors: Colors
) -> Figure:
    """Above: how many pixels keep their class at each threshold, and how many of those are right. Below: an image without a
    threshold, at the one that was chosen, and beyond it."""
    picture_height = 2.4 * min(image.shape[0] / image.shape[1], 1.5)
    figure = new_figure(7.2, 2.6 + picture_height)
    grid = figure.add_gridspec(2, 1, height_ratios=[2.6, picture_height])
    above, below = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    kept, right = above.subplots(1, 2)
    _draw_curves(kept, "pixels that keep their class (%)", {kind: counts.kept(kind) for kind in KINDS}, threshold)
    _draw_curves(right, "of these are right (%)", {kind: counts.accuracy(kind) for kind in KINDS[:2]}, threshold)
    kept.legend(frameon=False, fontsize=8)
    for axes, at in zip(below.subplots(1, 3), (0.0, threshold, (1 + threshold) / 2), strict=True):
        shown = found if at == 0 else found.with_other(at, _NONE)
        draw_labels(axes, image, shown.labels, shown.vocabulary, [*colors, OTHER_COLOR], font_size=6)
        axes.set_title("no threshold" if at == 0 else f"threshold {at:.2f}", fontsize=9, color=INK)
    return finish(figure)


def _draw_curves(axes: Axes, title: str, curves: Mapping[str, npt.NDArray[np.float64]], threshold: float) -> None:
    for kind, values in curves.items():
        if np.isnan(values).all():  # there are no such pixels
            continue
        label, color = _STYLES[kind]
        axes.plot(np.arange(STEPS) / STEPS, 100 * values, color=color, label=label)
    axes.axvline(threshold, color=INK, linestyle="--", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 102))
    axes.set_xlabel("threshold of the confidence", fontsize=9, color=INK)
    axes.set_title(title, fontsize=9, color=INK)
    plain_axes(axes, grid="y")
