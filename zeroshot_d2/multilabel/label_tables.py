"""Image-level labels from a table of yours: CSV, a row per image or per label, or JSON.

::

    image,labels            image,label,sign        {"a.jpg": ["cat", "tree"],
    a.jpg,cat|tree          a.jpg,cat,1              "b.jpg": {"cat": 1, "dog": -1}}
    b.jpg,                  a.jpg,dog,-1

The heading says which of the two kinds of CSV it is; ``sign`` may be left out, other columns are not read.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..storage import PathLike, read_text

SUFFIXES = (".csv", ".json")
SEPARATOR = "|"

_SIGNS = {"1": 1, "+1": 1, "-1": -1}

Table = dict[str, dict[str, int]]


def read_label_table(file: PathLike) -> Table:
    """{relative path of an image: {label: +1 present, -1 verified to be absent}}, in the table's order.

    Args:
        file: a table as above, in UTF-8 or UTF-16, ending in .csv or .json.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such table; the line or the image is named.
    """
    path = Path(file)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"the label table {path} must end in {' or '.join(SUFFIXES)}: name it by what it is")
    text = read_text(path, "label table")
    try:
        table = _from_json(text) if path.suffix.lower() == ".json" else _from_csv(text)
    except ValueError as error:  # JSONDecodeError is one
        raise ValueError(f"the label table {path}: {error}") from error
    if not table:
        raise ValueError(f"the label table {path} names no image: is it the right file?")
    return table


def label_names(table: Table) -> list[str]:
    """Every label of a table, sorted: the names for a :class:`~zeroshot_d2.class_split.ClassSplit`."""
    return sorted({label for labels in table.values() for label in labels})


def _from_csv(text: str) -> Table:
    # As Excel saves it in many countries, a semicolon stands between the columns.
    first = text.partition("\n")[0]
    separator = ";" if ";" in first and "," not in first else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        heading = [name.strip().lower() for name in next(rows, [])]
        kinds = {"labels", "label"} & set(heading)
        if "image" not in heading or len(kinds) != 1 or len(set(heading)) != len(heading):
            raise ValueError(
                f"its first line must name the columns image and labels, or image, label and, if you like, sign, got "
                f"{','.join(heading)[:100]!r}"
            )
        entries = _rows_of_images(heading, rows) if kinds == {"labels"} else _rows_of_labels(heading, rows)
        table: Table = {}
        for image, label, sign in entries:
            labels = table.setdefault(image, {})
            if label and labels.setdefault(label, sign) != sign:
                raise ValueError(f"{image} is said to have {label!r} and not to have it: remove one of them")
    except (ValueError, csv.Error) as error:
        raise ValueError(f"line {rows.line_num}: {error}") from error
    return table


_Entry = tuple[str, str, int]  # image, label ("" for none), sign


def _rows_of_images(heading: list[str], rows: Iterator[list[str]]) -> Iterator[_Entry]:
    seen = set()
    for row in filter(None, rows):
        image, labels = _cells(heading, row, "image", "labels")
        if image in seen:
            raise ValueError(f"{image} has a row already: put all of its labels into one, with {SEPARATOR} between them")
        seen.add(image)
        for label in labels.split(SEPARATOR):
            yield image, label.strip(), 1


def _rows_of_labels(heading: list[str], rows: Iterator[list[str]]) -> Iterator[_Entry]:
    for row in filter(None, rows):
        image, label = _cells(heading, row, "image", "label")
        sign = _cells(heading, row, "sign")[0] if "sign" in heading else "1"
        if label and sign not in _SIGNS:
            raise ValueError(f"a sign must be 1 (present) or -1 (verified to be absent), got {sign[:40]!r}")
        yield image, label, _SIGNS[sign] if label else 1


def _cells(heading: list[str], row: list[str], *names: str) -> list[str]:
    """The cells of a row in some columns."""
    if len(row) != len(heading):
        raise ValueError(f"{len(row)} cells for {len(heading)} columns: put a cell that holds a comma into quotes")
    cells = [row[heading.index(name)].strip() for name in names]
    if names[0] == "image" and not cells[0]:
        raise ValueError("the image is missing")
    return cells


def _from_json(text: str) -> Table:
    content = json.loads(text, object_pairs_hook=_without_repetition)
    if not isinstance(content, dict):
        raise ValueError("it must be an object of images, {image: [labels]} or {image: {label: 1 or -1}}")
    table: Table = {}
    for image, labels in content.items():
        signed = dict.fromkeys(labels, 1) if _is_list_of_texts(labels) else labels
        if not isinstance(signed, dict) or not all(type(sign) is int and sign in (1, -1) for sign in signed.values()):
            shown = json.dumps(labels)[:100]
            raise ValueError(f"the labels of {image} must be [labels], or {{label: 1 or -1}}, got {shown}")
        table[image] = signed
    return table


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; Python's reader would keep the last of two entries of the same name."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice in the same object: put its labels together")
    return found
