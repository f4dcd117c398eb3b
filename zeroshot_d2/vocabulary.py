"""Which vocabulary an input is to be recognised with, and how one is typed or read from a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from .class_split import ClassSplit
from .storage import read_lines

VocabularyLike = ClassSplit | Iterable[str]


def vocabulary_from_names(names: Iterable[str]) -> ClassSplit:
    """Your own vocabulary; a name may list synonyms ("tree|bush"), of which the first is displayed.

    Raises:
        ValueError: it is empty, has duplicates, or is one text instead of a list of names.
    """
    if isinstance(names, str):
        raise ValueError(f"the vocabulary must be a list of names, got the text {names!r}")
    prompts = tuple(names)
    return ClassSplit(names=tuple(_displayed(name) for name in prompts), prompts=prompts)


def _displayed(name: str) -> str:
    """The first synonym; what is no text stays as it is, for ClassSplit to refuse."""
    return name.split("|")[0].strip() if isinstance(name, str) else name


def as_vocabulary(vocabulary: VocabularyLike) -> ClassSplit:
    """A :class:`ClassSplit` as it is, or :func:`vocabulary_from_names`."""
    return vocabulary if isinstance(vocabulary, ClassSplit) else vocabulary_from_names(vocabulary)


def parse_names(text: str) -> list[str]:
    """Names as typed: separated by commas or line breaks, in their order."""
    return [name.strip() for name in text.replace("\n", ",").split(",") if name.strip()]


def read_names(text: str) -> list[str]:
    """The value of an option that takes names: a file with a name per line, or names separated by commas.

    In a file, empty lines and those that begin with ``#`` do not count. A text that ends in ``.txt``, or names a file that
    is there, is a file.

    Raises:
        FileNotFoundError: a ``.txt`` file that does not exist.
        ValueError: as :func:`zeroshot_d2.storage.read_lines`; a line holds a tab.
    """
    if not text.lower().endswith(".txt") and not os.path.isfile(text):  # Path.is_file() fails at texts longer than a name
        return parse_names(text)
    lines = read_lines(text, "class list")
    for line in lines:
        if "\t" in line:
            raise ValueError(f"the class list {text} has a tab in {line!r}: write one class a line, its synonyms behind '|'")
    return parse_names(lines[0]) if len(lines) == 1 else lines


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
