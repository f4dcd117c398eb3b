"""Label images and what their values mean: one label folder serves every vocabulary, through a lookup table.

A release stores arbitrary label values. Instead of writing a converted copy of the label images for every split, a
registered data set carries a :class:`LabelTable` from label value to vocabulary index or "ignore", which the mapper and the
evaluator apply when they read a label. H, W are the height and width of an image in pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..class_split import ClassSplit, Vocabulary
from ..images import MAX_PIXELS, PathLike, read_label_image

IGNORE_LABEL = 65535
"""Value of pixels that take no part in training or evaluation. It does not fit into 8 bits: labels are uint16 throughout."""

_NO_SUCH_VALUE = 65534  # in a lookup table: neither a class nor an ignore value
_TABLE_SIZE = 65536


@dataclass(frozen=True, eq=False)
class LabelTable:
    """Lookup from the label values of a release to the indices of a vocabulary.

    Args:
        lut: (65536,) uint16: vocabulary index, ``IGNORE_LABEL``, or 65534 for a value that the release should
            not contain.
        allowed: the label values that the release may contain, as text for error messages.
    """

    lut: npt.NDArray[np.uint16]
    allowed: str = field(default="", repr=False)

    def apply(self, label: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
        """Map a label image.

        Args:
            label: (H, W) integers, values of the release.

        Returns:
            (H, W) uint16, vocabulary index or ``IGNORE_LABEL``.

        Raises:
            ValueError: not an integer array, or a value that is neither a class nor an ignore value.
        """
        if not np.issubdtype(label.dtype, np.integer):
            raise ValueError(f"a label image must hold integers, got {label.dtype}")
        if label.size and not (int(label.min()) >= 0 and int(label.max()) < _TABLE_SIZE):
            raise ValueError(f"label values [{label.min()}, {label.max()}] do not fit into 16 bits: save them anew")
        mapped: npt.NDArray[np.uint16] = self.lut[label]
        if (mapped == _NO_SUCH_VALUE).any():
            values = np.unique(label[mapped == _NO_SUCH_VALUE])
            shown = ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
            raise ValueError(
                f"label value(s) {shown} are neither a class nor an ignore value ({self.allowed}); "
                "correct `label_values` or add them to `ignore_values` where the data set is registered"
            )
        return mapped


def label_table(
    split: ClassSplit,
    vocabulary: Vocabulary = "all",
    label_values: Sequence[int] | Mapping[int, str] | None = None,
    ignore_values: Iterable[int] = (255,),
) -> LabelTable:
    """Build the lookup table of a vocabulary.

    Args:
        split: all K classes of the label images, whatever the vocabulary.
        vocabulary: "all": every class gets its index; "seen" / "unseen": indices among those, the other
            classes are ignored.
        label_values: the value that stands for each class, in the order of ``split.names``; or {value: class
            name}, where several values may stand for one class. None: the value is the index.
        ignore_values: values of unlabelled pixels. 65535 may always occur.

    Raises:
        ValueError: values are missing, negative, larger than 65535 or used twice.
    """
    kept = split.restricted_to(vocabulary)
    if len(split) >= _NO_SUCH_VALUE:
        raise ValueError(f"{len(split)} classes do not fit into 16-bit labels: give at most {_NO_SUCH_VALUE - 1}")
    if isinstance(label_values, Mapping):
        pairs = list(label_values.items())
    else:
        values = range(len(split)) if label_values is None else list(label_values)
        if len(values) != len(split):
            raise ValueError(f"{len(values)} label values for {len(split)} classes: give one value per class")
        pairs = list(zip(values, split.names, strict=True))
    value_to_name = {_label_value(value, "label", f" of class {name!r}"): name for value, name in pairs}
    if len(value_to_name) != len(pairs):
        twice = sorted(value for value, count in Counter(value for value, _ in pairs).items() if count > 1)
        raise ValueError(f"label value(s) {twice} stand for more than one class: give each class a value of its own")
    without = [name for name in split.names if name not in set(value_to_name.values())]
    if without:
        raise ValueError(f"no label value stands for class(es) {without}: give each class one")

    index = {name: k for k, name in enumerate(kept.names)}
    known = set(split.names)
    lut = np.full(_TABLE_SIZE, _NO_SUCH_VALUE, dtype=np.uint16)
    lut[IGNORE_LABEL] = IGNORE_LABEL
    ignored = sorted({_label_value(value, "ignore") for value in ignore_values})
    lut[ignored] = IGNORE_LABEL
    for value, name in value_to_name.items():
        if name not in known:
            raise ValueError(f"label value {value} stands for {name!r}, which is not a class of the split: correct the name")
        if value in ignored or value == IGNORE_LABEL:
            raise ValueError(f"label value {value} is both class {name!r} and an ignore value: give the class another one")
        lut[value] = index.get(name, IGNORE_LABEL)
    return LabelTable(lut, allowed=f"classes: {_ranges(value_to_name)}; ignored: {_ranges(ignored) or 'none'}")


def _label_value(value: Any, kind: str, of: str = "") -> int:
    """``value`` as it is, where a label image of 16 bits can hold it; a cast would make 1 of 1.5."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < _TABLE_SIZE:
        raise ValueError(f"{kind} value {value!r}{of} must be a whole number from 0 to {_TABLE_SIZE - 1}")
    return int(value)


def no_class_value(num_classes: int) -> int:
    """The value of pixels without a class in a label image of indices: the largest of its type, 8 bits where they do."""
    return 255 if num_classes <= 255 else 65535


def check_range(labels: Tensor, num_classes: int) -> None:
    """Refuse labels that a mapper has not brought to the vocabulary, such as raw label values by Detectron2's own.

    Args:
        labels: vocabulary indices or ``IGNORE_LABEL``, any shape.
        num_classes: K.

    Raises:
        ValueError: another value.
    """
    strange = labels[(labels != IGNORE_LABEL) & ((labels < 0) | (labels >= num_classes))]
    if strange.numel():
        raise ValueError(
            f"training labels hold {int(strange[0])}, which is neither one of the {num_classes} vocabulary indices nor "
            f"{IGNORE_LABEL} (ignored): a data set of this project needs its SegmentationMapper, since Detectron2's own "
            "mapper and draw_dataset_dict take the values of label images for indices"
        )


def _ranges(values: Iterable[int]) -> str:
    """Write integers as "0-3, 7"."""
    ordered = sorted(values)
    runs: list[list[int]] = []
    for value in ordered:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def read_label(
    path: PathLike, table: LabelTable, *, photo: PathLike | None = None, max_pixels: int = MAX_PIXELS
) -> npt.NDArray[np.uint16]:
    """Read a label image and map it to the vocabulary.

    Args:
        path, photo, max_pixels: as for :func:`zeroshot_d2.images.read_label_image`.
        table: of the data set.

    Returns:
        (H, W) uint16, vocabulary index or ``IGNORE_LABEL``.

    Raises:
        FileNotFoundError, UnreadableImage: as :func:`zeroshot_d2.images.read_label_image`.
        ValueError: as :meth:`LabelTable.apply`, naming the file.
    """
    label = read_label_image(path, photo=photo, max_pixels=max_pixels)
    try:
        return table.apply(label)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
