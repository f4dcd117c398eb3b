"""Which vocabulary an input is to be recognised with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data import MetadataCatalog

from .class_split import ClassSplit


def vocabulary_from_names(names: Sequence[str]) -> ClassSplit:
    """A vocabulary of one's own; a name may list synonyms ("tree|bush"), of which the first is displayed.

    Raises:
        ValueError: it is empty or has duplicates.
    """
    return ClassSplit(names=tuple(name.split("|")[0].strip() for name in names), prompts=tuple(names))


def split_of_dataset(name: str) -> ClassSplit:
    """The class split that the data set ``name`` was registered with.

    Raises:
        ValueError: it has none.
    """
    metadata = MetadataCatalog.get(name)
    if not hasattr(metadata, "class_split"):
        raise ValueError(
            f"the data set {name!r} has no class split: register it with zeroshot_d2.register_sem_seg or "
            "register_multilabel, or set MetadataCatalog.get(name).class_split"
        )
    return metadata.class_split


def vocabulary_of(inputs: Mapping[str, Any], default_dataset: str | None) -> ClassSplit:
    """The "vocabulary" of an input (class names or a ClassSplit), else that of its "dataset_name", else of
    ``default_dataset``.

    Raises:
        ValueError: none of them is there, or the vocabulary is empty or has duplicates.
    """
    if "vocabulary" in inputs:
        vocabulary = inputs["vocabulary"]
        return vocabulary if isinstance(vocabulary, ClassSplit) else vocabulary_from_names(vocabulary)
    name = inputs.get("dataset_name", default_dataset)
    if name is None:
        raise ValueError(
            'the input has neither a "vocabulary" nor a "dataset_name", and cfg.DATASETS.TEST names no data set '
            "whose vocabulary could be used"
        )
    return split_of_dataset(name)


def training_vocabulary(batched_inputs: Sequence[Mapping[str, Any]], default_dataset: str | None) -> ClassSplit:
    """The one vocabulary of a training batch.

    Raises:
        ValueError: its data sets have different ones.
    """
    first, *others = {vocabulary_of(inputs, default_dataset) for inputs in batched_inputs}
    if others:
        raise ValueError(
            "one training batch mixes data sets of different vocabularies "
            f"({len(first)} and {len(others[0])} classes): train on data sets that share one"
        )
    return first
