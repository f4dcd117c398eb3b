"""Which vocabulary an input is to be recognised with, and how one is typed or read from a file."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from .class_split import ClassSplit, comparable, first_text
from .storage import read_lines

VocabularyLike = ClassSplit | Iterable[str]

LONGEST_NAME = 1000
"""Characters of a class with its synonyms; a text encoder reads some 300 of each, and far longer texts take it minutes."""

# Endings of files that people keep lists in: a text that ends so is a file, not a class.
_LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".yaml", ".yml", ".xml", ".md", ".lst", ".names")
_NUMBERED = re.compile(r"(\d+)[\s:,;.)]+\S")
_WRAPPED = re.compile(r"""^[\["'{(<].*|.*[]"'})>,:]$|^[-*\u2022]\s.*""")


def vocabulary_from_names(names: Iterable[str]) -> ClassSplit:
    """Your own vocabulary; a name may list synonyms ("tree|bush"), of which the first is displayed, with weights if you like
    ("tree *2|bush").

    Raises:
        ValueError: it is empty, is one text instead of a list of names, has a name twice (also in another case or spelling),
            or a name that is none: blank, overlong, without a letter.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        what = f"the text {names!r}" if isinstance(names, str) else repr(names)
        raise ValueError(f"the vocabulary must be a list of names, got {what}")
    prompts = tuple(names)
    for name in prompts:
        _check_name(name)
    split = ClassSplit(names=tuple(map(first_text, prompts)), prompts=prompts)
    first: dict[str, str] = {}
    for name in split.names:
        other = first.setdefault(comparable(name), name)
        if other is not name:
            raise ValueError(
                f"the vocabulary lists {other!r} and {name!r}, which are the same to a model: remove one of them"
            )
    return split


def _check_name(name: object) -> None:
    """Raise ValueError where a name is nothing that a text encoder can make sense of."""
    if not isinstance(name, str) or not name.split("|")[0].strip() or not first_text(name):
        raise ValueError(f"class names must be non-empty strings, got {name!r}")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"the class {name[:40]!r}... has {len(name):,} characters: give it at most {LONGEST_NAME:,}")
    if all(unicodedata.category(sign)[0] in "PZ" for sign in name.split("|")[0]):
        raise ValueError(f"the class {name!r} has neither letter nor digit: give it a word")


def as_vocabulary(vocabulary: VocabularyLike) -> ClassSplit:
    """A :class:`ClassSplit` as it is, or :func:`vocabulary_from_names`."""
    return vocabulary if isinstance(vocabulary, ClassSplit) else vocabulary_from_names(vocabulary)


def parse_names(text: str) -> list[str]:
    """Names as typed: separated by commas or line breaks, in their order."""
    return [name.strip() for name in text.replace("\n", ",").split(",") if name.strip()]


def read_names(text: str) -> list[str]:
    """The value of an option that takes names: a file with a name per line, or names separated by commas.

    In a file, empty lines and those that begin with ``#`` do not count. A text is a file where one of this name is there, or
    where it ends as files with lists do (".txt") or is a path or an address.

    Raises:
        FileNotFoundError: a file that does not exist.
        ValueError: as :func:`zeroshot_d2.storage.read_lines`; it is no list of names, but a table, JSON, or names with signs
            around them; in a file also as :func:`vocabulary_from_names`.
    """
    if not _names_a_file(text):
        names = parse_names(text)
        _check_list(names, "--vocabulary" if len(text) > 100 else repr(text))
        return names
    if "://" in text:
        raise ValueError(f"the class list {text} is an address: download the file, and give its path")
    if os.path.isdir(text):
        raise ValueError(f"the class list {text} is a folder: name the file in it")
    if not os.path.isfile(text):
        raise FileNotFoundError(f"the class list {text} does not exist (looked for it from {os.getcwd()}): correct the path")
    lines = read_lines(text, "class list")
    source = f"the class list {text}"
    if lines[0][0] in "[{":
        raise ValueError(f"{source} is JSON: write one class a line, its synonyms behind '|'")
    for line in lines:
        if "\t" in line or (text.lower().endswith((".csv", ".tsv")) and "," in line and len(lines) > 1):
            raise ValueError(
                f"{source} has {'a tab' if chr(9) in line else 'columns'} in {line!r}: write one class a line, its synonyms "
                "behind '|'"
            )
    numbers = [int(found[1]) if (found := _NUMBERED.match(line)) else None for line in lines]
    if len(lines) > 1 and numbers == list(range(numbers[0] or 0, (numbers[0] or 0) + len(lines))):
        raise ValueError(f"{source} has a number in front of each class, as in {lines[0]!r}: remove the numbers")
    names = parse_names(lines[0]) if len(lines) == 1 else lines
    _check_list(names, source)
    try:
        vocabulary_from_names(names)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return names


def _names_a_file(text: str) -> bool:
    is_path = "/" in text or "\\" in text or text in (".", "..")
    folder = os.path.dirname(text)
    return (
        text.lower().endswith(_LIST_SUFFIXES)
        or "://" in text
        or os.path.isfile(text)  # Path.is_file() fails at texts longer than a name
        or (is_path and "," not in text and (text.startswith((".", "/", "~")) or os.path.isdir(folder)))
    )


def _check_list(names: Sequence[str], source: str) -> None:
    """Raise ValueError where names still have the signs of another notation around them, or between them."""
    for name in names:
        if ";" in name or _WRAPPED.fullmatch(name):
            raise ValueError(
                f"{source} holds {name!r}: write names without brackets, quotes and dashes, one a line or between commas"
            )


def is_registered(dataset: str) -> bool:
    """Whether a data set of this name is registered with a class split."""
    return dataset in DatasetCatalog.list() and hasattr(MetadataCatalog.get(dataset), "class_split")


def split_of_dataset(name: str) -> ClassSplit:
    """The class split that the data set ``name`` was registered with.

    Raises:
        ValueError: it is not registered, or has none.
    """
    if name not in DatasetCatalog.list():
        raise ValueError(
            f"no data set {name!r} is registered: `--import FILE` runs the file that registers it, "
            "`python -m zeroshot_d2 datasets list` shows the names"
        )
    if not is_registered(name):
        raise ValueError(
            f"the data set {name!r} has no class split: register it with zeroshot_d2.register_sem_seg or "
            "register_multilabel, or set MetadataCatalog.get(name).class_split"
        )
    return MetadataCatalog.get(name).class_split


def vocabulary_of(inputs: Mapping[str, Any], default: ClassSplit | None) -> ClassSplit:
    """The "vocabulary" of an input (class names or a ClassSplit), else that of its "dataset_name", else ``default``.

    Raises:
        ValueError: none of them is there, or the vocabulary is empty or has duplicates.
    """
    if "vocabulary" in inputs:
        return as_vocabulary(inputs["vocabulary"])
    if "dataset_name" in inputs:
        return split_of_dataset(inputs["dataset_name"])
    if default is None:
        raise ValueError(
            'the input has neither a "vocabulary" nor a "dataset_name", and cfg.DATASETS.TEST names no data set '
            "whose vocabulary could be used"
        )
    return default


def training_vocabulary(batched_inputs: Sequence[Mapping[str, Any]], default: ClassSplit | None) -> ClassSplit:
    """The one vocabulary of a training batch.

    Raises:
        ValueError: its data sets have different ones.
    """
    first, *others = {vocabulary_of(inputs, default) for inputs in batched_inputs}
    if others:
        raise ValueError(
            "one training batch mixes data sets of different vocabularies "
            f"({len(first)} and {len(others[0])} classes): train on data sets that share one"
        )
    return first
