"""Predictions of segmentation as files: what evaluation saves, and what the referee reads, whoever's method made them.

H, W are the height and width of an image in pixels, K the number of classes.

Saved below OUTPUT_DIR/predictions/DATA_SET:

    labels   IMAGE.png: vocabulary indices, 8 bits, or 16 for more than 255 classes; the largest value is "no class"
    scores   IMAGE.npy: (K, H, W) float32; 4 K H W bytes an image
    json     sem_seg_predictions.json: Detectron2's, a mask in COCO's run lengths for each class of an image

with classes.txt, a class a line in the order of their indices. IMAGE is the image's id in the data set.
"""

from __future__ import annotations

import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..images import image_size, read_label_image, write_image
from ..joined_file import JoinedFile
from ..json_stream import fields, stream_json_array
from ..registration import DatasetDict
from ..storage import DAMAGED_ARCHIVE, check_inside, read_npy_header, whole_file, write_text
from .labels import no_class_value
from .masks import decode_mask

JSON_FILE = "sem_seg_predictions.json"

Array = npt.NDArray[Any]
Size = tuple[int, int]
Read = Callable[[Size], Array]
"""(H, W) -> (H, W) integer values or (K, H, W) floating-point scores."""


def image_names(records: Sequence[DatasetDict], dataset_name: str) -> dict[str, str]:
    """{file_name: what the image's predictions are called}, its "image_id".

    Raises:
        ValueError: two images have one id, or an id would lead out of a folder of predictions.
    """
    names = {
        record["file_name"]: check_inside(str(record["image_id"]), f"data set {dataset_name!r} (image_id)")
        for record in records
    }
    if len(set(names.values())) != len(records):
        raise ValueError(
            f"data set {dataset_name!r} has {len(records)} images, but {len(set(names.values()))} different image ids: "
            "give each image an id of its own"
        )
    return names


# --------------------------------------------------------------------------------------------------------- saving
class PredictionSaver:
    """Saves the predictions of a data set image by image, in one or several processes.

    Args:
        kind: "labels", "scores" or "json".
        folder: where they go.
        classes: K names, in the order of their indices.
        names: see :func:`image_names`.
        encode: (labels (H, W), file_name) -> Detectron2's entries of the JSON file.
        distributed: whether other processes save other images of the same data set.
    """

    def __init__(
        self,
        kind: str,
        folder: Path,
        classes: Sequence[str],
        names: dict[str, str],
        encode: Callable[[Array, str], list[dict[str, Any]]],
        *,
        distributed: bool,
    ) -> None:
        self._kind, self._folder, self._classes, self._names, self._encode = kind, folder, classes, names, encode
        self._json = JoinedFile(folder / JSON_FILE, distributed=distributed)

    def save(self, file_name: str, labels: npt.NDArray[np.int64], scores: Tensor | None) -> None:
        """Save the prediction of an image.

        Args:
            file_name: the photo's.
            labels: (H, W), K where there is no prediction.
            scores: (K, H, W), if the model gives any.

        Raises:
            ValueError: scores are to be saved, and there are none.
            OSError: the folder cannot be written.
        """
        path = self._folder / self._names[file_name]
        if self._kind == "labels":
            none = no_class_value(len(self._classes))
            values = np.where(labels == len(self._classes), none, labels)
            write_image(path.with_name(f"{path.name}.png"), values.astype(np.min_scalar_type(none)), sync=False)
        elif self._kind == "json":
            for entry in self._encode(labels, file_name):
                if entry["category_id"] != len(self._classes):
                    self._json.write(json.dumps(entry).encode() + b",\n")
        elif scores is None:
            raise ValueError(
                "TEST.SAVE_PREDICTIONS scores: the model gives labels without scores; save 'labels', or let it give scores"
            )
        else:
            with whole_file(path.with_name(f"{path.name}.npy"), sync=False) as temporary:
                np.save(temporary, scores.detach().float().cpu().numpy())

    def finish(self, *, is_main: bool) -> None:
        """Complete the folder; every process must call it."""
        if self._kind == "json":
            self._json.join(head=b"[\n", between=b",\n", tail=b"\n]\n")
        if is_main:
            write_text(self._folder / "classes.txt", "\n".join(self._classes) + "\n")

    def discard(self) -> None:
        """Forget what is not complete."""
        self._json.discard()


# --------------------------------------------------------------------------------------------------------- reading
class Predictions(ABC):
    """Predictions of the images of a data set, from files, one image at a time."""

    @abstractmethod
    def names(self) -> list[str]:
        """The images that there are predictions of, as :meth:`items` names them.

        Raises:
            ValueError: they cannot be told.
        """

    @abstractmethod
    def items(self) -> Iterator[tuple[str, Read]]:
        """Each image's name and how its prediction is read; ``read`` raises ValueError where it cannot be used.

        ``read`` must be called before the next image is asked for.
        """


def open_predictions(path: Path, suffix: str, image_ids: Sequence[str]) -> Predictions:
    """A folder of label images or .npy files, an .npz, or Detectron2's JSON.

    Args:
        path: of any of these.
        suffix: of the files in a folder.
        image_ids: of the data set, to which the JSON's paths on another machine are matched.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: it is none of these.
    """
    if path.is_dir():
        return _Folder(path, suffix)
    if not path.exists():
        raise FileNotFoundError(f"the predictions {path} do not exist (looked for them from {Path.cwd()})")
    if path.suffix.lower() == ".json":
        return _DetectronJson(path, image_ids)
    if path.suffix.lower() == ".npz":
        return _Archive(path)
    raise ValueError(
        f"the predictions {path} must be a folder of label images (or of .npy files, with --suffix .npy), an .npz, or "
        f"Detectron2's {JSON_FILE}"
    )


class _Folder(Predictions):
    """A file per image: a label image, or an array in an .npy."""

    def __init__(self, path: Path, suffix: str) -> None:
        self._files = {
            file.relative_to(path).as_posix()[: -len(suffix)]: file
            for file in sorted(path.rglob(f"*{suffix}"))
            if file.is_file() and not file.name.startswith(".")
        }
        if not self._files:
            raise ValueError(f"the folder {path} has no file *{suffix}: --suffix names the ending of the predictions")

    def names(self) -> list[str]:
        return list(self._files)

    def items(self) -> Iterator[tuple[str, Read]]:
        for name, file in self._files.items():
            yield name, partial(self._read, file)

    @staticmethod
    def _read(file: Path, size: Size) -> Array:
        if file.suffix.lower() == ".npy":
            with open(file, "rb") as stream:
                return _read_npy(stream, str(file), size)
        _check_size(image_size(file), size)
        return read_label_image(file)


class _Archive(Predictions):
    """An .npz with an array for each image, under its id."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = [member.filename for member in archive.infolist() if not member.is_dir()]
        except DAMAGED_ARCHIVE as error:
            raise ValueError(f"the predictions {path} are no .npz or are cut off ({error}): make them again") from error
        self._members = {name.removesuffix(".npy"): name for name in members}
        if not self._members:
            raise ValueError(f"the predictions {path} hold no array: make them again")

    def names(self) -> list[str]:
        return list(self._members)

    def items(self) -> Iterator[tuple[str, Read]]:
        for name, member in self._members.items():
            yield name, partial(self._read, member)

    def _read(self, member: str, size: Size) -> Array:
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(member) as stream:
                return _read_npy(stream, f"{self._path}: {member}", size)
        except DAMAGED_ARCHIVE as error:
            if isinstance(error, _Refused):
                raise
            raise _Refused(f"it cannot be read ({error})") from error


class _DetectronJson(Predictions):
    """Detectron2's ``sem_seg_predictions.json``, read entry by entry; the entries of an image follow each other."""

    def __init__(self, path: Path, image_ids: Sequence[str]) -> None:
        self._path = path
        self._ids: dict[str, list[str]] = {}
        for image_id in image_ids:
            self._ids.setdefault(PurePosixPath(image_id).name, []).append(image_id)

    def _image_of(self, file_name: str) -> str:
        """The image whose id ends the path of a photo on whatever machine; the path itself where there is none."""
        path = PurePosixPath(file_name.replace("\\", "/"))
        for candidate in (path.with_suffix("") if path.suffix else path, path):
            fitting = [
                image_id
                for image_id in self._ids.get(candidate.name, [])
                if candidate.parts[-len(PurePosixPath(image_id).parts) :] == PurePosixPath(image_id).parts
            ]
            if fitting:
                return max(fitting, key=len)
        return file_name

    def _groups(self) -> Iterator[tuple[str, list[tuple[int, Any]]]]:
        """(image, [(category id, segmentation)])."""
        done: set[str] = set()
        current, segments = "", list[tuple[int, Any]]()
        for entry in stream_json_array(self._path):
            file_name, category, segmentation = fields(
                entry, self._path, file_name=str, category_id=int, segmentation=object
            )
            image = self._image_of(file_name)
            if image != current:
                if current:
                    yield current, segments
                if image in done:
                    raise ValueError(
                        f"the predictions {self._path} have entries of {file_name} in two places: sort them by file_name"
                    )
                done.add(image)
                current, segments = image, []
            segments.append((category, segmentation))
        if current:
            yield current, segments

    def names(self) -> list[str]:
        return [name for name, _ in self._groups()]

    def items(self) -> Iterator[tuple[str, Read]]:
        for name, segments in self._groups():
            yield name, partial(self._painted, segments)

    @staticmethod
    def _painted(segments: list[tuple[int, Any]], size: Size) -> Array:
        """(H, W) category ids; -1 where there is none."""
        values = np.full(size, -1, dtype=np.int64)
        for category, segmentation in segments:
            mask = decode_mask(segmentation, *size)
            if (values[mask] != -1).any():
                raise _Refused(f"the masks of categories {category} and {values[mask].max()} overlap")
            if category < 0:
                raise _Refused(f"the category id {category} is negative")
            values[mask] = category
        return values


class _Refused(ValueError):
    """A prediction that cannot be used, whose image the caller names."""


def _check_size(found: Size, size: Size) -> None:
    if found != size:
        raise _Refused(f"the prediction is {found[0]} x {found[1]}, the label image {size[0]} x {size[1]} (height x width)")


def _read_npy(stream: Any, source: str, size: Size) -> Array:
    """An array of integers (H, W) or of floats (K, H, W); its header is looked at before its content is read."""
    try:
        shape, _, dtype = read_npy_header(stream)
        if len(shape) not in (2, 3) or dtype.kind not in ("iu" if len(shape) == 2 else "f"):
            raise _Refused(
                f"{source} is {shape} {dtype}, it must be integers of (H, W), or floating-point scores of (K, H, W)"
            )
        _check_size((int(shape[-2]), int(shape[-1])), size)
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)
    except DAMAGED_ARCHIVE as error:
        if isinstance(error, _Refused):
            raise
        raise _Refused(f"{source} is no array or is cut off ({error})") from error
