"""Looking a registered data set over: counts, damaged files, label values, class frequencies, a contact sheet.

K is the number of classes of the data set's vocabulary.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from PIL import Image, ImageDraw
from tabulate import tabulate

from .preparation import map_jobs, whole_file
from .sem_seg import IGNORE_LABEL, DatasetDict, LabelTable, read_label

Counts = npt.NDArray[np.int64]
_RECORDS_PER_JOB = 16
_TILE_WIDTH, _TILE_HEIGHT = 320, 240  # of a contact sheet, in pixels
_LEGEND_LINE = 14


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
            f"faults: {len(self.problems)}",
            *(f"  {problem}" for problem in self.problems[:rows]),
        ]
        if len(self.problems) > rows:
            lines.append(f"  ... and {len(self.problems) - rows} more, in faults.txt")
        order = np.argsort(-self.images, kind="stable")
        shown = order if len(order) <= 2 * rows else np.concatenate([order[:rows], order[-rows:]])
        table = [
            [self.class_names[k], "unseen" if self.unseen[k] else "seen", int(self.images[k]), int(self.amount[k])]
            for k in shown
        ]
        lines.append(tabulate(table, headers=["class", "", "images", self.amount_name], tablefmt="github"))
        if len(shown) < len(order):
            lines.append(f"the {rows} most and the {rows} least frequent of {len(order)} classes; all are in classes.csv")
        return "\n".join(lines)

    def save(self, folder: Path) -> None:
        """Write ``classes.csv`` and ``faults.txt``."""
        with whole_file(folder / "classes.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["class", "unseen", "images", self.amount_name])
            for name, unseen, images, amount in zip(self.class_names, self.unseen, self.images, self.amount, strict=True):
                writer.writerow([name, int(unseen), int(images), int(amount)])
        with whole_file(folder / "faults.txt") as temporary:
            Path(temporary).write_text("".join(f"{problem}\n" for problem in self.problems), encoding="utf-8")


@dataclass(frozen=True)
class _Found:
    """What one job has counted."""

    problems: list[str]
    images: Counts
    amount: Counts
    without_label: int


_Job = tuple[list[DatasetDict], "LabelTable | None", int]


def _load_photo(record: DatasetDict) -> npt.NDArray[np.uint8]:
    """(H, W, 3) RGB, upright.

    Raises:
        ValueError: missing, unreadable or truncated; the file is named.
    """
    try:
        return np.asarray(read_image(record["file_name"], format="RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"image {record['file_name']} is missing, unreadable or truncated: {error}") from error


def _inspect(job: _Job) -> _Found:
    records, table, num_classes = job
    problems: list[str] = []
    images, amount = np.zeros((2, num_classes), dtype=np.int64)
    without_label = 0
    for record in records:
        photo = None
        try:
            photo = _load_photo(record)
        except ValueError as error:
            problems.append(str(error))
        if table is None:
            images[record["positive_labels"]] += 1
            amount[record["negative_labels"]] += 1
            without_label += len(record["positive_labels"]) == 0
            continue
        try:
            label = read_label(record["sem_seg_file_name"], table)
        except (ValueError, FileNotFoundError) as error:
            problems.append(str(error))
            continue
        if photo is not None and photo.shape[:2] != label.shape:
            problems.append(_size_fault(record, photo.shape[:2], label.shape))
        pixels = np.bincount(label[label != IGNORE_LABEL], minlength=num_classes)
        images += pixels > 0
        amount += pixels
        without_label += not pixels.any()
    return _Found(problems, images, amount, without_label)


def _size_fault(record: DatasetDict, photo: tuple[int, ...], label: tuple[int, ...]) -> str:
    fault = (
        f"{record['file_name']} is {photo[1]}x{photo[0]} pixels, its label {record['sem_seg_file_name']} "
        f"{label[1]}x{label[0]}"
    )
    if photo[::-1] == label:
        fault += ": the image is turned by its EXIF orientation, the label is not"
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
    records, meta = _registered(name)
    table: LabelTable | None = meta.get("label_table")
    report = Report(
        name,
        meta.protocol,
        meta.class_split.names,
        meta.class_split.unseen_mask,
        len(records),
        "pixels" if table is not None else "verified absent",
    )
    chosen = _evenly(len(records), limit)
    report.num_checked = len(chosen)
    jobs: list[_Job] = [
        ([records[i] for i in chosen[start : start + _RECORDS_PER_JOB]], table, len(report.class_names))
        for start in range(0, len(chosen), _RECORDS_PER_JOB)
    ]
    for found in map_jobs(_inspect, jobs, workers, f"{name}, {_RECORDS_PER_JOB} images each"):
        report.problems += found.problems
        report.images += found.images
        report.amount += found.amount
        report.without_label += found.without_label
    report.problems.sort()
    return report


def _registered(name: str) -> tuple[Any, Any]:
    """(dataset dicts, metadata) of a data set of this project."""
    if name not in DatasetCatalog.list():
        raise ValueError(
            f"no data set {name!r} is registered; `python -m zeroshot_d2.datasets list` shows the names, "
            "--import FILE runs a script that registers your own"
        )
    meta = MetadataCatalog.get(name)
    if not hasattr(meta, "class_split"):
        raise ValueError(f"data set {name!r} has no class split: it is not registered by register_sem_seg or _multilabel")
    return DatasetCatalog.get(name), meta


def _evenly(count: int, limit: int | None) -> list[int]:
    """At most ``limit`` indices below ``count``, evenly spaced, the first and the last among them."""
    if limit is None or limit >= count:
        return list(range(count))
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    return sorted({round(i) for i in np.linspace(0, count - 1, limit)})


# ------------------------------------------------------------------------------------------------ contact sheet
def contact_sheet(name: str, file: str | os.PathLike[str], count: int = 12, columns: int = 4) -> None:
    """Draw ``count`` images of a data set, evenly spaced, with their labels laid over and named; unseen names
    have a ``*``.

    Files that cannot be read are drawn as a grey tile with the fault.
    """
    records, meta = _registered(name)
    chosen = _evenly(len(records), count)
    draw = _draw_sem_seg if hasattr(meta, "label_table") else _draw_multilabel
    tiles = [_tile(records[i], meta, draw) for i in chosen]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("RGB", (columns * (_TILE_WIDTH + 8), sum(heights) + 8 * len(rows)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for k, tile in enumerate(row):
            sheet.paste(tile, (k * (_TILE_WIDTH + 8), top))
        top += height + 8
    with whole_file(file) as temporary:
        sheet.save(temporary, format="PNG")


_Legend = list[tuple[tuple[int, int, int], str]]
_Drawing = Callable[[DatasetDict, Any], tuple[Image.Image, _Legend]]


def _draw_sem_seg(record: DatasetDict, meta: Any) -> tuple[Image.Image, _Legend]:
    """The photo with its labels laid over, and a colour and name for each class in it, largest first."""
    photo = _load_photo(record)
    label = read_label(record["sem_seg_file_name"], meta.label_table)
    if label.shape != photo.shape[:2]:
        raise ValueError(_size_fault(record, photo.shape[:2], label.shape))
    labelled = label != IGNORE_LABEL
    colors = np.array(meta.stuff_colors, dtype=np.float64)
    photo = photo.copy()
    photo[labelled] = 0.5 * photo[labelled] + 0.5 * colors[label[labelled]]
    classes, pixels = np.unique(label[labelled], return_counts=True)
    names = _starred(meta)
    return Image.fromarray(photo), [(meta.stuff_colors[k], names[k]) for k in classes[np.argsort(-pixels)]]


def _draw_multilabel(record: DatasetDict, meta: Any) -> tuple[Image.Image, _Legend]:
    """The photo, and its labels: black where present, red where verified to be absent."""
    names = _starred(meta)
    legend: _Legend = [((0, 0, 0), names[k]) for k in record["positive_labels"]]
    legend += [((200, 0, 0), f"not {names[k]}") for k in record["negative_labels"]]
    return Image.fromarray(_load_photo(record)), legend


def _starred(meta: Any) -> list[str]:
    split = meta.class_split
    return [f"{name} *" if unseen else name for name, unseen in zip(split.names, split.unseen_mask, strict=True)]


def _tile(record: DatasetDict, meta: Any, draw: _Drawing) -> Image.Image:
    try:
        photo, legend = draw(record, meta)
    except (ValueError, FileNotFoundError) as error:
        photo, legend = Image.new("RGB", (_TILE_WIDTH, _TILE_HEIGHT), "lightgrey"), []
        fault = str(error)
        lines = [fault[start : start + 50] for start in range(0, len(fault), 50)][:12]
        ImageDraw.Draw(photo).multiline_text((6, 6), "\n".join(lines), fill="black")
    photo.thumbnail((_TILE_WIDTH, _TILE_HEIGHT))
    legend = legend[:10]
    tile = Image.new("RGB", (_TILE_WIDTH, _TILE_HEIGHT + _LEGEND_LINE * (1 + len(legend))), "white")
    tile.paste(photo, (0, 0))
    pen = ImageDraw.Draw(tile)
    pen.text((2, _TILE_HEIGHT), str(record["image_id"])[-50:], fill="grey")
    for line, (color, text) in enumerate(legend, start=1):
        y = _TILE_HEIGHT + line * _LEGEND_LINE
        pen.rectangle((2, y + 2, 12, y + 12), fill=color)
        pen.text((18, y), text[:50], fill="black")
    return tile
