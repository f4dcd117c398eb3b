"""Scores of label rankings that any method has made and saved, by :class:`~zeroshot_d2.multilabel.evaluation`'s numbers.

Predictions are scores of all classes of the data set, which give ZSL and GZSL, or of its unseen classes alone, which give
ZSL. Shapes: N images, K classes of the predictions, R resamples.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from scipy.special import digamma
from tqdm import tqdm

from ..class_split import ClassSplit
from ..cli import positive
from ..referee import Numbers, Scored, check_images, named_classes
from ..registration import DatasetDict
from .evaluation import Annotations, MultiLabelEvaluator, format_multilabel_table, tasks_of
from .predictions import open_scores
from .ranking import BoolArray, Float32Array, hits_at
from .score_file import ScoreFile

FloatArray = npt.NDArray[np.float64]

_CLASSES_PER_BLOCK = 64  # classes whose scores are read back at once


class MultiLabelReferee:
    """See :class:`zeroshot_d2.referee.Referee`."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Which images the rows are, and the K of P, R and F1."""
        parser.add_argument("--images", type=Path, metavar="FILE", help="for an .npy: the image of each row, one a line")
        parser.add_argument(
            "--top-k", type=positive, nargs="+", default=[3, 5], metavar="K", help="of P, R and F1; default 3 5"
        )

    def __init__(self, dataset_name: str, args: argparse.Namespace) -> None:
        """
        Raises:
            FileNotFoundError: the data set's files are missing.
            ValueError: arguments contradict each other.
        """
        meta = MetadataCatalog.get(dataset_name)
        self._dataset_name, self._args = dataset_name, args
        whole: ClassSplit = meta.class_split
        self._unseen = args.vocabulary == "unseen" and meta.protocol != "ZSL"
        self._split = whole.only_unseen() if self._unseen else whole
        self._complete: bool = meta.labels_complete
        self._tasks = tasks_of(self._split, "ZSL" if self._unseen else meta.protocol)
        # index[k]: of the data set's class k in the vocabulary of the predictions, -1 where it is not in it.
        self._index = np.full(len(whole), -1, dtype=np.int64)
        self._index[whole.unseen_indices if self._unseen else np.arange(len(whole))] = np.arange(len(self._split))
        self._records: Sequence[DatasetDict] = DatasetCatalog.get(dataset_name)
        self._position = {str(self._records[i]["image_id"]): i for i in range(len(self._records))}

    def score(self, path: Path, *, keep_images: bool) -> Scored:
        """The numbers of the scores at ``path``; see :class:`zeroshot_d2.referee.Referee`."""
        table = open_scores(path, self._args.images)
        check_images(table.images, list(self._position), path)
        order = named_classes(self._args.classes, table.classes, self._split, self._dataset_name)
        evaluator = MultiLabelEvaluator(
            self._dataset_name, top_k=self._args.top_k, distributed=False, unseen_only=self._unseen
        )
        kept = _Kept(self._split, self._tasks, self._args.top_k, self._complete) if keep_images else None
        columns = np.argsort(order)  # columns of the file in the order of the vocabulary
        with tqdm(desc=f"scoring {path.name}", total=len(table.images), leave=False) as bar:
            for names, scores in table.blocks():
                if scores.shape[1] != len(order):
                    raise ValueError(
                        f"{path} scores {scores.shape[1]} classes, the vocabulary has {len(order)}: give --classes FILE, or "
                        "another --vocabulary"
                    )
                records = [self._record(name) for name in names]
                scores = np.ascontiguousarray(scores[:, columns])
                evaluator.process(records, [{"scores": torch.from_numpy(row)} for row in scores])
                if kept is not None:
                    kept.add(records, scores, [self._position[name] for name in names])
                bar.update(len(names))
        results = evaluator.report()
        evaluator.reset()
        assert results is not None  # it is given where processes are not distributed
        return MultiLabelScored({results["protocol"]: results}, len(self._records), kept)

    def _record(self, name: str) -> DatasetDict:
        """The dataset dict with labels of the predictions' vocabulary."""
        record = dict(self._records[self._position[name]])
        for key in ("positive_labels", "negative_labels"):
            labels = self._index[np.asarray(record.get(key, ()), dtype=np.int64)]
            record[key] = labels[labels >= 0]
        return record


class _Kept:
    """What resampling needs: scores by classes, labels, and hits by images."""

    def __init__(self, split: ClassSplit, tasks: Mapping[str, BoolArray], top_k: Sequence[int], complete: bool) -> None:
        self.split, self.tasks, self.top_k, self.complete = split, tasks, top_k, complete
        self.scores = ScoreFile(len(split), None)
        self.images: list[int] = []  # of the rows of the scores
        self.labels = Annotations()  # their images are rows
        self.hits: dict[str, list[npt.NDArray[np.int64]]] = {task: [] for task in tasks}
        self.positives: dict[str, list[npt.NDArray[np.int64]]] = {task: [] for task in tasks}

    def add(self, records: Sequence[Mapping[str, Any]], scores: Float32Array, images: Sequence[int]) -> None:
        positive = np.zeros(scores.shape, dtype=bool)
        for row, record in enumerate(records):
            positive[row, record["positive_labels"]] = True
            for key, present in (("positive_labels", True), ("negative_labels", False)):
                self.labels.add(len(self.images) + row, np.asarray(record[key]), present)
        self.scores.add(scores)
        for task, mask in self.tasks.items():
            self.hits[task].append(hits_at(scores[:, mask], positive[:, mask], self.top_k))
            self.positives[task].append(positive[:, mask].sum(axis=1))
        self.images += images


class MultiLabelScored(Scored):
    """The numbers of one method's rankings."""

    per_class_unit = "AP"

    def __init__(self, results: Mapping[str, Numbers], num_images: int, kept: _Kept | None) -> None:
        super().__init__(results, num_images)
        self._kept = kept

    def table(self, title: str) -> str:
        (numbers,) = self.results.values()
        return format_multilabel_table({title: numbers})

    def headlines(self, name: str) -> dict[str, float]:
        numbers = self.results[name]
        return {key: value for key, value in numbers.items() if key.endswith("mAP") or "F1@" in key if value is not None}

    def per_class(self, name: str) -> Mapping[str, float | None]:
        return self.results[name]["AP"]

    def resampled(self, name: str, weights: npt.NDArray[np.float32]) -> dict[str, FloatArray]:
        """(R,) of each headline, from how often each image counts, (R, N)."""
        assert self._kept is not None, "scored without keep_images"
        kept = self._kept
        weights = weights[:, kept.images]  # in the order of the rows
        ap = self._average_precisions(weights)
        result = {}
        for task, mask in kept.tasks.items():
            prefix = f"{task}_" if task else ""
            known = ~np.isnan(ap[:, mask])
            with np.errstate(invalid="ignore"):
                result[f"{prefix}mAP"] = np.where(known, ap[:, mask], 0).sum(axis=1) / known.sum(axis=1)
            hits = weights @ np.concatenate(kept.hits[task]).astype(np.float32)
            positives = weights @ np.concatenate(kept.positives[task]).astype(np.float32)
            images = weights.sum(axis=1)
            for column, k in enumerate(kept.top_k):
                # 2 P R / (P + R) with P = hits / (N k) and R = hits / positives.
                with np.errstate(invalid="ignore"):
                    result[f"{prefix}F1@{k}"] = np.asarray(
                        200 * hits[:, column] / (images * k + positives), dtype=np.float64
                    )
        return result

    def _average_precisions(self, weights: npt.NDArray[np.float32]) -> FloatArray:
        """(R, K) AP in percent; NaN where a sample has no positive of a class."""
        kept = self._kept
        assert kept is not None
        labels = kept.labels.arrays()
        order = np.argsort(labels["klass"], kind="stable")
        bounds = np.searchsorted(labels["klass"][order], np.arange(len(kept.split) + 1))
        ap = np.full((len(weights), len(kept.split)), np.nan)
        for start in range(0, len(kept.split), _CLASSES_PER_BLOCK):
            stop = min(start + _CLASSES_PER_BLOCK, len(kept.split))
            for k, scores in enumerate(kept.scores.columns(start, stop), start=start):
                of_class = order[bounds[k] : bounds[k + 1]]
                rows, present = labels["image"][of_class], labels["positive"][of_class]
                if kept.complete:
                    positive = np.zeros(len(scores), dtype=bool)
                    positive[rows[present]] = True
                    ap[:, k] = 100 * weighted_average_precision(scores, positive, weights)
                else:
                    ap[:, k] = 100 * weighted_average_precision(scores[rows], present, weights[:, rows])
        return ap


def weighted_average_precision(scores: Float32Array, positive: BoolArray, weights: npt.NDArray[np.float32]) -> FloatArray:
    """AP of R samples in which an image occurs several times or not at all.

    Equal to :func:`zeroshot_d2.multilabel.ranking.average_precision` of the images written out as often as they occur: the
    copies j = 1..w of a positive image behind P positives of W images have precision (P + j) / (W + j), whose sum is
    w + (P - W) (psi(W + w + 1) - psi(W + 1)) with the digamma function psi.

    Args:
        scores, positive: (N,).
        weights: (R, N), whole numbers.

    Returns:
        (R,) in [0, 1]; NaN without a positive.
    """
    order = np.lexsort((positive, -scores))  # of equal scores the negatives come first
    at = np.flatnonzero(positive[order])
    ordered = weights[:, order].astype(np.float64)
    w = ordered[:, at]
    before = ordered.cumsum(axis=1)[:, at] - w
    positives_before = w.cumsum(axis=1) - w
    sums = w + (positives_before - before) * (digamma(before + w + 1) - digamma(before + 1))
    total = w.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums.sum(axis=1) / total)
