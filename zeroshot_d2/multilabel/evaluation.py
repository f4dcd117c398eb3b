"""Evaluation of multi-label (zero-shot) classification, for any model of the task.

One pass over a data set gives, for the protocol in its metadata,

    GZSL         ZSL: ranking among the unseen classes;  GZSL: ranking among all classes
    ZSL          the vocabulary is the unseen classes alone: ZSL
    supervised   the vocabulary is what was trained (the 81 of NUS-WIDE, Table 4): numbers without a prefix

* AP, and precision, recall and F1 at K: see :mod:`zeroshot_d2.multilabel.ranking`. Where labels are incomplete (Open
  Images),
  only images annotated for the class, as present or as absent, are ranked; a class that is not annotated is not present.
* mAP is the mean over classes with a positive image; mAP_all_classes counts the others as 0, as the code of LESA does, and
  BiAM's on NUS-WIDE. mAP_BiAM is what BiAM's code averages on Open Images: see
  :func:`zeroshot_d2.multilabel.ranking.pooled_average_precision`; it is printed where labels are incomplete, over the images
  that this code takes (those with a positive among the classes that are ranked).
* All of it three times: over all images, over the "labelled" ones, those with a positive among the unseen classes, and over
  those with a positive among any ("labelled_any"); the last two are the same where nothing, or everything, is unseen, and
  are then given once. Papers on NUS-WIDE use all images or the labelled ones, and their precision differs by a factor of
  1.286; BiAM's code takes the labelled ones for ZSL and the others for GZSL on Open Images.

Shapes: N images, B of a batch, K classes, A annotated (image, class) pairs. All numbers are in percent.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate

from ..class_split import ClassSplit
from ..joined_file import PREDICTIONS
from ..metrics import numbers_only
from .predictions import TagSaver
from .ranking import (
    BoolArray,
    FlagArray,
    Float32Array,
    IntArray,
    average_precisions,
    hits_at,
    pooled_average_precision,
    precision_recall_f1,
)
from .registration import NO_NEGATIVES
from .score_file import ScoreFile

logger = logging.getLogger(__name__)

IMAGE_SETS = {"labelled": "labelled_images", "labelled_any": "labelled_any_images"}
"""Sets of images beside "all": {name: the key of their numbers among the results}."""

_CLASSES_PER_BLOCK = 64  # classes that are read back at once


@dataclass
class Annotations:
    """Sparse labels of the images so far, as lists of arrays, with the scores where only annotated pairs are ranked.

    12 bytes per label (8 where the scores are in a :class:`ScoreFile`).
    """

    image: list[npt.NDArray[np.int32]] = field(default_factory=list)
    klass: list[npt.NDArray[np.int32]] = field(default_factory=list)
    score: list[Float32Array] = field(default_factory=list)
    positive: list[BoolArray] = field(default_factory=list)

    def add(self, image: Any, klass: npt.NDArray[Any], positive: bool, score: Float32Array | None = None) -> None:
        """Labels of classes ``klass`` (A,), all present or all absent, of an image, or of an image each (A,)."""
        self.image.append(np.broadcast_to(image, klass.shape).astype(np.int32))
        self.klass.append(klass.astype(np.int32))
        self.positive.append(np.full(len(klass), positive))
        if score is not None:
            self.score.append(score)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        types = {"image": np.int32, "klass": np.int32, "score": np.float32, "positive": np.bool_}
        return {name: np.concatenate([np.empty(0, dtype), *getattr(self, name)]) for name, dtype in types.items()}


@dataclass
class Counts:
    """What P, R and F1 need of one task and one set of images; adds up over images and processes."""

    images: int = 0
    positives: int = 0
    hits: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def add(self, other: Counts) -> None:
        self.images += other.images
        self.positives += other.positives
        if len(other.hits):  # none without an image
            self.hits = self.hits + other.hits if len(self.hits) else other.hits.copy()


class MultiLabelEvaluator(DatasetEvaluator):
    """Collects the scores of a data set and reports the numbers of its protocol; see the head of this file.

    Memory stays bounded. With complete labels the scores go to a temporary file of 4 N K bytes and come back 64 classes at a
    time; with incomplete ones only the scores of annotated pairs are kept, 12 bytes each. Processes are gathered in the same
    portions.
    """

    details: dict[str, Any] | None = None
    """What :meth:`report` found when :meth:`evaluate` last ran; results.json holds it."""

    def __init__(
        self,
        dataset_name: str,
        *,
        top_k: Sequence[int] = (3, 5),
        distributed: bool = True,
        folder: str | None = None,
        unseen_only: bool = False,
        output_dir: str | None = None,
        save_predictions: str = "",
    ) -> None:
        """
        Args:
            dataset_name: a data set registered with :func:`zeroshot_d2.register_multilabel`.
            top_k: the K of P, R and F1.
            distributed: add up the results of all processes.
            folder: of the temporary file; by default the system's.
            unseen_only: scores and labels are of the unseen classes alone, as those of a data set that is registered with
                ``vocabulary="unseen"``.
            output_dir: where predictions are saved.
            save_predictions: "labels", "scores" or "json", see :mod:`zeroshot_d2.multilabel.predictions`; "": none.

        Raises:
            ValueError: metadata is missing, or there is no K, or one is not between 1 and the number of classes ranked;
                no class is unseen, or predictions are to be saved nowhere.
        """
        meta = MetadataCatalog.get(dataset_name)
        missing = [key for key in ("class_split", "labels_complete", "protocol") if not hasattr(meta, key)]
        if missing:
            raise ValueError(
                f"data set {dataset_name!r} has no {', '.join(missing)} in its metadata: "
                "register it with zeroshot_d2.register_multilabel"
            )
        if save_predictions and not output_dir:
            raise ValueError("save_predictions needs an output_dir")
        self._dataset_name = dataset_name
        self._split: ClassSplit = meta.class_split.only_unseen() if unseen_only else meta.class_split
        self._complete: bool = meta.labels_complete
        self._protocol: str = "ZSL" if unseen_only else meta.protocol
        self._tasks = tasks_of(self._split, self._protocol)
        self._top_k = tuple(top_k)
        if not self._top_k:
            raise ValueError("TEST.TOP_K is empty: give at least one K, for example (3, 5)")
        for task, mask in self._tasks.items():
            wrong = [k for k in self._top_k if not 1 <= k <= mask.sum()]
            if wrong:
                raise ValueError(
                    f"TEST.TOP_K {wrong} is not within the {mask.sum()} classes that are ranked for "
                    f"{task or 'classification'} on data set {dataset_name!r}"
                )
        # Of the 81 concepts of NUS-WIDE an image may have none: it is not "labelled".
        every = np.ones(len(self._split), dtype=bool)
        self._labelling = {"labelled": self._split.unseen_mask if self._split.unseen else every}
        if not self._labelling["labelled"].all():
            self._labelling["labelled_any"] = every
        self._image_sets = ("all", *self._labelling)
        self._distributed = distributed
        self._folder = folder
        self._scores: ScoreFile | None = None
        self._saver = None
        if save_predictions:
            path = Path(output_dir or "") / PREDICTIONS / dataset_name
            self._saver = TagSaver(save_predictions, path, self._split, max(self._top_k), distributed=distributed)
        self.reset()

    def reset(self) -> None:
        """Forget everything so far."""
        if self._scores is not None:
            self._scores.close()
        if self._saver is not None:
            self._saver.discard()
        self._scores = ScoreFile(len(self._split), self._folder) if self._complete else None
        self._annotations = Annotations()
        self._flags: list[FlagArray] = []  # the sets that each image is in, a bit for each of _image_sets
        self._num_images = 0
        self._counts = {(task, images): Counts() for task in self._tasks for images in self._image_sets}

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Take a batch.

        Args:
            inputs: dataset dicts, of which "positive_labels" and "negative_labels" are read.
            outputs: "scores" (K,) for each, in vocabulary order.

        Raises:
            ValueError: the sizes do not fit, a label is outside the vocabulary, or a score is NaN.
        """
        if len(inputs) != len(outputs):
            raise ValueError(f"{len(inputs)} inputs but {len(outputs)} outputs")
        if not inputs:
            return
        scores = self._checked_scores(inputs, outputs)
        positive = np.zeros(scores.shape, dtype=bool)
        signs = {"positive_labels": True} if self._complete else {"positive_labels": True, "negative_labels": False}
        for key, sign in signs.items():
            row, classes = self._checked_labels(inputs, key)
            if sign:
                positive[row, classes] = True
            kept = None if self._complete else scores[row, classes]
            self._annotations.add(self._num_images + row, classes, sign, kept)
        if self._scores is not None:
            self._scores.add(scores)
        if self._saver is not None:
            self._saver.save([str(record["image_id"]) for record in inputs], scores)
        chosen: dict[str, BoolArray] = {"all": np.ones(len(inputs), dtype=bool)}
        for images, mask in self._labelling.items():
            chosen[images] = np.asarray((positive & mask).any(axis=1))
        flags = [rows.astype(np.uint8) << bit for bit, rows in enumerate(chosen.values())]
        self._flags.append(np.bitwise_or.reduce(flags))
        self._num_images += len(inputs)
        for task, mask in self._tasks.items():
            of_task, positive_of_task = scores, positive
            if not mask.all():
                of_task, positive_of_task = scores.compress(mask, axis=1), positive.compress(mask, axis=1)
            hits = hits_at(of_task, positive_of_task, self._top_k)
            positives = positive_of_task.sum(axis=1)
            for images, rows in chosen.items():
                self._counts[task, images].add(Counts(int(rows.sum()), int(positives[rows].sum()), hits[rows].sum(axis=0)))

    def _checked_scores(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> Float32Array:
        """(B, K) of a batch."""
        given = [output["scores"] for output in outputs]
        expected = (len(self._split),)
        for scores in given:
            if scores.shape != expected:
                raise ValueError(
                    f"the model scores {tuple(scores.shape)} classes, data set {self._dataset_name!r} has "
                    f"{len(self._split)}: predict with the vocabulary of this data set"
                )
        scores = torch.stack(given).detach().float().cpu().numpy()
        nan = np.isnan(scores)
        if nan.any():
            image = nan.any(axis=1).argmax()
            raise ValueError(f"{inputs[image].get('file_name')}: {nan[image].sum()} scores are NaN")
        return scores

    def _checked_labels(self, inputs: Sequence[Mapping[str, Any]], key: str) -> tuple[IntArray, IntArray]:
        """Row in the batch and class of each label, (A,) each."""
        labels = [np.asarray(record.get(key, ()), dtype=np.int64) for record in inputs]
        row, classes = np.repeat(np.arange(len(inputs)), list(map(len, labels))), np.concatenate(labels)
        outside = (classes < 0) | (classes >= len(self._split))
        if outside.any():
            image = row[outside.argmax()]
            raise ValueError(
                f"{inputs[image].get('file_name')}: {key} {labels[image].tolist()} are not all among the "
                f"{len(self._split)} classes of data set {self._dataset_name!r}"
            )
        return row, classes

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """The numbers among :meth:`report`, for Detectron2, whose tools take nothing else; :attr:`details` has the rest.

        On other processes than the main one: None.
        """
        self.details = self.report()
        return None if self.details is None else OrderedDict(multilabel=numbers_only(self.details))

    def report(self) -> dict[str, Any] | None:
        """Numbers of all images of all processes.

        Returns:
            {"protocol", "<task>_mAP", "<task>_mAP_all_classes", "<task>_P@K", "<task>_R@K", "<task>_F1@K",
            "num_images", "labelled_images" and "labelled_any_images": {the same over these, and "<task>_mAP_BiAM"},
            "num_classes": {task: (with a positive, all)},
            "AP": {class: AP}}; None where a number is not defined. On other processes than the main one: None.
        """
        if self._saver is not None:
            self._saver.finish()
        counts = self._gathered_counts()
        absences = sum(int((~present).sum()) for present in self._annotations.positive)
        num_absences = sum(comm.all_gather(absences)) if self._distributed else absences
        ap = {images: np.full(len(self._split), np.nan) for images in self._image_sets}
        for klass, scores, positive, flags in self._columns():
            of_sets = average_precisions(scores, positive, flags, len(ap))
            for images, value in zip(ap, of_sets, strict=True):
                ap[images][klass] = 100 * value
        pairs = None if self._complete else self._gathered_pairs()
        if not self._complete and not num_absences:
            if comm.is_main_process():
                logger.warning(NO_NEGATIVES, self._dataset_name)
            for values in ap.values():
                values[:] = np.nan
        if self._distributed and not comm.is_main_process():
            return None
        results: dict[str, Any] = {"protocol": self._protocol, **self._numbers("all", counts, ap["all"])}
        for images in self._labelling:
            results[IMAGE_SETS[images]] = self._numbers(images, counts, ap[images])
        if pairs is not None and num_absences:
            for task, mask in self._tasks.items():
                # The images with a positive among the classes that are ranked.
                images = "labelled_any" if mask.all() and "labelled_any" in self._labelling else "labelled"
                results[IMAGE_SETS[images]][f"{task}_mAP_BiAM".lstrip("_")] = self._mean_of_biam(pairs, mask)
        results["num_classes"] = {
            task or "all": [int((~np.isnan(ap["all"][mask])).sum()), int(mask.sum())] for task, mask in self._tasks.items()
        }
        results["AP"] = {
            name: None if np.isnan(value) else float(value) for name, value in zip(self._split.names, ap["all"], strict=True)
        }
        logger.info("%s\n%s", self._dataset_name, format_multilabel_table({self._dataset_name: results}))
        return results

    def _gathered_counts(self) -> dict[tuple[str, str], Counts]:
        parts = comm.gather(self._counts) if self._distributed else [self._counts]
        total = {key: Counts() for key in self._counts}
        for part in parts:
            for key, counts in part.items():
                total[key].add(counts)
        return total

    def _gathered_pairs(self) -> dict[str, npt.NDArray[Any]]:
        """The annotated pairs of all processes, on the main one, the images numbered through."""
        pairs = self._annotations.arrays()
        parts = comm.gather((pairs, self._num_images)) if self._distributed else [(pairs, self._num_images)]
        if not parts:
            return pairs
        starts = np.cumsum([0, *(num_images for _, num_images in parts)])
        shifted = [{**part, "image": part["image"] + start} for (part, _), start in zip(parts, starts[:-1], strict=True)]
        return {key: np.concatenate([part[key] for part in shifted]) for key in pairs}

    @staticmethod
    def _mean_of_biam(pairs: Mapping[str, npt.NDArray[Any]], mask: BoolArray) -> float | None:
        """BiAM's mean over the classes of ``mask``, in percent: of all of them for ZSL, of the annotated ones for GZSL."""
        inside = mask[pairs["klass"]]
        positive_images = np.unique(pairs["image"][inside & pairs["positive"]])
        inside &= np.isin(pairs["image"], positive_images)
        image, klass, score, positive = (pairs[key][inside] for key in ("image", "klass", "score", "positive"))
        if not len(image):
            return None
        ap = pooled_average_precision(image, klass, score, positive, len(mask))
        averaged = np.isin(np.arange(len(mask)), klass) if mask.all() else mask
        return 100 * float(np.nan_to_num(ap[averaged]).mean())

    def _columns(self) -> Iterator[tuple[int, Float32Array, BoolArray, FlagArray]]:
        """For each class: its index, and scores, presence and image sets (a bit each) of the images ranked for it.

        On the main process; the others take part in gathering and yield nothing.
        """
        labels = self._annotations.arrays()
        flags = np.concatenate([np.empty(0, dtype=np.uint8), *self._flags])
        order = np.argsort(labels["klass"], kind="stable")
        klass, image, positive = (labels[name][order] for name in ("klass", "image", "positive"))
        for start in range(0, len(self._split), _CLASSES_PER_BLOCK):
            stop = min(start + _CLASSES_PER_BLOCK, len(self._split))
            part = slice(*np.searchsorted(klass, (start, stop)))
            if self._scores is not None:
                present = np.zeros((stop - start, self._num_images), dtype=bool)
                present[klass[part] - start, image[part]] = True
                block: Any = (self._scores.columns(start, stop), present, flags)
            else:
                block = (klass[part], labels["score"][order[part]], positive[part], flags[image[part]])
            blocks = comm.gather(block) if self._distributed else [block]
            if not blocks:
                continue
            if self._scores is not None:
                scores, present = (np.concatenate([b[i] for b in blocks], axis=1) for i in (0, 1))
                of_all = np.concatenate([b[2] for b in blocks])
                for row in range(stop - start):
                    yield start + row, scores[row], present[row], of_all
            else:
                classes, *columns = (np.concatenate([b[i] for b in blocks]) for i in range(4))
                for k in range(start, stop):
                    score, present, of_class = (column[classes == k] for column in columns)
                    yield k, score, present, of_class

    def _numbers(self, images: str, counts: Mapping[tuple[str, str], Counts], ap: npt.NDArray[Any]) -> dict[str, Any]:
        numbers: dict[str, Any] = {}
        for task, mask in self._tasks.items():
            prefix = f"{task}_" if task else ""
            known = ~np.isnan(ap[mask])
            numbers[f"{prefix}mAP"] = float(ap[mask][known].mean()) if known.any() else None
            numbers[f"{prefix}mAP_all_classes"] = float(np.nan_to_num(ap[mask]).mean()) if known.any() else None
            count = counts[task, images]
            for k, hits in zip(self._top_k, count.hits, strict=False):  # no hits at all without an image
                values = precision_recall_f1(int(hits), count.images, count.positives, k)
                numbers.update(zip((f"{prefix}P@{k}", f"{prefix}R@{k}", f"{prefix}F1@{k}"), values, strict=True))
            numbers["num_images"] = count.images
        return numbers


def build_evaluator(cfg: CfgNode, dataset_name: str) -> MultiLabelEvaluator:
    """The evaluator of the protocol that the data set was registered with; it saves what ``TEST.SAVE_PREDICTIONS`` says."""
    return MultiLabelEvaluator(
        dataset_name, top_k=cfg.TEST.TOP_K, output_dir=cfg.OUTPUT_DIR, save_predictions=cfg.TEST.SAVE_PREDICTIONS
    )


def tasks_of(split: ClassSplit, protocol: str) -> dict[str, BoolArray]:
    """{prefix of the numbers: (K,) bool, the classes that are ranked}.

    Raises:
        ValueError: unknown protocol.
    """
    every = np.ones(len(split), dtype=bool)
    tasks = {"GZSL": {"ZSL": split.unseen_mask, "GZSL": every}, "ZSL": {"ZSL": every}, "supervised": {"": every}}
    if protocol not in tasks:
        raise ValueError(f"unknown protocol {protocol!r}: use {', '.join(tasks)}")
    return tasks[protocol]


def table_of_results(results: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row per data set, task and set of images.

    Args:
        results: {data set: what :meth:`MultiLabelEvaluator.report` returns}.

    Returns:
        texts, percent; "-" where a number is not defined.
    """
    first = ["data set", "task", "image set", "images", "classes", "mAP", "mAP, none = 0"]
    rows, headings = [], first
    if any("mAP_BiAM" in key for numbers in results.values() for source in _sets(numbers).values() for key in source):
        headings = first = [*first, "mAP, BiAM's"]
    for dataset, numbers in results.items():
        for task, (with_positive, every) in numbers["num_classes"].items():
            prefix = "" if task == "all" else f"{task}_"
            for images, source in _sets(numbers).items():
                top = [key.removeprefix(prefix) for key in source if "@" in key and key.startswith(prefix)]
                headings = [*first, *top]
                means = ("mAP", "mAP_all_classes", "mAP_BiAM")[: len(first) - 5]
                values = [source.get(f"{prefix}{key}") for key in (*means, *top)]
                shown = ["-" if value is None else f"{value:.1f}" for value in values]
                label = "classification" if task == "all" else task
                counts = [str(source["num_images"]), f"{with_positive} of {every}"]
                rows.append([dataset, label, images.replace("_", ", "), *counts, *shown])
    return headings, rows


def _sets(numbers: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """{set of images: its numbers}."""
    return {"all": numbers, **{name: numbers[key] for name, key in IMAGE_SETS.items() if key in numbers}}


def format_multilabel_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """:func:`table_of_results` as a text table."""
    headings, rows = table_of_results(results)
    return tabulate(rows, headers=headings, tablefmt="github", disable_numparse=True)
