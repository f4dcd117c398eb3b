"""Looking a registered data set over: counts, damaged files, label values and class frequencies.

K is the number of classes of the data set's vocabulary.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate

from ..images import read_image
from ..multilabel.registration import NO_NEGATIVES
from ..pictures.style import starred
from ..registration import DatasetDict
from ..segmentation.labels import IGNORE_LABEL, LabelTable, read_label
from ..storage import whole_file, write_text
from .preparation.jobs import map_jobs

Counts = npt.NDArray[np.int64]
_RECORDS_PER_JOB = 16


@dataclass
class Report:
    """What a check has found.

    Args:
        name: the data set.
        protocol: its protocol.
        class_names: K names.
        unseen: (K,) bool.
        num_images: images of the data set.
        num_checked: images that were read.
        problems: one line per fault, naming the file.
        remarks: what is no fault of a file, but spoils the numbers.
        images: (K,) images in which the class occurs.
        amount: (K,) pixels of the class; or images verified to be without it, for image-level labels.
        amount_name: what ``amount`` is.
        without_label: images that were read and have no label of the vocabulary.
    """

    name: str
    protocol: str
    class_names: Sequence[str]
    unseen: npt.NDArray[np.bool_]
    num_images: int
    amount_name: str
    images: Counts = field(init=False)
    amount: Counts = field(init=False)
    num_checked: int = 0
    without_label: int = 0
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.images = np.zeros(len(self.class_names), dtype=np.int64)
        self.amount = np.zeros(len(self.class_names), dtype=np.int64)

    def text(self, rows: int = 20) -> str:
        """A page of text: counts, faults, and the most and least frequent classes."""
        absent = [name for name, count in zip(self.class_names, self.images, strict=True) if count == 0]
        lines = [
            f"{self.name}: {self.num_images} images, {self.num_checked} checked, {len(self.class_names)} classes, "
            f"protocol {self.protocol}",
            f"images without a label of this vocabulary: {self.without_label}",
            f"classes that do not occur: {len(absent)}" + (f" ({', '.join(absent[:10])}, ...)" if absent else ""),
            *(f"NOTE: {remark}" for remark in self.remarks),
            f"faults: {len(self.problems)}",
            *(f"  {problem}" for problem in self.problems[:rows]),
        ]
        if len(self.problems) > rows:
            lines.append(f"  ... and {len(self.problems) - rows} more, in faults.txt")
        order = np.argsort(-self.images, kind="stable")
        shown = order if len(order) <= 2 * rows else np.concatenate([order[:rows], order[-rows:]])
        table = [[starred(self.class_names[k], self.unseen[k]), int(self.images[k]), int(self.amount[k])] for k in shown]
        lines.append(tabulate(table, headers=["class (★ unseen)", "images", self.amount_name], tablefmt="github"))
        if len(shown) < len(order):
            lines.append(f"the {rows} most and the {rows} least frequent of {len(order)} classes; all are in classes.csv")
        return "\n".join(lines)

    def save(self, folder: Path) -> None:
        """Write ``classes.csv`` and ``faults.txt``."""
        with whole_file(folder / "classes.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["class", "unseen", "images", self.amount_name])
            for name, unseen, images, amount in zip(self.class_names, self.unseen, self.images, self.amount, strict=True):
                writer.writerow([name, int(unseen), int(images), int(amount)])
        write_text(folder / "faults.txt", "".join(f"{problem}\n" for problem in self.problems))


@dataclass(frozen=True)
class _Found:
    """What one job has counted."""

    problems: list[str]
    images: Counts
    amount: Counts
    without_label: int


_Job = tuple[list[DatasetDict], "LabelTable | None", int]


def _inspect(job: _Job) -> _Found:
    records, table, num_classes = job
    problems: list[str] = []
    images, amount = np.zeros((2, num_classes), dtype=np.int64)
    without_label = 0
    for record in records:
        photo = None
        try:
            photo = read_image(record["file_name"])
        except (FileNotFoundError, ValueError) as error:
            problems.append(str(error))
        if table is None:
            images[record["positive_labels"]] += 1
            amount[record["negative_labels"]] += 1
            without_label += len(record["positive_labels"]) == 0
            continue
        try:
            label = read_label(record["sem_seg_file_name"], table, photo=record["file_name"])
        except (FileNotFoundError, ValueError) as error:
            problems.append(str(error))
            continue
        if photo is not None and photo.shape[:2] != label.shape:
            problems.append(size_fault(record, photo.shape[:2], label.shape))
        pixels = np.bincount(label[label != IGNORE_LABEL], minlength=num_classes)
        images += pixels > 0
        amount += pixels
        without_label += not pixels.any()
    return _Found(problems, images, amount, without_label)


def size_fault(record: DatasetDict, photo: tuple[int, ...], label: tuple[int, ...]) -> str:
    fault = (
        f"{record['file_name']} is {photo[1]}x{photo[0]} pixels, its label {record['sem_seg_file_name']} "
        f"{label[1]}x{label[0]}"
    )
    if photo[::-1] == label:
        fault += ": one of them lies on its side"
    return fault


def check(name: str, limit: int | None = None, workers: int = 1) -> Report:
    """Read a registered data set, images and labels.

    Args:
        name: a data set of this project.
        limit: read only so many images, evenly spaced; None: all.
        workers: processes.

    Raises:
        ValueError: no such data set, or not one with a class split.
        FileNotFoundError: its folders are missing.
    """
    records, meta = registered(name)
    table: LabelTable | None = meta.get("label_table")
    report = Report(
        name,
        meta.protocol,
        meta.class_split.names,
        meta.class_split.unseen_mask,
        len(records),
        "pixels" if table is not None else "verified absent",
    )
    chosen = evenly(len(records), limit)
    report.num_checked = len(chosen)
    starts = range(0, len(chosen), _RECORDS_PER_JOB)
    jobs: Iterator[_Job] = (  # made when a worker is free: nine million records would take 6 GB
        ([records[i] for i in chosen[start : start + _RECORDS_PER_JOB]], table, len(report.class_names)) for start in starts
    )
    for found in map_jobs(_inspect, jobs, workers, f"{name}, {_RECORDS_PER_JOB} images each", len(starts)):
        report.problems += found.problems
        report.images += found.images
        report.amount += found.amount
        report.without_label += found.without_label
    report.problems.sort()
    if table is None and not meta.labels_complete and not report.amount.any():
        report.remarks.append(NO_NEGATIVES % name)
    return report


def registered(name: str) -> tuple[Any, Any]:
    """(dataset dicts, metadata) of a data set of this project."""
    if name not in DatasetCatalog.list():
        raise ValueError(
            f"no data set {name!r} is registered; `python -m zeroshot_d2 datasets list` shows the names, "
            "--import FILE runs the file that registers yours"
        )
    meta = MetadataCatalog.get(name)
    if not hasattr(meta, "class_split"):
        raise ValueError(f"data set {name!r} has no class split: it is not registered by register_sem_seg or _multilabel")
    return DatasetCatalog.get(name), meta


def evenly(count: int, limit: int | None) -> list[int]:
    """At most ``limit`` indices below ``count``, evenly spaced, the first and the last among them."""
    if limit is None or limit >= count:
        return list(range(count))
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    return sorted({round(i) for i in np.linspace(0, count - 1, limit)})
