"""Registering segmentation data sets: images and label images of the same names, or your own function that lists them.

H, W are the height and width of an image in pixels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from ..class_split import ClassSplit, Vocabulary
from ..pictures.colors import Color, class_colors
from ..registration import DatasetDict, register_dataset, warn_about_count
from ..storage import PathLike, check_inside, read_lines
from .labels import IGNORE_LABEL, label_table

Protocol = Literal["GZS3", "ZS3", "supervised", "cross-dataset"]

EVALUATOR_TYPE = "zero_shot_sem_seg"

logger = logging.getLogger(__name__)


# --------------------------------------------------------------------------------------------------------- folders
def _relative_stems(root: str, suffix: str) -> dict[str, str]:
    """{path below ``root`` without ``suffix``, in any letter case: file}, sub-folders included, hidden files left out.

    Raises:
        ValueError: two files differ in the case of the ending alone.
    """
    found: dict[str, str] = {}
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders.sort()
        for file in files:
            if file.lower().endswith(suffix.lower()) and not file.startswith("."):
                path = os.path.join(folder, file)
                relative = os.path.relpath(path, root)
                stem = Path(relative[: len(relative) - len(suffix)]).as_posix()
                if stem in found:
                    raise ValueError(f"{found[stem]} and {path} would be one image: rename or remove one of them")
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
            "_labelIds.png"; letter case does not matter.
        stems_file: a text file with one relative path without ending per line; only these are used, in this
            order. Without it, every image with a label is.

    Returns:
        [{"file_name", "sem_seg_file_name", "image_id"}]. Images without a label, labels without an image and listed
        images without a file are left out with a warning that counts and names them: a partial download is seen, not
        silently trained on.

    Raises:
        FileNotFoundError: a folder or the list is missing, or nothing is left.
        ValueError: two files differ in the case of their ending alone.
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
        alone = sorted(labels.keys() - images.keys())
        if alone:
            logger.warning(
                "%s: %d of %d label images have no image *%s in %s (%s)",
                *(name, len(alone), len(labels), image_suffix, image_root, _some(alone)),
            )
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
    stems = read_lines(path, f"image list of data set {name!r}", comments=False)
    # Some lists of VOC read "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png"
    stems = [Path(stem.split()[0]).stem if stem.startswith("/") else check_inside(stem, path) for stem in stems]
    if len(set(stems)) != len(stems):
        raise ValueError(
            f"the image list {path} of data set {name!r} names {len(stems) - len(set(stems))} image(s) twice: remove them"
        )
    return stems


# ---------------------------------------------------------------------------------------------------- registration
def default_protocol(split: ClassSplit, vocabulary: Vocabulary) -> Protocol:
    """GZS3 where seen and unseen classes are told apart together, ZS3 among unseen classes alone, else supervised."""
    if vocabulary == "unseen":
        return "ZS3"
    return "GZS3" if vocabulary == "all" and split.unseen else "supervised"


def register_sem_seg(
    name: str,
    split: ClassSplit,
    image_root: PathLike | None = None,
    label_root: PathLike | None = None,
    *,
    vocabulary: Vocabulary = "all",
    label_values: Sequence[int] | Mapping[int, str] | None = None,
    ignore_values: Iterable[int] = (255,),
    image_suffix: str = ".jpg",
    label_suffix: str = ".png",
    stems_file: PathLike | None = None,
    protocol: Protocol | None = None,
    load: Callable[[], list[DatasetDict]] | None = None,
    expected_images: int | None = None,
    colors: Sequence[Color] | None = None,
    replace: bool = False,
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
        replace: take the place of a data set of this name. Without it, the same registration again changes nothing.

    Raises:
        ValueError: neither or both of ``load`` and the folders are given, the name belongs to another data set, or an
            argument contradicts another.
    """
    arguments = {key: value for key, value in locals().items() if key not in ("name", "replace")}
    if (load is None) == (image_root is None and label_root is None):
        raise ValueError(f"data set {name!r}: give either image_root and label_root, or load")
    if load is None and (image_root is None or label_root is None):
        raise ValueError(f"data set {name!r}: image_root and label_root go together, got {image_root!r} and {label_root!r}")
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

    register_dataset(name, load_checked, metadata, arguments, replace=replace)


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
    classes = split.restricted_to(vocabulary)
    color_of = dict(zip(split.names, colors or class_colors(len(split)), strict=True))
    return {
        "class_split": classes,
        "stuff_classes": list(classes.names),
        "stuff_colors": [color_of[class_name] for class_name in classes.names],
        "ignore_label": IGNORE_LABEL,
        "label_table": label_table(split, vocabulary, label_values, ignore_values),
        "protocol": protocol,
        "evaluator_type": EVALUATOR_TYPE,
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
