"""Registering data sets with image-level labels: given in memory, by your own function, or in a file of columns.

K is the number of classes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..class_split import ClassSplit, Vocabulary
from ..registration import register_dataset, warn_about_count
from ..storage import PathLike
from .columns import LabelColumns, MultiLabelDataset
from .label_tables import SUFFIXES, read_label_table

EVALUATOR_TYPE = "zero_shot_multilabel"

NO_NEGATIVES = (
    "data set %s is registered with complete=False, but no label says that a class is absent: every ranking would be "
    "perfect, so AP is not reported. Give the verified absences, or register it with complete=True"
)

logger = logging.getLogger(__name__)

Labels = Mapping[str, Sequence[str] | Mapping[str, int]]


def vocabulary_ids(split: ClassSplit, class_ids: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """Class ids of a vocabulary, in its order; ``class_ids`` belong to ``split.names``."""
    id_of = dict(zip(split.names, class_ids, strict=True))
    return [id_of[name] for name in split.restricted_to(vocabulary).names]


def multilabel_metadata(
    name: str, split: ClassSplit, class_ids: Sequence[str], vocabulary: Vocabulary, complete: bool
) -> dict[str, Any]:
    """What :func:`register_multilabel` writes into the metadata.

    Returns:
        class_split (of the vocabulary), class_ids, labels_complete, protocol ("GZSL", "ZSL" or "supervised"),
        evaluator_type.
    """
    if len(class_ids) != len(split) or len(set(class_ids)) != len(class_ids):
        raise ValueError(
            f"data set {name!r}: {len(class_ids)} class ids, {len(set(class_ids))} of them different, for "
            f"{len(split)} classes: give one unique id per class"
        )
    protocol = {"all": "GZSL" if split.unseen else "supervised", "seen": "supervised", "unseen": "ZSL"}
    classes = split.restricted_to(vocabulary)
    return {
        "class_split": classes,
        "class_ids": tuple(vocabulary_ids(split, class_ids, vocabulary)),
        "labels_complete": complete,
        "protocol": protocol[vocabulary],
        "evaluator_type": EVALUATOR_TYPE,
    }


def register_multilabel(
    name: str,
    split: ClassSplit,
    image_root: PathLike,
    labels: PathLike | Labels | Callable[[], Labels],
    *,
    vocabulary: Vocabulary = "all",
    complete: bool = True,
    class_ids: Sequence[str] | None = None,
    other_labels: str = "error",
    expected_images: int | None = None,
    replace: bool = False,
) -> None:
    """Register a data set with image-level labels with Detectron2; the disk is read when it is loaded, not here.

    Args:
        name: name in ``DatasetCatalog``.
        split: all classes and which of them are unseen.
        image_root: folder of the images.
        labels: {relative path: names of the classes in the image}, or {relative path: {name: +1 or -1}} with
            classes that are verified to be absent; or a function that returns one of these; or a file: a table
            (:mod:`.label_tables`) in .csv or .json, or one written by :meth:`LabelColumns.save`.
        vocabulary: "seen": training on seen classes; "all": GZSL; "unseen": ZSL. Labels of the other classes
            are left out.
        complete: whether a class without a label is absent (True), or not annotated and left out of its AP (False).
        class_ids: what ``labels`` calls the classes of ``split``; default: their names.
        other_labels: "error" or "ignore" labels of classes that are not in ``split``.
        expected_images: how many images the whole release has; another count is logged as a warning.
        replace: take the place of a data set of this name. Without it, the same registration again changes nothing.

    Raises:
        ValueError: the name belongs to another data set, or an argument contradicts another.
    """
    arguments = {key: value for key, value in locals().items() if key not in ("name", "replace")}
    if other_labels not in ("error", "ignore"):
        raise ValueError(f"other_labels must be 'error' or 'ignore', got {other_labels!r}")
    ids = tuple(split.names if class_ids is None else class_ids)
    metadata = multilabel_metadata(name, split, ids, vocabulary, complete)

    def load() -> MultiLabelDataset:
        given = labels() if callable(labels) else labels
        if not isinstance(given, Mapping | str | os.PathLike):
            raise ValueError(
                f"data set {name!r}: labels must be {{relative path: names}}, or the path of a file, got {given!r}"
            )
        if not isinstance(given, Mapping) and os.fspath(given).lower().endswith(SUFFIXES):
            given = read_label_table(given)
        columns = _columns_of(name, given, ids, other_labels) if isinstance(given, Mapping) else LabelColumns.open(given)
        dataset = MultiLabelDataset(
            name,
            columns,
            os.fspath(image_root),
            vocabulary_ids=metadata["class_ids"],
            known_ids=ids if other_labels == "error" else None,
        )
        warn_about_count(name, len(dataset), expected_images)
        if not complete and not dataset.class_counts()[1].any():
            logger.warning(NO_NEGATIVES, name)
        return dataset

    register_dataset(name, load, metadata, arguments, replace=replace)


def _columns_of(name: str, labels: Labels, ids: Sequence[str], other_labels: str) -> LabelColumns:
    """Columns of labels that are given in memory."""
    if not labels:
        raise ValueError(f"data set {name!r} has no image")
    position = {class_id: k for k, class_id in enumerate(ids)}
    image, classes, signs = [], [], []
    for i, (path, given) in enumerate(labels.items()):
        if not isinstance(path, str) or not path:
            raise ValueError(f"data set {name!r}: images are named by relative paths as text, got {path!r}")
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise ValueError(f"data set {name!r}: the labels of {path} must be a list of names, got {given!r}")
        signed = given if isinstance(given, Mapping) else dict.fromkeys(given, 1)
        for class_id, sign in signed.items():
            if not isinstance(class_id, str):
                raise ValueError(f"data set {name!r}: labels are names of classes, got {class_id!r} for {path}")
            if isinstance(sign, bool) or not isinstance(sign, int | float | np.integer | np.floating) or sign not in (-1, 1):
                raise ValueError(
                    f"data set {name!r}: the sign of {class_id!r} for {path} must be 1 (present) or -1 (verified to be "
                    f"absent), got {sign!r}; leave out what is not known"
                )
            if class_id in position:
                image.append(i)
                classes.append(position[class_id])
                signs.append(sign)
            elif other_labels == "error":
                raise ValueError(
                    f"data set {name!r}: label {class_id!r} of {path} is not a class of its split; correct it, or pass "
                    "other_labels='ignore'"
                )
    try:
        return LabelColumns.build(ids, labels, np.array(image), np.array(classes), np.array(signs))
    except ValueError as error:
        raise ValueError(f"data set {name!r}: {error}") from error
