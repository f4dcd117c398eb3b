"""Tags and scores as files: what evaluation saves, and the scores that the referee reads, whoever's method made them.

N images, K classes. Saved below OUTPUT_DIR/predictions/DATA_SET:

    scores   scores.npy (N, K) float32, 4 N K bytes, with images.txt and classes.txt, the names of its rows and columns
    labels   labels.csv: a row for each of the best labels of an image
    json     predictions.json: the same as [{"image", "labels": [{"index", "name", "unseen", "score"}]}]

An image's name is its id in the data set, the path relative to the folder of images. The best labels are as many as the
largest K of TEST.TOP_K. Only scores tell AP, so only they can be scored.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from detectron2.utils import comm

from ..class_split import ClassSplit
from ..joined_file import JoinedFile
from ..storage import DAMAGED_ARCHIVE, read_lines, read_npy_header, write_text
from .columns import map_npz
from .ranking import Float32Array
from .writer import COLUMNS

SCORES_FILE, IMAGES_FILE, CLASSES_FILE = "scores.npy", "images.txt", "classes.txt"
LABELS_FILE, JSON_FILE = "labels.csv", "predictions.json"

_WAY_OUT = "make it again, with numpy.savez or numpy.save"
_ROWS = 256  # images that are read at once


# --------------------------------------------------------------------------------------------------------- saving
class TagSaver:
    """Saves the scores of a data set batch by batch, in one or several processes.

    Args:
        kind: "scores", "labels" or "json".
        folder: where they go.
        split: the K classes.
        top_k: how many labels of an image, for "labels" and "json".
        distributed: whether other processes save other images of the same data set.
    """

    def __init__(self, kind: str, folder: Path, split: ClassSplit, top_k: int, *, distributed: bool) -> None:
        self._kind, self._folder, self._split, self._top_k, self._distributed = kind, folder, split, top_k, distributed
        name = {"scores": SCORES_FILE, "labels": LABELS_FILE, "json": JSON_FILE}[kind]
        self._file = JoinedFile(folder / name, distributed=distributed)
        self._images = JoinedFile(folder / IMAGES_FILE, distributed=distributed)
        self._unseen = split.unseen_mask.tolist()
        self._rows = 0

    def save(self, images: Sequence[str], scores: Float32Array) -> None:
        """Save the scores (B, K) of B images.

        Raises:
            OSError: the folder cannot be written.
        """
        self._rows += len(images)
        if self._kind == "scores":
            self._file.write(np.ascontiguousarray(scores, dtype="<f4").tobytes())
            self._images.write("".join(f"{image}\n" for image in images).encode())
            return
        text = io.StringIO()
        table = csv.writer(text)
        for image, row in zip(images, scores, strict=True):
            best = np.argsort(-row, kind="stable")[: self._top_k]
            labels = [(int(k), self._split.names[k], self._unseen[k], float(row[k])) for k in best]
            if self._kind == "labels":
                for rank, (k, name, unseen, score) in enumerate(labels, start=1):
                    table.writerow([image, rank, k, name, int(unseen), f"{score:.6g}"])
            else:
                entries = [dict(zip(("index", "name", "unseen", "score"), label, strict=True)) for label in labels]
                text.write(json.dumps({"image": image, "labels": entries}, ensure_ascii=False) + ",\n")
        self._file.write(text.getvalue().encode())

    def finish(self) -> None:
        """Complete the folder; every process must call it."""
        rows = sum(comm.all_gather(self._rows)) if self._distributed else self._rows
        if self._kind == "scores":
            head = io.BytesIO()
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, len(self._split))}
            np.lib.format.write_array_header_1_0(head, header)
            self._file.join(head.getvalue())
            self._images.join()
            if not self._distributed or comm.is_main_process():
                write_text(self._folder / CLASSES_FILE, "\n".join(self._split.names) + "\n")
        elif self._kind == "labels":
            self._file.join((",".join(COLUMNS) + "\r\n").encode())
        else:
            self._file.join(b"[\n", b",\n", b"\n]\n")

    def discard(self) -> None:
        """Forget what is not complete."""
        self._file.discard()
        self._images.discard()
        self._rows = 0


# --------------------------------------------------------------------------------------------------------- reading
@dataclass(frozen=True)
class ScoreTable:
    """Scores of N images, read some rows at a time.

    Args:
        path: of the file, for messages.
        images: N names.
        classes: the K classes in the order of the columns; None: the file does not say.
        array: (N, K), mapped into memory; None: a CSV, which is read row by row.
    """

    path: Path
    images: list[str]
    classes: list[str] | None
    array: npt.NDArray[np.floating] | None

    def blocks(self) -> Iterator[tuple[list[str], Float32Array]]:
        """(names of B images, their scores (B, K)).

        Raises:
            ValueError: a score is no number.
        """
        if self.array is not None:
            for start in range(0, len(self.images), _ROWS):
                part = slice(start, start + _ROWS)
                yield self.images[part], np.asarray(self.array[part], dtype=np.float32)
            return
        names: list[str] = []
        rows: list[list[str]] = []
        for name, row in _csv_rows(self.path):
            names.append(name)
            rows.append(row)
            if len(rows) == _ROWS:
                yield names, self._numbers(names, rows)
                names, rows = [], []
        if rows:
            yield names, self._numbers(names, rows)

    def _numbers(self, names: Sequence[str], rows: Sequence[Sequence[str]]) -> Float32Array:
        for name, row in zip(names, rows, strict=True):
            if len(row) != len(self.classes or ()):
                raise ValueError(f"{self.path}: {name} has {len(row)} scores for {len(self.classes or ())} classes")
        try:
            return np.array(rows, dtype=np.float32)
        except ValueError as error:
            raise ValueError(
                f"{self.path}: a score of {names[0]} or of the images behind it is no number ({error})"
            ) from error


def open_scores(path: Path, images: Path | None) -> ScoreTable:
    """Scores of images and classes from a folder that evaluation saved, an .npz, .npy or .csv.

    Args:
        path: a folder with scores.npy, images.txt and classes.txt; an .npz with "scores" (N, K), "images" (N,) and
            optionally "classes" (K,), uncompressed; an .npy of (N, K); or a .csv whose first line is "image" and the
            classes, and every other the name of an image and its scores.
        images: for an .npy: its images, one a line in the order of the rows.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: it is none of these.
    """
    if path.is_dir():
        files = [path / name for name in (SCORES_FILE, IMAGES_FILE, CLASSES_FILE)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ValueError(
                f"the folder {path} lacks {', '.join(missing)}, which TEST.SAVE_PREDICTIONS scores writes: labels without "
                "scores tell no AP"
            )
        classes = read_lines(files[2], "class list", comments=False)
        return _checked(path, read_lines(files[1], "image list", comments=False), classes, _map_npy(files[0]))
    if not path.is_file():
        raise FileNotFoundError(f"the predictions {path} do not exist (looked for them from {Path.cwd()})")
    kind = path.suffix.lower()
    if images is not None and kind != ".npy":
        raise ValueError(f"--images is for an .npy; {path} names its images itself")
    if kind == ".npy":
        if images is None:
            raise ValueError(f"{path} does not say which image a row is: --images FILE names them, one a line")
        return _checked(path, read_lines(images, "image list", comments=False), None, _map_npy(path))
    if kind == ".npz":
        arrays = map_npz(os.fspath(path.absolute()), "score file", _WAY_OUT)
        if not {"scores", "images"} <= arrays.keys() or arrays["images"].dtype.kind != "U":
            raise ValueError(f"{path} needs 'scores' and 'images' (texts), it has {sorted(arrays)}: {_WAY_OUT}")
        named = arrays["classes"].tolist() if "classes" in arrays else None
        return _checked(path, arrays["images"].tolist(), named, arrays["scores"])
    if kind == ".csv":
        head = next(_csv_lines(path), [])
        if head[:1] != ["image"] or len(head) < 2:
            raise ValueError(f"the first line of {path} must be 'image' and the classes, got {','.join(head)[:60]!r}")
        return ScoreTable(path, [name for name, _ in _csv_rows(path)], head[1:], None)
    raise ValueError(f"the predictions {path} must be a folder, an .npz, an .npy or a .csv")


def _checked(path: Path, images: list[str], classes: list[str] | None, scores: npt.NDArray[np.floating]) -> ScoreTable:
    if scores.ndim != 2 or scores.dtype.kind != "f":
        raise ValueError(f"the scores in {path} must be floating-point numbers of (N, K), got {scores.shape} {scores.dtype}")
    if len(images) != len(scores) or (classes is not None and len(classes) != scores.shape[1]):
        raise ValueError(
            f"{path} has {len(scores)} x {scores.shape[1]} scores for {len(images)} images"
            + ("" if classes is None else f" and {len(classes)} classes")
        )
    return ScoreTable(path, images, classes, scores)


def _map_npy(path: Path) -> npt.NDArray[np.floating]:
    try:
        with open(path, "rb") as stream:
            _, _, dtype = read_npy_header(stream)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are never read")
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGED_ARCHIVE as error:
        raise ValueError(f"{path} is no score file or is cut off ({error}): {_WAY_OUT}") from error


def _csv_lines(path: Path) -> Iterator[list[str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            yield from csv.reader(stream)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV in UTF-8 ({error}): save it anew") from error


def _csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(image, its fields) of each line behind the first."""
    lines = _csv_lines(path)
    next(lines)
    for line in lines:
        if line:
            yield line[0], line[1:]
