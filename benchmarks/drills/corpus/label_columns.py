"""Labels of multi-label sets: in memory, from a function, and in a file of columns."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog

from zeroshot_d2 import ClassSplit, register_multilabel
from zeroshot_d2.commands import check
from zeroshot_d2.multilabel.columns import LabelColumns
from zeroshot_d2.multilabel.mapper import check_labels

from .case import Case, CommandRefused, command, damaged, not_a_file, save_photo, write

KIND = "label_columns"
SPLIT = ClassSplit(("cat", "dog", "sky"), unseen=("dog",))
_numbers = itertools.count()


def _registered(labels: Any, folder: Path, **options: Any) -> list[dict[str, Any]]:
    name = f"fuzz_columns_{next(_numbers)}"
    register_multilabel(name, SPLIT, folder / "images", labels, **options)
    records = DatasetCatalog.get(name)
    found = [records[index] for index in range(len(records))]
    for record in found:
        check_labels(record, required=True)
    if hasattr(records, "class_counts"):
        records.class_counts()
    return found


def _positives(*expected: list[int]) -> Callable[[list[dict[str, Any]]], bool]:
    return lambda records: [record["positive_labels"].tolist() for record in records] == list(expected)


def _given(name: str, labels: Any, words: tuple[str, ...] | None, *expected: list[int], **options: Any) -> Case:
    reads = _positives(*expected) if expected else None
    return Case(KIND, f"in memory: {name}", lambda folder: _registered(labels, folder, **options), words, reads)


def _columns(**replaced: Any) -> dict[str, Any]:
    """The arrays of a file: image a.jpg has cat and not dog, b/c.jpg sky."""
    good = {
        "class_ids": np.array(SPLIT.names),
        "path_bytes": np.frombuffer(b"a.jpgb/c.jpg", np.uint8),
        "path_ends": np.array([0, 5, 12]),
        "row_ends": np.array([0, 2, 3]),
        "classes": np.array([0, 1, 2], np.int32),
        "signs": np.array([1, -1, 1], np.int8),
    }
    return {name: array for name, array in {**good, **replaced}.items() if array is not None}


def _file(name: str, content: bytes | Callable[[Path], Any], words: tuple[str, ...] | None, reads: Any = None) -> Case:
    def run(folder: Path) -> Any:
        path = folder / "labels.npz"
        content(path) if callable(content) else write(path, content)
        return _registered(path, folder)

    return Case(KIND, f"file: {name}", run, None if words is None else ("labels.npz", *words), reads)


def _npz(name: str, words: tuple[str, ...] | None, reads: Any = None, **arrays: Any) -> Case:
    return _file(name, lambda path: np.savez(path, **_columns(**arrays)), words, reads)


def _build(name: str, words: tuple[str, ...], **replaced: Any) -> Case:
    arguments = {"class_ids": SPLIT.names, "paths": ["a.jpg", "b.jpg"], "image": [0, 1], "classes": [0, 1], "signs": [1, -1]}
    return Case(KIND, f"columns: {name}", lambda folder: LabelColumns.build(**{**arguments, **replaced}), words, None)


def _checked(name: str, labels: dict[str, list[str]], words: tuple[str, ...], photos: tuple[str, ...] = ()) -> Case:
    """``check`` on a registered set: photos that are missing or damaged."""

    def run(folder: Path) -> str:
        for photo in photos:
            save_photo(folder / "images" / photo)
        write(folder / "images/damaged.jpg", b"\xff\xd8\xff\xe0 not whole")
        register_multilabel("fuzz_checked", SPLIT, folder / "images", labels, replace=True)
        if check.main(["fuzz_checked", "--workers", "1", "--output", str(folder / "out")]):
            raise CommandRefused((folder / "out/faults.txt").read_text().strip())
        return "no fault"

    return Case(KIND, f"check: {name}", run, words, None)


def cases(rng: random.Random) -> list[Case]:
    objects = np.array([0, 1, 2], dtype=object)

    def broken(path: Path, number: int) -> None:
        np.savez(path, **_columns())
        write(path, list(damaged(path.read_bytes(), random.Random(number), 3, 0))[number % 3][1])

    found = [_file(f"{what}", content, ()) for what, content in not_a_file().items()]
    found += [_file(f"cut off, {number}", lambda path, number=number: broken(path, number), ()) for number in range(8)]
    found += [
        _given("names", {"a.jpg": ["cat", "sky"], "b.jpg": []}, None, [0, 2], []),
        _given("signs", {"a.jpg": {"cat": 1, "dog": -1}}, None, [0]),
        _given("a function", lambda: {"a.jpg": ["cat"]}, None, [0]),
        _given("a tuple of names", {"a.jpg": ("cat",)}, None, [0]),
        _given("an iterator of names", {"a.jpg": iter(["cat", "sky"])}, None, [0, 2]),
        _given("a class that is none", {"a.jpg": ["bird"]}, ("a.jpg", "'bird'")),
        _given("such a class, ignored", {"a.jpg": ["bird", "cat"]}, None, [0], other_labels="ignore"),
        _given("a text", {"a.jpg": "cat"}, ("a.jpg", "'cat'")),
        _given("None", {"a.jpg": None}, ("a.jpg", "None")),
        _given("NaN", {"a.jpg": float("nan")}, ("a.jpg", "nan")),
        _given("NaN among names", {"a.jpg": ["cat", float("nan")]}, ("a.jpg", "nan")),
        _given("numbers", {"a.jpg": [0, 2]}, ("a.jpg", "0")),
        _given("sign 0", {"a.jpg": {"cat": 0}}, ("a.jpg", "'cat'", "0")),
        _given("sign 2", {"a.jpg": {"cat": 2}}, ("a.jpg", "'cat'", "2")),
        _given("sign 257", {"a.jpg": {"cat": 257}}, ("a.jpg", "'cat'", "257")),
        _given("sign 0.5", {"a.jpg": {"cat": 0.5}}, ("a.jpg", "'cat'", "0.5")),
        _given("sign NaN", {"a.jpg": {"cat": float("nan")}}, ("a.jpg", "'cat'", "nan")),
        _given("sign True", {"a.jpg": {"cat": True}}, ("a.jpg", "'cat'", "True")),
        _given("sign yes", {"a.jpg": {"cat": "yes"}}, ("a.jpg", "'cat'", "'yes'")),
        _given("a number as image", {7: ["cat"]}, ("7",)),
        _given("a path object as image", {Path("a.jpg"): ["cat"]}, ("a.jpg",)),
        _given("an empty name of an image", {"": ["cat"]}, ("''",)),
        _given("no image", {}, ("no image",)),
        _given("two spellings of one image", {"a/1.jpg": ["cat"], "a\\1.jpg": ["dog"]}, ("a/1.jpg",)),
        _given("an image outside", {"../a.jpg": ["cat"]}, ("../a.jpg",)),
        _given("an absolute path", {"/etc/passwd": ["cat"]}, ("/etc/passwd",)),
        _given("a list of images", ["a.jpg"], ("['a.jpg']",)),
        _given("a function that returns a list", lambda: ["a.jpg"], ("['a.jpg']",)),
        _given("a function that returns None", lambda: None, ("None",)),
        _given("other_labels skip", {"a.jpg": ["cat"]}, ("'skip'",), other_labels="skip"),
        _given("too few class ids", {"a.jpg": ["cat"]}, ("2 class ids",), class_ids=("a", "b")),
        _given("class ids twice", {"a.jpg": ["cat"]}, ("2 of them",), class_ids=("a", "b", "b")),
        _given("an unknown vocabulary", {"a.jpg": ["cat"]}, ("'both'",), vocabulary="both"),
        _npz("as it should be", None, _positives([0], [2])),
        _npz("a column is missing", ("signs",), signs=None),
        _npz("class ids as objects", ("class_ids",), class_ids=np.array(SPLIT.names, dtype=object)),
        _npz("classes as objects", ("classes",), classes=objects),
        _npz("paths as objects", ("path_bytes",), path_bytes=np.array([97, 98], dtype=object)),
        _npz("classes as fractions", ("classes",), classes=np.array([0, 1.5, 2])),
        _npz("classes as 64 bits", ("classes",), classes=np.array([0, 1, 2], np.int64)),
        _npz("a class index beyond the classes", ("3",), classes=np.array([0, 1, 3], np.int32)),
        _npz("a negative class index", ("-1",), classes=np.array([0, 1, -1], np.int32)),
        _npz("a sign of 0", ("0",), signs=np.array([1, 0, 1], np.int8)),
        _npz("a sign of 7", ("7",), signs=np.array([1, 7, 1], np.int8)),
        _npz("rows that end too early", (), row_ends=np.array([0, 2, 2])),
        _npz("rows that go back", (), row_ends=np.array([0, 5, 3])),
        _npz("rows that begin behind 0", (), row_ends=np.array([1, 2, 3])),
        _npz("paths that go back", (), path_ends=np.array([0, 30, 12])),
        _npz("paths that are no UTF-8", (), path_bytes=np.full(12, 255, np.uint8)),
        _npz("a path that leads outside", ("../c.jp",), path_bytes=np.frombuffer(b"a.jpg../c.jp", np.uint8)),
        _npz(
            "an absolute path",
            ("/etc/hos",),
            path_bytes=np.frombuffer(b"a.jp/etc/hos", np.uint8),
            path_ends=np.array([0, 4, 12]),
        ),
        _npz("an empty path", (), path_ends=np.array([0, 0, 12])),
        _npz("two dimensions", ("classes",), classes=np.zeros((3, 1), np.int32)),
        _npz("a class that the split does not have", ("bird",), class_ids=np.array(["cat", "dog", "bird"])),
        _npz("a class id twice", ("cat",), class_ids=np.array(["cat", "dog", "cat"])),
        _npz(
            "no image",
            (),
            path_ends=np.array([0]),
            row_ends=np.array([0]),
            path_bytes=np.zeros(0, np.uint8),
            classes=np.zeros(0, np.int32),
            signs=np.zeros(0, np.int8),
        ),
        _file("compressed", lambda path: np.savez_compressed(path, **_columns()), ("compressed",)),
        _file("another program's arrays", lambda path: np.savez(path, labels=np.eye(3)), ("class_ids",)),
        _file("a folder", Path.mkdir, ()),
        _file("absent", lambda path: None, ()),
        _build("sign 255", ("255",), signs=np.array([1, 255], np.uint8)),
        _build("sign 1.9", ("1.9",), signs=[1, 1.9]),
        _build("class 1.7", ("1.7",), classes=[0, 1.7]),
        _build("class 3", ("3",), classes=[0, 3]),
        _build("image -1", ("-1",), image=[0, -1]),
        _build("too few signs", ("1 signs",), signs=[1]),
        _build("texts as signs", ("'+'",), signs=["+", "-"]),
        _build("an image twice", ("a.jpg",), paths=["a.jpg", "a.jpg"]),
        _build("a class id twice", ("'cat'",), class_ids=("cat", "cat", "dog")),
        _checked("a photo is missing", {"a.jpg": ["cat"], "b.jpg": ["dog"]}, ("b.jpg",), ("a.jpg",)),
        _checked("a photo is damaged", {"a.jpg": ["cat"], "damaged.jpg": ["dog"]}, ("damaged.jpg",), ("a.jpg",)),
        Case(KIND, "check: a set that is not registered", lambda folder: command("check", "absent"), ("'absent'",), None),
    ]
    return found
