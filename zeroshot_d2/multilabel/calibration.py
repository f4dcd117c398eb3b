"""From which score on a label counts as present: what `calibrate` does for labels of images.

Shapes: N images, K classes, A annotated (image, class) pairs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.data import MetadataCatalog
from matplotlib.figure import Figure

from ..class_split import ClassSplit
from ..cli import positive
from ..pictures.command import Record, predictions
from ..pictures.style import INK, MUTED, SERIES_COLORS, UNSEEN_COLOR, finish, mark_unseen, new_figure, plain_axes, starred
from ..predictor import Predictor
from ..thresholds import Calibration

MIN_IMAGES = 5
MOST_SHOWN = 40  # classes in the picture

Scores = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Cut:
    """A threshold and how good it is.

    Args:
        threshold: scores at or above it count as present.
        f1: in [0, 1].
    """

    threshold: float
    f1: float


def best_cut(scores: Scores, present: Flags) -> Cut:
    """The threshold with the highest F1; of several the highest threshold.

    It lies midway between the lowest score above it and the highest below.

    Args:
        scores: (A,).
        present: (A,), at least one of them.

    Raises:
        ValueError: nothing is present.
    """
    if not present.any():
        raise ValueError("none of the labels is present in the images: choose another data set, or more images")
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], present[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + hits[-1])
    differs = np.append(ordered[1:] < ordered[:-1], True)  # equal scores are on the same side
    last = int(np.flatnonzero(differs)[np.argmax(f1[differs])])
    below = ordered[last + 1] if last + 1 < len(ordered) else ordered[last]
    return Cut(float((ordered[last] + below) / 2), float(f1[last]))


def f1_at(scores: Scores, present: Flags, threshold: float | Scores) -> float:
    """F1 of the labels whose score reaches the threshold, in [0, 1]."""
    chosen = scores >= threshold
    total = int(chosen.sum() + present.sum())
    return 2 * int((chosen & present).sum()) / total if total else 0.0


class Calibrator:
    """See :class:`zeroshot_d2.thresholds.Calibrator`."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """``--min-images``."""
        parser.add_argument(
            "--min-images",
            type=positive,
            default=MIN_IMAGES,
            help=f"classes with at least so many positive images get a threshold of their own; default: {MIN_IMAGES}",
        )

    @staticmethod
    def calibrate(predictor: Predictor[Any], records: Sequence[Record], args: argparse.Namespace) -> Calibration:
        """
        Raises:
            ValueError: none of the labels is present.
        """
        split = predictor.vocabulary
        complete = bool(MetadataCatalog.get(args.dataset).labels_complete)
        scores = np.empty((len(records), len(split)))
        present, annotated = np.zeros(scores.shape, np.bool_), np.full(scores.shape, complete)
        for row, (record, _, tags) in enumerate(predictions(predictor, records)):
            scores[row] = tags.scores
            present[row, record["positive_labels"]] = True
            annotated[row, record["positive_labels"]] = annotated[row, record["negative_labels"]] = True
        return calibration(split, scores, present, annotated, min_images=args.min_images)


def calibration(split: ClassSplit, scores: Scores, present: Flags, annotated: Flags, *, min_images: int) -> Calibration:
    """Thresholds of all classes together and of each.

    Args:
        split: K classes.
        scores, present, annotated: (N, K); what is not annotated does not count.
        min_images: classes with fewer positive images have the threshold of all.

    Raises:
        ValueError: none of the labels is present, or none is absent.
    """
    if present[annotated].all() and annotated.any():
        raise ValueError("no label says that a class is absent, so no threshold would be too low: give verified absences")
    of_all = best_cut(scores[annotated], present[annotated])
    cuts = {
        k: best_cut(scores[annotated[:, k], k], present[annotated[:, k], k])
        for k in np.flatnonzero((present & annotated).sum(axis=0) >= min_images).tolist()
    }
    own = np.full(len(split), of_all.threshold)
    own[list(cuts)] = [cut.threshold for cut in cuts.values()]
    f1 = f1_at(scores[annotated], present[annotated], np.broadcast_to(own, scores.shape)[annotated])
    content = {
        "threshold": of_all.threshold,
        "F1": 100 * of_all.f1,
        "of_class": {split.names[k]: cut.threshold for k, cut in cuts.items()},
        "F1_of_class": {split.names[k]: 100 * cut.f1 for k, cut in cuts.items()},
        "F1_with_own_thresholds": 100 * f1,
    }
    lines = [
        f"one threshold, {of_all.threshold:.4g}: F1 {100 * of_all.f1:.1f}",
        f"{len(cuts)} of {len(split)} classes have their own (at least {min_images} positive images): F1 {100 * f1:.1f}",
        "both are of the images that the thresholds were chosen on",
    ]
    figure = thresholds_figure(split, scores[annotated], present[annotated], of_all, cuts)
    return Calibration(content, figure, lines)


def thresholds_figure(split: ClassSplit, scores: Scores, present: Flags, of_all: Cut, cuts: Mapping[int, Cut]) -> Figure:
    """Left: precision, recall and F1 of all labels against one threshold. Right: the thresholds of the classes.

    Args:
        split: K classes.
        scores, present: (A,), of all annotated pairs.
        of_all: the threshold of all classes.
        cuts: those of classes, by index; of many the first :data:`MOST_SHOWN`, unseen ones before seen ones.
    """
    shown = sorted(cuts, key=lambda k: (not split.unseen_mask[k], k))[:MOST_SHOWN]
    shown = sorted(shown, key=lambda k: cuts[k].threshold)
    figure = new_figure(8.4, max(3.0, 0.6 + 0.16 * len(shown)))
    curves, dots = figure.subplots(1, 2)
    order = np.argsort(-scores, kind="stable")
    hits, count = present[order].cumsum(), np.arange(1, len(scores) + 1)
    # One in so many points: a picture shows no more.
    places = np.unique(np.linspace(0, len(scores) - 1, 2000).round().astype(int))
    lines = {"precision": hits / count, "recall": hits / hits[-1], "F1": 2 * hits / (count + hits[-1])}
    for (name, values), color in zip(lines.items(), (SERIES_COLORS[1], SERIES_COLORS[3], INK), strict=True):
        curves.plot(scores[order][places], 100 * values[places], color=color, label=name)
    curves.axvline(of_all.threshold, color=MUTED, linestyle="--", linewidth=1)
    curves.set_title(f"one threshold: {of_all.threshold:.3g}, F1 {100 * of_all.f1:.1f}", fontsize=9, color=INK)
    curves.set_xlabel("labels whose score is at least", fontsize=9, color=INK)
    curves.set_ylabel("%", fontsize=9, color=INK)
    curves.set_ylim(0, 102)
    curves.legend(frameon=False, fontsize=8)
    plain_axes(curves, grid="y")

    rows = np.arange(len(shown))
    unseen = split.unseen_mask
    dots.scatter([cuts[k].threshold for k in shown], rows, s=14, c=[UNSEEN_COLOR if unseen[k] else INK for k in shown])
    dots.axvline(of_all.threshold, color=MUTED, linestyle="--", linewidth=1)
    dots.set_yticks(rows, [starred(split.names[k], unseen[k]) for k in shown])
    dots.set_ylim(-0.7, max(len(shown), 1) - 0.3)
    left_out = f", {len(shown)} of {len(cuts)}" if len(shown) < len(cuts) else ""
    dots.set_title(f"thresholds of classes{left_out}", fontsize=9, color=INK)
    dots.set_xlabel("score (dashed: the threshold of all)", fontsize=9, color=INK)
    plain_axes(dots, grid="x")
    for text, k in zip(dots.get_yticklabels(), shown, strict=True):
        if unseen[k]:
            mark_unseen(text)
    return finish(figure)
