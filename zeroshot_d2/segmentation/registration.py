"""Segmentation data sets with a class split: one label folder, and a lookup table per vocabulary.

A release stores arbitrary label values. Instead of writing a converted copy of the label images for every
split, a registered data set carries a :class:`LabelTable` from label value to vocabulary index or "ignore",
which the mapper and the evaluator apply when they read a label. H, W are the height and width of an image in pixels.
"""

from __future__ import annotations

import colorsys
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image, UnidentifiedImageError

from ..class_split import ClassSplit

IGNORE_LABEL = 65535
"""Value of pixels that take no part in training or evaluation; does not fit into 8 bits, so labels are uint16
throughout.
"""

_NO_SUCH_VALUE = 65534  # in a lookup table: neither a class nor an ignore value
_TABLE_SIZE = 65536

Vocabulary = Literal["all", "seen", "unseen"]
Protocol = Literal["GZS3", "ZS3", "supervised", "cross-dataset"]
DatasetDict = dict[str, Any]
Color = tuple[int, int, int]

logger = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------------------- label values
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
            raise ValueError(f"label values [{label.min()}, {label.max()}] do not fit into 16 bits")
        mapped: npt.NDArray[np.uint16] = self.lut[label]
        if (mapped == _NO_SUCH_VALUE).any():
            values = np.unique(label[mapped == _NO_SUCH_VALUE])
            shown = ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
            raise ValueError(
                f"label value(s) {shown} are neither a class nor an ignore value ({self.allowed}); "
                "correct `label_values` or add them to `ignore_values` where the data set is registered"
            )
        return mapped


def vocabulary_split(split: ClassSplit, vocabulary: Vocabulary) -> ClassSplit:
    """The part of ``split`` that a data set's vocabulary holds: everything, the seen classes, or the unseen ones.

    Raises:
        ValueError: no such vocabulary, or it would be empty.
    """
    if vocabulary == "all":
        return split
    if vocabulary == "seen":
        return split.only_seen()
    if vocabulary == "unseen":
        return split.only_unseen()
    raise ValueError(f"vocabulary must be one of {get_args(Vocabulary)}, got {vocabulary!r}")


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
    kept = vocabulary_split(split, vocabulary)
    if len(split) >= _NO_SUCH_VALUE:
        raise ValueError(f"{len(split)} classes do not fit into 16-bit labels")
    if isinstance(label_values, Mapping):
        value_to_name = {int(value): name for value, name in label_values.items()}
    else:
        values = range(len(split)) if label_values is None else [int(value) for value in label_values]
        if len(values) != len(split):
            raise ValueError(f"{len(values)} label values for {len(split)} classes: give one value per class")
        value_to_name = dict(zip(values, split.names, strict=True))
        if len(value_to_name) != len(values):
            twice = sorted({value for value in values if list(values).count(value) > 1})
            raise ValueError(f"label value(s) {twice} stand for more than one class")
    without = [name for name in split.names if name not in set(value_to_name.values())]
    if without:
        raise ValueError(f"no label value stands for class(es) {without}")

    index = {name: k for k, name in enumerate(kept.names)}
    known = set(split.names)
    lut = np.full(_TABLE_SIZE, _NO_SUCH_VALUE, dtype=np.uint16)
    lut[IGNORE_LABEL] = IGNORE_LABEL
    ignored = sorted({int(value) for value in ignore_values})
    for value in ignored:
        if not 0 <= value < _TABLE_SIZE:
            raise ValueError(f"ignore value {value} is not a 16-bit label value")
        lut[value] = IGNORE_LABEL
    for value, name in value_to_name.items():
        if not 0 <= value < _TABLE_SIZE:
            raise ValueError(f"label value {value} of class {name!r} is not a 16-bit label value")
        if name not in known:
            raise ValueError(f"label value {value} stands for {name!r}, which is not a class of the split")
        if value in ignored or value == IGNORE_LABEL:
            raise ValueError(f"label value {value} is both class {name!r} and an ignore value")
        lut[value] = index.get(name, IGNORE_LABEL)
    return LabelTable(lut, allowed=f"classes: {_ranges(value_to_name)}; ignored: {_ranges(ignored) or 'none'}")


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


# -------------------------------------------------------------------------------------------- reading the files
def read_raw_label(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Read a label image as it is: palette, 8-bit or 16-bit PNG, 8-bit, 16-bit or 32-bit TIFF.

    Returns:
        (H, W) integers. EXIF orientation, which no label tool writes, is not applied.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image, is truncated, or has more than one channel.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"label image {path} does not exist")
    try:
        with Image.open(path) as image:
            label = np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        # PIL reports a broken PNG chunk as SyntaxError
        raise ValueError(f"label image {path} is unreadable or truncated: {error}") from error
    if label.dtype == np.bool_:  # a 1-bit image
        label = label.astype(np.uint8)
    if label.ndim != 2:
        raise ValueError(
            f"label image {path} has {label.shape[-1]} channels: a label image holds one value per pixel "
            "(palette or grey), not colours"
        )
    return label


def read_label(path: str | os.PathLike[str], table: LabelTable) -> npt.NDArray[np.uint16]:
    """Read a label image and map it to the vocabulary.

    Returns:
        (H, W) uint16, vocabulary index or ``IGNORE_LABEL``.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_raw_label` and :meth:`LabelTable.apply`, naming the file.
    """
    label = read_raw_label(path)
    try:
        return table.apply(label)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def _relative_stems(root: str, suffix: str) -> dict[str, str]:
    """{path below ``root`` without ``suffix``: file}, sub-folders included, hidden files left out."""
    found: dict[str, str] = {}
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders.sort()
        for file in files:
            if file.endswith(suffix) and not file.startswith("."):
                path = os.path.join(folder, file)
                stem = Path(os.path.relpath(path, root).removesuffix(suffix)).as_posix()
                found[stem] = path
    return found


def _existing_folder(folder: str, what: str, name: str) -> str:
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"{what} of data set {name!r} not found: looked for the folder {os.path.abspath(folder)}. "
            "See datasets/README.md for the folder trees; $DETECTRON2_DATASETS (now "
            f"{os.environ.get('DETECTRON2_DATASETS', 'unset, so ./datasets')!r}) is their root"
        )
    return folder


def _some(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def pair_images_with_labels(
    name: str,
    image_root: str,
    label_root: str,
    image_suffix: str = ".jpg",
    label_suffix: str = ".png",
    stems_file: str | None = None,
) -> list[DatasetDict]:
    """List the images that have a label image of the same relative path, in sorted order.

    Args:
        name: the data set, for messages.
        image_root, label_root: folders, searched with their sub-folders.
        image_suffix, label_suffix: endings that are cut off before names are compared, such as ".jpg" and
            "_labelIds.png".
        stems_file: a text file with one relative path without ending per line; only these are used, in this
            order. Without it, every image with a label is.

    Returns:
        [{"file_name", "sem_seg_file_name", "image_id"}]. Images without a label and listed images without a
        file are left out
        with a warning that counts and names them: a partial download is seen, not silently trained on.

    Raises:
        FileNotFoundError: a folder or the list is missing, or nothing is left.
    """
    images = _relative_stems(_existing_folder(image_root, "images", name), image_suffix)
    labels = _relative_stems(_existing_folder(label_root, "label images", name), label_suffix)
    if stems_file is not None:
        wanted = read_stems(stems_file, name)
        no_image = [stem for stem in wanted if stem not in images]
        if no_image:
            logger.warning(
                "%s: %d of the %d images in %s are missing in %s (%s)",
                *(name, len(no_image), len(wanted), stems_file, image_root, _some(no_image)),
            )
    else:
        wanted = sorted(images)
        no_image = []
    unlabelled = [stem for stem in wanted if stem in images and stem not in labels]
    if unlabelled:
        logger.warning(
            "%s: %d of %d images have no label image in %s and are left out (%s)",
            *(name, len(unlabelled), len(wanted), label_root, _some(unlabelled)),
        )
    pairs = [
        {"file_name": images[stem], "sem_seg_file_name": labels[stem], "image_id": stem}
        for stem in wanted
        if stem in images and stem in labels
    ]
    if not pairs:
        raise FileNotFoundError(
            f"data set {name!r} has no image with a label: {len(images)} files *{image_suffix} in {image_root}, "
            f"{len(labels)} files *{label_suffix} in {label_root}"
            + (f", {len(wanted)} names in {stems_file}" if stems_file else "")
            + "; images and labels must have the same relative path apart from these endings"
        )
    return pairs


def read_stems(path: str, name: str) -> list[str]:
    """Read an image list: one relative path without ending per line; empty lines, a byte-order mark and CRLF
    do not matter.

    Raises:
        FileNotFoundError: the list is missing.
        ValueError: it is empty or names an image twice.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"the image list of data set {name!r} is missing: looked for {os.path.abspath(path)} (see datasets/README.md)"
        )
    lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    stems = [line.strip() for line in lines if line.strip()]
    # Some lists of VOC read "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png"
    stems = [Path(stem.split()[0]).stem if stem.startswith("/") else stem for stem in stems]
    if not stems:
        raise ValueError(f"the image list {path} of data set {name!r} is empty")
    if len(set(stems)) != len(stems):
        raise ValueError(f"the image list {path} of data set {name!r} names {len(stems) - len(set(stems))} image(s) twice")
    return stems


# ------------------------------------------------------------------------------------------------- registration
def class_colors(count: int) -> list[Color]:
    """``count`` distinct RGB colours, 0-255; colour k never depends on ``count``, so a longer vocabulary keeps
    the old ones.
    """
    golden = 0.61803398875  # successive multiples of the golden ratio spread evenly over the colour circle
    colors = []
    for k in range(count):
        saturation, value = ((0.85, 0.95), (0.55, 0.80), (0.95, 0.60))[k % 3]
        red, green, blue = colorsys.hsv_to_rgb((k * golden) % 1.0, saturation, value)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colors


def default_protocol(split: ClassSplit, vocabulary: Vocabulary) -> Protocol:
    """GZS3 where seen and unseen classes are told apart together, ZS3 among unseen classes alone, else supervised."""
    if vocabulary == "unseen":
        return "ZS3"
    return "GZS3" if vocabulary == "all" and split.unseen else "supervised"


def register_sem_seg(
    name: str,
    split: ClassSplit,
    image_root: str | os.PathLike[str] | None = None,
    label_root: str | os.PathLike[str] | None = None,
    *,
    vocabulary: Vocabulary = "all",
    label_values: Sequence[int] | Mapping[int, str] | None = None,
    ignore_values: Iterable[int] = (255,),
    image_suffix: str = ".jpg",
    label_suffix: str = ".png",
    stems_file: str | os.PathLike[str] | None = None,
    protocol: Protocol | None = None,
    load: Callable[[], list[DatasetDict]] | None = None,
    expected_images: int | None = None,
    colors: Sequence[Color] | None = None,
) -> None:
    """Register a segmentation data set with Detectron2; the disk is read when the data set is loaded, not here.

    Args:
        name: name in ``DatasetCatalog``.
        split: all classes of the label images and which of them are unseen.
        image_root, label_root: folders with images and label images of the same relative path.
        vocabulary: "seen": training on seen classes, pixels of unseen ones ignored; "all": GZS3 validation, or
            training on everything; "unseen": ZS3 validation, pixels of seen classes ignored.
        label_values, ignore_values: see :func:`label_table`.
        image_suffix, label_suffix, stems_file: see :func:`pair_images_with_labels`.
        protocol: how the evaluator reads the data set; default see :func:`default_protocol`. "cross-dataset"
            says that the model was trained on another data set.
        load: instead of the two folders, a function that returns the dataset dicts ("file_name",
            "sem_seg_file_name", "image_id").
        expected_images: how many images the whole release has; another count is logged as a warning.
        colors: RGB, 0-255, one per class of ``split``; default :func:`class_colors`. The seen and the unseen
            vocabulary of one split keep the colours of the whole.

    Raises:
        ValueError: neither or both of ``load`` and the folders are given, the name is taken, or an argument
            contradicts another.
    """
    if (load is None) == (image_root is None and label_root is None):
        raise ValueError(f"data set {name!r}: give either image_root and label_root, or load")
    if load is None and (image_root is None or label_root is None):
        raise ValueError(f"data set {name!r}: image_root and label_root go together, got {image_root!r} and {label_root!r}")
    if name in DatasetCatalog.list():
        raise ValueError(f"a data set {name!r} is already registered; DatasetCatalog.remove({name!r}) frees the name")
    metadata = sem_seg_metadata(name, split, vocabulary, label_values, ignore_values, protocol, colors)

    def load_checked() -> list[DatasetDict]:
        if load is not None:
            records = load()
        else:
            records = pair_images_with_labels(
                name,
                os.fspath(image_root),  # type: ignore[arg-type]  # not None: checked above
                os.fspath(label_root),  # type: ignore[arg-type]
                image_suffix,
                label_suffix,
                None if stems_file is None else os.fspath(stems_file),
            )
        return checked_records(name, records, expected_images)

    DatasetCatalog.register(name, load_checked)
    MetadataCatalog.get(name).set(**metadata)


def sem_seg_metadata(
    name: str,
    split: ClassSplit,
    vocabulary: Vocabulary = "all",
    label_values: Sequence[int] | Mapping[int, str] | None = None,
    ignore_values: Iterable[int] = (255,),
    protocol: Protocol | None = None,
    colors: Sequence[Color] | None = None,
) -> dict[str, Any]:
    """What :func:`register_sem_seg` writes into the metadata; same arguments, same errors.

    Returns:
        class_split, stuff_classes, stuff_colors, ignore_label, label_table, protocol, evaluator_type.
    """
    if protocol is not None and protocol not in get_args(Protocol):
        raise ValueError(f"data set {name!r}: protocol must be one of {get_args(Protocol)}, got {protocol!r}")
    protocol = protocol or default_protocol(split, vocabulary)
    if protocol == "GZS3" and not (vocabulary == "all" and split.unseen):
        raise ValueError(f"data set {name!r}: GZS3 needs vocabulary 'all' and a split with unseen classes")
    if colors is not None and len(colors) != len(split):
        raise ValueError(f"data set {name!r}: {len(colors)} colours for {len(split)} classes")
    classes = vocabulary_split(split, vocabulary)
    color_of = dict(zip(split.names, colors or class_colors(len(split)), strict=True))
    return {
        "class_split": classes,
        "stuff_classes": list(classes.names),
        "stuff_colors": [color_of[class_name] for class_name in classes.names],
        "ignore_label": IGNORE_LABEL,
        "label_table": label_table(split, vocabulary, label_values, ignore_values),
        "protocol": protocol,
        "evaluator_type": "alignzeg_sem_seg",
    }


def checked_records(name: str, records: list[DatasetDict], expected_images: int | None) -> list[DatasetDict]:
    """Add "dataset_name" to the dataset dicts and compare their number with that of the whole release."""
    if not records:
        raise FileNotFoundError(f"data set {name!r} has no image")
    for record in records:
        missing = [key for key in ("file_name", "sem_seg_file_name", "image_id") if key not in record]
        if missing:
            raise ValueError(f"data set {name!r}: a dataset dict lacks {missing}: {record}")
    warn_about_count(name, len(records), expected_images)
    return [{**record, "dataset_name": name} for record in records]


def warn_about_count(name: str, found: int, expected: int | None) -> None:
    """Log both counts if a data set is not whole."""
    if expected is not None and found != expected:
        logger.warning(
            "%s: found %d images, the whole release has %d; results will not be comparable", name, found, expected
        )
