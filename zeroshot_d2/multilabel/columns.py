"""Image-level labels as sparse columns on disk, shared by all processes.

N images, K classes. An image's labels are +1 (present), -1 (verified to be absent) or 0 (neither), of which
only the first two are stored. Nine million images with seven thousand classes are a file of a few hundred
megabytes that is mapped into memory: it loads in milliseconds, and loader workers and training processes share
its pages instead of holding copies.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from ..registration import DatasetDict
from ..storage import DAMAGED_ARCHIVE, check_inside, read_npy_header, whole_file

Array = npt.NDArray[Any]


# ------------------------------------------------------------------------------------------------------ columns
@dataclass(frozen=True, eq=False)
class LabelColumns:
    """Sparse image-level labels of N images, as columns.

    Args:
        class_ids: what the file calls its classes, unique.
        path_bytes: (P,) uint8, all image paths one after another, UTF-8, relative, with forward slashes.
        path_ends: (N+1,) int64, where each path ends in ``path_bytes``; the first entry is 0.
        row_ends: (N+1,) int64, where the labels of each image end in ``classes``; the first entry is 0.
        classes: (R,) int32 indices into ``class_ids``, ascending within an image.
        signs: (R,) int8, +1 present, -1 verified to be absent.
        file: the file that the arrays are mapped from, if any.
    """

    class_ids: tuple[str, ...]
    path_bytes: Array
    path_ends: Array
    row_ends: Array
    classes: Array
    signs: Array
    file: str | None = None

    def __len__(self) -> int:
        return len(self.path_ends) - 1

    def path(self, index: int) -> str:
        """Relative path of image ``index``.

        Raises:
            ValueError: the columns hold none.
        """
        try:
            path = self.path_bytes[self._part(self.path_ends, self.path_bytes, index)].tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._name} has a path for image {index} that is not UTF-8; prepare it again") from error
        if not path:
            raise ValueError(f"{self._name} has no path for image {index}; prepare it again")
        return path

    def row(self, index: int) -> tuple[Array, Array]:
        """(classes, signs) of image ``index``.

        Raises:
            ValueError: the columns contradict each other.
        """
        part = self._part(self.row_ends, self.classes, index)
        classes, signs = self.classes[part], self.signs[part]
        self.check_labels(classes, signs)
        return classes, signs

    def check_labels(self, classes: Array, signs: Array) -> None:
        """Raise ValueError where labels (n,) are of no class, or their signs are neither +1 nor -1.

        A file is not looked through when it is opened, since that would take seconds: labels are checked as they are used.
        """
        if not classes.size:
            return
        if classes.min() < 0 or classes.max() >= len(self.class_ids):
            raise ValueError(
                f"{self._name} has labels of the classes [{classes.min()}, {classes.max()}], of which it has "
                f"{len(self.class_ids)}; prepare it again"
            )
        strange = signs[(signs != 1) & (signs != -1)]
        if len(strange):
            raise ValueError(f"{self._name} has the sign {strange[0]}, which must be +1 or -1; prepare it again")

    @property
    def _name(self) -> str:
        return self.file or "the labels"

    def _part(self, ends: Array, column: Array, index: int) -> slice:
        """Where image ``index`` lies in a column."""
        start, stop = int(ends[index]), int(ends[index + 1])
        if not 0 <= start <= stop <= len(column):
            raise ValueError(f"{self._name}: its columns do not fit together at image {index}; prepare it again")
        return slice(start, stop)

    @classmethod
    def build(
        cls, class_ids: Sequence[str], paths: Iterable[str], image: Array, classes: Array, signs: Array
    ) -> LabelColumns:
        """Sort single labels into columns.

        Args:
            class_ids: K unique ids.
            paths: N relative paths; back-slashes become slashes.
            image, classes, signs: (R,) index of the image, index of the class, +1 or -1, in any order. Of
                labels that are given twice for an image and a class, +1 wins.

        Raises:
            ValueError: an id or an image occurs twice, an index is out of range or no whole number, or a sign is neither +1
                nor -1.
        """
        class_ids = tuple(class_ids)
        if len(set(class_ids)) != len(class_ids):
            twice_ids = [class_id for class_id, count in Counter(class_ids).items() if count > 1]
            raise ValueError(f"class ids {twice_ids[:3]} occur more than once: give each class one of its own")
        encoded = [path.replace("\\", "/").encode("utf-8") for path in paths]
        if len(set(encoded)) != len(encoded):
            twice = [path.decode() for path, count in Counter(encoded).items() if count > 1]
            raise ValueError(f"{len(twice)} image(s) occur more than once, such as {twice[:3]}: remove the others")
        path_ends = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(path) for path in encoded], out=path_ends[1:])
        image, classes, signs = (_whole(*pair) for pair in (("image", image), ("class", classes), ("sign", signs)))
        if not len(image) == len(classes) == len(signs):
            raise ValueError(
                f"{len(image)} image indices, {len(classes)} class indices and {len(signs)} signs: give one of each"
            )
        for what, values, limit in (("image", image, len(encoded)), ("class", classes, len(class_ids))):
            if values.size and not (values.min() >= 0 and values.max() < limit):
                raise ValueError(
                    f"{what} indices [{values.min()}, {values.max()}] are not all in [0, {limit}): correct them"
                )
        strange = signs[(signs != 1) & (signs != -1)]
        if len(strange):
            raise ValueError(f"signs must be +1 (present) or -1 (absent), got {strange[0]}")
        image, classes, signs = image.astype(np.int64), classes.astype(np.int32), signs.astype(np.int8)
        order = np.lexsort((-signs, classes, image))
        image, classes, signs = image[order], classes[order], signs[order]
        first = np.ones(len(image), dtype=bool)
        first[1:] = (image[1:] != image[:-1]) | (classes[1:] != classes[:-1])
        image, classes, signs = image[first], classes[first], signs[first]
        row_ends = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum(np.bincount(image, minlength=len(encoded)), out=row_ends[1:])
        return cls(class_ids, np.frombuffer(b"".join(encoded), np.uint8), path_ends, row_ends, classes, signs)

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write an uncompressed ``.npz``, whole or not at all."""
        arrays = {column.name: getattr(self, column.name) for column in fields(self) if column.name in _ARRAYS}
        with whole_file(file) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, class_ids=np.array(self.class_ids, dtype=np.str_), **arrays)

    @classmethod
    def open(cls, file: str | os.PathLike[str]) -> LabelColumns:
        """Map a file that :meth:`save` has written; nothing but its small parts is read.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not such a file, or its columns contradict each other.
        """
        file = os.path.abspath(file)
        if not os.path.isfile(file):
            raise FileNotFoundError(f"label file {file} does not exist: correct its path, or prepare it")
        arrays = map_npz(file)
        missing = sorted({"class_ids", *_ARRAYS} - set(arrays))
        if missing:
            raise ValueError(f"{file} lacks {missing}: it is not a label file of this project; prepare it again")
        strange = [name for name, kind in _DTYPES.items() if arrays[name].dtype.str[1:] != kind or arrays[name].ndim != 1]
        if strange or arrays["class_ids"].dtype.kind != "U" or not len(arrays["path_ends"]):
            raise ValueError(
                f"{file}: {', '.join(strange) or 'class_ids'} is not as this project writes it; prepare it again"
            )
        class_ids = tuple(arrays.pop("class_ids").tolist())
        if len(set(class_ids)) != len(class_ids):
            twice = next(class_id for class_id, count in Counter(class_ids).items() if count > 1)
            raise ValueError(f"{file} lists the class {twice!r} more than once; prepare it again")
        columns = cls(class_ids, **{name: arrays[name] for name in _ARRAYS}, file=file)
        whole = (
            len(columns.row_ends) == len(columns.path_ends)
            and columns.row_ends[-1] == len(columns.classes) == len(columns.signs)
            and columns.path_ends[-1] == len(columns.path_bytes)
            and columns.row_ends[0] == columns.path_ends[0] == 0
        )
        if not whole:
            raise ValueError(f"{file}: its columns do not fit together; prepare it again")
        if not len(columns):
            raise ValueError(f"{file} holds no image; prepare it again")
        return columns

    def __reduce__(self) -> Any:
        # A mapped file is opened again in the other process, which shares its pages; an array would be copied.
        if self.file is not None:
            return LabelColumns.open, (self.file,)
        return LabelColumns, tuple(getattr(self, column.name) for column in fields(self))


_ARRAYS = ("path_bytes", "path_ends", "row_ends", "classes", "signs")
_DTYPES = {"path_bytes": "u1", "path_ends": "i8", "row_ends": "i8", "classes": "i4", "signs": "i1"}


def _whole(what: str, values: Any) -> Array:
    """``values`` as integers, checked before any cast: 257 must not become 1, nor 1.9.

    Raises:
        ValueError: one of them is no whole number.
    """
    array = np.asarray(values)
    if array.size == 0 or array.dtype.kind in "iub":
        return array.astype(np.int64) if array.dtype.kind != "u" else array.astype(np.uint64)
    if array.dtype.kind == "f":
        fractions = array[~(np.isfinite(array) & (array == np.rint(array)))]
        if not len(fractions):
            return array.astype(np.int64)
        raise ValueError(f"{what} values must be whole numbers, got {fractions[0]}")
    raise ValueError(f"{what} values must be whole numbers, got {array.tolist()[0]!r}")


def map_npz(file: str, what: str = "label file", way_out: str = "prepare it again") -> dict[str, Array]:
    """Memory-map the arrays of an uncompressed ``.npz``.

    Args:
        file: its path.
        what: what the file is to the reader of a message.
        way_out: what the reader can do.

    Raises:
        ValueError: not a zip file, compressed, or cut off.
    """
    arrays: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(file) as archive, open(file, "rb") as stream:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{file} is compressed and cannot be mapped: write it with numpy.savez")
                # The local header (PKZIP specification, 4.3.7): 30 bytes, then name and extra field of lengths
                # given there.
                stream.seek(member.header_offset)
                name_length, extra_length = struct.unpack("<HH", stream.read(30)[26:30])
                stream.seek(name_length + extra_length, os.SEEK_CUR)
                shape, by_columns, dtype = read_npy_header(stream)
                if dtype.hasobject:
                    raise ValueError(f"{file} holds Python objects in {member.filename}, which are never read; {way_out}")
                if 0 in shape:  # an empty map does not exist
                    array: Array = np.zeros(shape, dtype)
                else:
                    # A plain view of the map, since slices of the subclass cost ten times more.
                    order: Any = "F" if by_columns else "C"
                    array = np.memmap(file, dtype, "r", stream.tell(), shape, order).view(np.ndarray)
                arrays[member.filename.removesuffix(".npy")] = array
    except DAMAGED_ARCHIVE as error:
        if str(error).startswith(file):
            raise
        raise ValueError(f"{file} is no {what} or is cut off ({error}); {way_out}") from error
    return arrays


# ------------------------------------------------------------------------------------------------------ dataset
class MultiLabelDataset(Dataset[DatasetDict]):
    """Dataset dicts made one at a time from :class:`LabelColumns`; Detectron2 takes it where it takes a list.

    Each is {"file_name", "image_id" (the relative path), "dataset_name", "positive_labels",
    "negative_labels"}, the last two (n,) int64 arrays of vocabulary indices, ascending.

    Args:
        name: the data set.
        columns: labels of N images.
        image_root: folder of the images.
        vocabulary_ids: class id of each vocabulary entry, in vocabulary order. Labels of other classes are left out.
        known_ids: if given, a class of ``columns`` that is not among them is an error instead.

    Raises:
        ValueError: a class of the vocabulary is not in ``columns``, or one of ``columns`` is not known.
    """

    def __init__(
        self,
        name: str,
        columns: LabelColumns,
        image_root: str,
        *,
        vocabulary_ids: Sequence[str],
        known_ids: Iterable[str] | None = None,
    ) -> None:
        if known_ids is not None:
            known = set(known_ids)
            strange = [class_id for class_id in columns.class_ids if class_id not in known]
            if strange:
                raise ValueError(
                    f"data set {name!r} has labels {strange[:5]} that are not classes of its split "
                    f"({columns.file or 'given in memory'}): correct the split, or pass other_labels='ignore'"
                )
        position = {class_id: k for k, class_id in enumerate(columns.class_ids)}
        missing = [class_id for class_id in vocabulary_ids if class_id not in position]
        if missing:
            raise ValueError(
                f"data set {name!r}: {len(missing)} of {len(vocabulary_ids)} classes, for example {missing[0]!r}, are not "
                f"in its labels ({columns.file or 'given in memory'}); prepare it again or correct the split"
            )
        self._name, self._columns, self._image_root = name, columns, image_root
        self._vocabulary_index = np.full(len(columns.class_ids), -1, dtype=np.int64)
        for k, class_id in enumerate(vocabulary_ids):
            self._vocabulary_index[position[class_id]] = k

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, index: int) -> DatasetDict:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        path = self._columns.path(index)
        if self._image_root:
            check_inside(path, f"the label file of data set {self._name!r} ({self._columns.file or 'in memory'})")
        classes, signs = self._columns.row(index)
        vocabulary = self._vocabulary_index[classes]
        return {
            "file_name": os.path.join(self._image_root, path),
            "image_id": path,
            "dataset_name": self._name,
            "positive_labels": np.sort(vocabulary[(vocabulary >= 0) & (signs > 0)]),
            "negative_labels": np.sort(vocabulary[(vocabulary >= 0) & (signs < 0)]),
        }

    def class_counts(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(images with the class, images verified to be without it), each (K,) in vocabulary order."""
        size = int(self._vocabulary_index.max()) + 1
        signs = np.asarray(self._columns.signs)
        self._columns.check_labels(self._columns.classes, signs)
        vocabulary = self._vocabulary_index[self._columns.classes]
        return tuple(  # type: ignore[return-value]  # two entries, which mypy cannot count here
            np.bincount(vocabulary[(vocabulary >= 0) & (signs == sign)], minlength=size) for sign in (1, -1)
        )
