"""The data sets of the two papers under ``$DETECTRON2_DATASETS``, by name; datasets/README.md shows the folder trees.

Importing this module registers names and reads nothing: class lists are read when a data set's metadata is
first asked for, folders when it is loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from ..class_split import ClassSplit, Vocabulary
from ..multilabel.columns import LabelColumns, MultiLabelDataset
from ..multilabel.registration import multilabel_metadata, vocabulary_ids
from ..registration import DatasetDict, warn_about_count
from ..segmentation.registration import Protocol, checked_records, pair_images_with_labels, sem_seg_metadata
from ..storage import datasets_root


@dataclass(frozen=True)
class ClassList:
    """A class list of ``zeroshot_d2/datasets/data/*.json``.

    Args:
        split: names, unseen names and prompt texts.
        source: where the list and its split are from.
        class_ids: what the release calls each class, unique; the names unless the list says otherwise.
        label_values: value of each class in the label images; empty for image-level labels.
        ignore_values: values of pixels without a class; empty for image-level labels.
        release_ids: id of each class in the release, where the label images are written by a preparation;
            else empty.
    """

    split: ClassSplit
    source: str
    class_ids: tuple[str, ...]
    label_values: tuple[int, ...] = ()
    ignore_values: tuple[int, ...] = ()
    release_ids: tuple[int, ...] = ()


@cache
def load_class_list(name: str) -> ClassList:
    """Read the class list ``name``, for example "coco_stuff_164k".

    Raises:
        ValueError: there is no such list.
    """
    folder = resources.files(f"{__package__}.data")
    file = folder / f"{name}.json"
    if not file.is_file():
        known = sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".json"))
        raise ValueError(f"no class list {name!r}; there are {', '.join(known)}")
    content = json.loads(file.read_text(encoding="utf-8"))
    classes = content["classes"]
    values = tuple(entry["value"] for entry in classes if "value" in entry)
    ignored = set(content.get("ignore_values", ()))
    if content.get("ignore_other_values", False):
        ignored |= set(range(4096)) - set(values)  # no release has more values than that
    return ClassList(
        split=ClassSplit(
            names=tuple(entry["name"] for entry in classes),
            unseen=tuple(content["unseen"]),
            prompts=tuple(entry.get("prompt", entry.get("released", entry["name"])) for entry in classes),
            aliases=tuple(entry.get("aliases", "") for entry in classes),
            released=tuple(entry.get("released", entry["name"]) for entry in classes),
        ),
        source=content["source"],
        class_ids=tuple(entry.get("id", entry["name"]) for entry in classes),
        label_values=values,
        ignore_values=tuple(sorted(ignored)),
        release_ids=tuple(entry["release_id"] for entry in classes if "release_id" in entry),
    )


@dataclass(frozen=True)
class Folders:
    """Where one part (train, val) of a release lies below :func:`datasets_root`."""

    images: str
    labels: str
    stems_file: str | None = None
    label_suffix: str = ".png"
    how_to_get: str = ""


@dataclass(frozen=True)
class BuiltinSemSeg:
    """One registered segmentation data set."""

    name: str
    class_list: str
    folders: Folders
    vocabulary: Vocabulary
    num_images: int
    protocol: Protocol | None = None  # None: what the vocabulary implies


_COCO_TRAIN = Folders("coco/train2017", "coco/stuffthingmaps/train2017")
_COCO_VAL = Folders("coco/val2017", "coco/stuffthingmaps/val2017")
_VOC = "VOCdevkit/VOC2012"
_VOC_TRAIN = Folders(
    f"{_VOC}/JPEGImages",
    f"{_VOC}/SegmentationClassAug",
    f"{_VOC}/ImageSets/Segmentation/trainaug.txt",
    how_to_get="SegmentationClassAug and trainaug.txt are no part of the official download; `python -m zeroshot_d2 datasets "
    "download voc2012` makes them from SBD's labels. If only the list is missing: it "
    "holds every name in SegmentationClassAug that is not in val.txt, so in VOC2012 this makes it: "
    "ls SegmentationClassAug | sed 's/.png$//' | grep -vxFf ImageSets/Segmentation/val.txt "
    "> ImageSets/Segmentation/trainaug.txt",
)
# The official SegmentationClass holds all of val, with the same values; so evaluation needs only the official
# download.
_VOC_VAL = Folders(f"{_VOC}/JPEGImages", f"{_VOC}/SegmentationClass", f"{_VOC}/ImageSets/Segmentation/val.txt")
_VOC2010 = "VOCdevkit/VOC2010"
_CONTEXT_HINT = "The label images are made by `python -m zeroshot_d2 datasets prepare pascal_context`"
_CONTEXT_59 = f"{_VOC2010}/pascal_context_59"
_CONTEXT_TRAIN, _CONTEXT_VAL = (
    Folders(f"{_VOC2010}/JPEGImages", f"{_CONTEXT_59}/labels", f"{_CONTEXT_59}/{part}.txt", how_to_get=_CONTEXT_HINT)
    for part in ("train", "val")
)
_CONTEXT_459 = f"{_VOC2010}/pascal_context_459"
_CONTEXT_459_VAL = Folders(
    f"{_VOC2010}/JPEGImages",
    f"{_CONTEXT_459}/labels",
    f"{_CONTEXT_459}/val.txt",
    how_to_get="The label images are made by `python -m zeroshot_d2 datasets prepare pascal_context_459`",
)
_ADE_150_VAL = Folders("ADEChallengeData2016/images/validation", "ADEChallengeData2016/annotations/validation")
_ADE_847 = "ADE20K_2021_17_01/ade20k_847"
_ADE_847_VAL = Folders(
    f"{_ADE_847}/images/validation",
    f"{_ADE_847}/labels/validation",
    how_to_get="Images and label images are made by `python -m zeroshot_d2 datasets prepare ade20k_847`",
)


def _zero_shot(name: str, class_list: str, train: Folders, val: Folders, images: tuple[int, int]) -> list[BuiltinSemSeg]:
    """The four views of a data set with a seen/unseen split."""
    return [
        BuiltinSemSeg(f"{name}_train_seen", class_list, train, "seen", images[0]),
        BuiltinSemSeg(f"{name}_train_all", class_list, train, "all", images[0], "supervised"),
        BuiltinSemSeg(f"{name}_val", class_list, val, "all", images[1]),
        BuiltinSemSeg(f"{name}_val_unseen", class_list, val, "unseen", images[1]),
    ]


def _cross_dataset(name: str, class_list: str, folders: Folders, images: int) -> BuiltinSemSeg:
    return BuiltinSemSeg(name, class_list, folders, "all", images, "cross-dataset")


SEM_SEG_DATASETS: tuple[BuiltinSemSeg, ...] = (
    *_zero_shot("coco_stuff_164k", "coco_stuff_164k", _COCO_TRAIN, _COCO_VAL, (118_287, 5_000)),
    *_zero_shot("voc2012", "voc2012", _VOC_TRAIN, _VOC_VAL, (10_582, 1_449)),
    *_zero_shot("pascal_context_59", "pascal_context_59", _CONTEXT_TRAIN, _CONTEXT_VAL, (4_996, 5_104)),
    # VOC-20 and PC-59 for models that were trained on COCO-Stuff (Table 3): the same images, no split of their own
    _cross_dataset("voc2012_val_cross_dataset", "voc2012", _VOC_VAL, 1_449),
    _cross_dataset("pascal_context_59_val_cross_dataset", "pascal_context_59", _CONTEXT_VAL, 5_104),
    _cross_dataset("pascal_context_459_val", "pascal_context_459", _CONTEXT_459_VAL, 5_104),
    _cross_dataset("ade20k_150_val", "ade20k_150", _ADE_150_VAL, 2_000),
    _cross_dataset("ade20k_847_val", "ade20k_847", _ADE_847_VAL, 2_000),
)


def load_sem_seg(dataset: BuiltinSemSeg) -> list[DatasetDict]:
    """Dataset dicts of a built-in data set; compares their number with the release's.

    Raises:
        FileNotFoundError: a folder or list is missing: which, where it was looked for, and how to get it.
    """
    root, folders = datasets_root(), dataset.folders
    try:
        records = pair_images_with_labels(
            dataset.name,
            os.path.join(root, folders.images),
            os.path.join(root, folders.labels),
            label_suffix=folders.label_suffix,
            stems_file=os.path.join(root, folders.stems_file) if folders.stems_file else None,
        )
    except FileNotFoundError as error:
        if not folders.how_to_get:
            raise
        raise FileNotFoundError(f"{error}. {folders.how_to_get}") from error
    return checked_records(dataset.name, records, dataset.num_images)


def _build_sem_seg_metadata(dataset: BuiltinSemSeg) -> dict[str, Any]:
    classes = load_class_list(dataset.class_list)
    split = classes.split
    if dataset.protocol == "cross-dataset" or dataset.name.endswith("_train_all"):
        split = replace(split, unseen=())  # nothing is unseen where all is trained, or all is foreign
    return sem_seg_metadata(
        dataset.name, split, dataset.vocabulary, classes.label_values, classes.ignore_values, dataset.protocol
    )


class LazyMetadata(Metadata):
    """Detectron2 metadata whose values are built when one of them is first asked for."""

    def __init__(self, name: str = "N/A", build: Callable[[], dict[str, Any]] | None = None) -> None:
        super().__init__(name=name)
        if build is not None:  # None: being unpickled
            self.__dict__["_build"] = build

    def _fill(self) -> bool:
        """Build the values; False if that has been done before."""
        build = self.__dict__.pop("_build", None)
        if build is None:
            return False
        self.__dict__.update({**build(), **self.__dict__})  # what a user has set in the meantime stays
        return True

    def __getattr__(self, key: str) -> Any:
        if not key.startswith("__") and self._fill():
            return getattr(self, key)
        return super().__getattr__(key)

    def as_dict(self) -> dict[str, Any]:
        """All values, as Detectron2's ``Metadata.as_dict``."""
        self._fill()
        return super().as_dict()


@dataclass(frozen=True)
class BuiltinMultiLabel:
    """One registered data set with image-level labels."""

    name: str
    class_list: str
    images: str  # folders below datasets_root()
    labels: str  # the file that the preparation writes
    vocabulary: Vocabulary
    num_images: int | None  # None: not known for certain, so not checked
    complete: bool  # no label = absent (True) or not annotated (False)
    preparation: str  # the name that `datasets prepare` takes
    only_unseen_classes: bool = False  # the unseen classes as a data set of their own, where nothing is unseen


def _nus_wide(name: str, part: str, vocabulary: Vocabulary, images: int, only_81: bool = False) -> BuiltinMultiLabel:
    return BuiltinMultiLabel(
        *(name, "nus_wide", "nus_wide/Flickr", f"nus_wide/nus_wide_{part}.npz", vocabulary, images, True),
        preparation="nus_wide",
        only_unseen_classes=only_81,
    )


def _open_images(name: str, part: str, vocabulary: Vocabulary, images: int | None) -> BuiltinMultiLabel:
    labels = f"open_images_v4/open_images_v4_{part}.npz"
    return BuiltinMultiLabel(
        *(name, "open_images_v4", f"open_images_v4/{part}", labels, vocabulary, images, False),
        preparation="open_images_v4",
    )


MULTILABEL_DATASETS: tuple[BuiltinMultiLabel, ...] = (
    _nus_wide("nus_wide_train", "train", "seen", 161_789),
    _nus_wide("nus_wide_test", "test", "all", 107_859),
    _nus_wide("nus_wide_81_train", "train", "all", 161_789, only_81=True),
    _nus_wide("nus_wide_81_test", "test", "all", 107_859, only_81=True),
    # The release has 9,011,219 training images, but only those with a human label are of use, and these it
    # does not count.
    _open_images("open_images_v4_train", "train", "seen", None),
    _open_images("open_images_v4_train_boxes", "train_boxes", "seen", None),  # those that are offered for download
    _open_images("open_images_v4_val", "validation", "all", 41_620),
    _open_images("open_images_v4_test", "test", "all", 125_436),
)


def _multilabel_classes(dataset: BuiltinMultiLabel) -> tuple[ClassSplit, tuple[str, ...]]:
    """Split and class ids of a built-in data set."""
    classes = load_class_list(dataset.class_list)
    if not dataset.only_unseen_classes:
        return classes.split, classes.class_ids
    kept = classes.split.unseen_indices
    return replace(classes.split.only_unseen(), unseen=()), tuple(classes.class_ids[k] for k in kept)


def load_multilabel(dataset: BuiltinMultiLabel) -> MultiLabelDataset:
    """A built-in data set with image-level labels, memory-mapped; compares its length with the release's.

    Raises:
        FileNotFoundError: the prepared file is missing: where it was looked for, and which command makes it.
    """
    labels = os.path.join(datasets_root(), dataset.labels)
    if not os.path.isfile(labels):
        raise FileNotFoundError(
            f"labels of data set {dataset.name!r} not found: looked for {os.path.abspath(labels)}, which "
            f"`python -m zeroshot_d2 datasets prepare {dataset.preparation}` makes (see datasets/README.md); "
            "$DETECTRON2_DATASETS is the root"
        )
    split, class_ids = _multilabel_classes(dataset)
    loaded = MultiLabelDataset(
        dataset.name,
        LabelColumns.open(labels),
        os.path.join(datasets_root(), dataset.images),
        vocabulary_ids=vocabulary_ids(split, class_ids, dataset.vocabulary),
        known_ids=None,  # the file serves several vocabularies
    )
    warn_about_count(dataset.name, len(loaded), dataset.num_images)
    return loaded


def _build_multilabel_metadata(dataset: BuiltinMultiLabel) -> dict[str, Any]:
    split, class_ids = _multilabel_classes(dataset)
    return multilabel_metadata(dataset.name, split, class_ids, dataset.vocabulary, dataset.complete)


def register_all() -> None:
    """Register every built-in data set that is not registered yet; reads nothing."""
    entries: list[tuple[str, Callable[[], Any], Callable[[], dict[str, Any]]]] = [
        *((d.name, partial(load_sem_seg, d), partial(_build_sem_seg_metadata, d)) for d in SEM_SEG_DATASETS),
        *((d.name, partial(load_multilabel, d), partial(_build_multilabel_metadata, d)) for d in MULTILABEL_DATASETS),
    ]
    for name, load, build_metadata in entries:
        if name not in DatasetCatalog.list():
            DatasetCatalog.register(name, load)
            MetadataCatalog[name] = LazyMetadata(name, build_metadata)
