"""Dataset dicts -> model inputs: reads an image and its labels, augments both, and maps labels to the vocabulary."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform

from ..images import MAX_PIXELS, UnreadableImage, read_image, read_label_image
from ..ranges import check_ranges
from .labels import IGNORE_LABEL, LabelTable

logger = logging.getLogger(__name__)

_IGNORE_BYTE = 0xFF  # both bytes of IGNORE_LABEL
assert IGNORE_LABEL == 0xFFFF


class SegmentationMapper:
    """In training: random size, crop, colour, flip, and padding where the image is smaller than the crop, right and below.

    In testing: the short side.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        skip_unreadable: bool,
        label_tables: Mapping[str, LabelTable] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """
        Args:
            is_train: whether labels are read.
            augmentations: applied to image and labels.
            image_format: "RGB" or "BGR".
            skip_unreadable: return None for a sample whose files cannot be read instead of raising.
            label_tables: by data set, so that loader workers need not know it; others are looked up in MetadataCatalog.
            max_pixels: files with more are refused.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.skip_unreadable = skip_unreadable
        self.label_tables = dict(label_tables or {})
        self.max_pixels = max_pixels

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        check_ranges(cfg)
        if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(cfg.INPUT.MIN_SIZE_TRAIN) != 2:
            raise ValueError(
                f"INPUT.MIN_SIZE_TRAIN {tuple(cfg.INPUT.MIN_SIZE_TRAIN)} must be the least and the greatest side where "
                "INPUT.MIN_SIZE_TRAIN_SAMPLING is 'range'"
            )
        augmentations: list[T.Augmentation | T.Transform]
        if is_train:
            augmentations = [
                ShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
            ]
            # Detectron2's FixedSizeCrop crops along the diagonal, since it draws one number for both axes; here it only
            # pads.
            if cfg.INPUT.CROP.ENABLED:
                augmentations.append(T.RandomCrop("absolute", _crop_size(cfg)))
            if cfg.INPUT.COLOR_AUG_SSD:
                augmentations.append(ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT))
            if cfg.INPUT.RANDOM_FLIP != "none":
                augmentations.append(
                    T.RandomFlip(
                        horizontal=cfg.INPUT.RANDOM_FLIP == "horizontal", vertical=cfg.INPUT.RANDOM_FLIP == "vertical"
                    )
                )
            if cfg.INPUT.CROP.ENABLED:
                augmentations.append(T.FixedSizeCrop(_crop_size(cfg), pad_value=128.0, seg_pad_value=_IGNORE_BYTE))
        else:
            augmentations = [test_resize(cfg)]
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "skip_unreadable": cfg.INPUT.SKIP_UNREADABLE and is_train,
            "label_tables": {name: MetadataCatalog.get(name).label_table for name in cfg.DATASETS.TRAIN} if is_train else {},
            "max_pixels": cfg.INPUT.MAX_PIXELS,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """Adds ``image`` (3, H, W) uint8 and, in training, ``sem_seg`` (H, W) long.

        Raises:
            FileNotFoundError, UnreadableImage: a file is missing or cannot be read; it is named. Where such files are to be
                skipped, None is returned.
            ValueError: a label value is outside the data set's table, or image and labels differ in size.
        """
        dataset_dict = copy.copy(dataset_dict)
        image_file = dataset_dict["file_name"]
        raw_label = None
        try:
            image = read_image(image_file, max_pixels=self.max_pixels)
            if self.is_train:
                label_file = dataset_dict["sem_seg_file_name"]
                raw_label = read_label_image(label_file, photo=image_file, max_pixels=self.max_pixels)
        except (FileNotFoundError, UnreadableImage) as error:
            if self.skip_unreadable:
                logger.warning("skipped: %s", error)
                return None
            raise
        if self.image_format == "BGR":
            image = np.ascontiguousarray(image[:, :, ::-1])
        # Not in the block above: a value that the table does not know is a mistake in the registration, not a broken file.
        sem_seg = None if raw_label is None else self._map_label(raw_label, dataset_dict)
        if sem_seg is not None and sem_seg.shape != image.shape[:2]:
            raise ValueError(
                f"{image_file} is {image.shape[1]}x{image.shape[0]} pixels, but its labels "
                f"{label_file} are {sem_seg.shape[1]}x{sem_seg.shape[0]}"
            )
        dataset_dict.setdefault("height", image.shape[0])
        dataset_dict.setdefault("width", image.shape[1])
        aug_input = T.AugInput(image, sem_seg=None if sem_seg is None else _to_planes(sem_seg))
        self.augmentations(aug_input)
        dataset_dict["image"] = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        if aug_input.sem_seg is not None:
            dataset_dict["sem_seg"] = torch.from_numpy(_from_planes(aug_input.sem_seg).astype(np.int64))
        return dataset_dict

    def _map_label(self, raw_label: np.ndarray, dataset_dict: dict[str, Any]) -> np.ndarray:
        """Label values (H, W) -> vocabulary indices (H, W); an unknown value is an error that names the file."""
        name = dataset_dict["dataset_name"]
        table = self.label_tables.get(name) or MetadataCatalog.get(name).label_table
        try:
            return table.apply(raw_label)
        except ValueError as error:
            raise ValueError(f"{dataset_dict['sem_seg_file_name']}: {error}") from error


class ShortestEdge(T.ResizeShortestEdge):
    """Detectron2's resizing, which gives a very thin image a side of 0 pixels; here each side keeps at least one."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        if min(height, width) * self.max_size >= max(height, width):
            return super().get_transform(image)
        scale = self.max_size / max(height, width)
        return T.ResizeTransform(height, width, *(max(1, round(side * scale)) for side in (height, width)), self.interp)


def test_resize(cfg: CfgNode) -> ShortestEdge:
    """What brings an image to the size of testing: with TEST.AUG the largest of its sizes, from which the model makes the
    others."""
    if cfg.TEST.AUG.ENABLED:
        return ShortestEdge(max(cfg.TEST.AUG.MIN_SIZES), cfg.TEST.AUG.MAX_SIZE)
    return ShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)


def _crop_size(cfg: CfgNode) -> tuple[int, int]:
    """Height and width of INPUT.CROP.

    Raises:
        ValueError: they are no positive whole numbers, or another kind of crop is asked for.
    """
    size = tuple(cfg.INPUT.CROP.SIZE)
    if cfg.INPUT.CROP.TYPE != "absolute" or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(
            f"INPUT.CROP.TYPE {cfg.INPUT.CROP.TYPE!r} with INPUT.CROP.SIZE {list(size)} is not supported: use TYPE "
            "'absolute' and SIZE [height, width] in pixels"
        )
    return size[0], size[1]


def _to_planes(label: np.ndarray) -> np.ndarray:
    """(H, W) uint16 -> (H, W, 2) uint8: Detectron2's transforms resize bytes about pixel centres, as they do the image,
    but larger types about pixel corners, half a pixel off."""
    return np.stack([label >> 8, label & 0xFF], axis=-1).astype(np.uint8)


def _from_planes(planes: np.ndarray) -> np.ndarray:
    """(H, W, 2) uint8 -> (H, W) uint16."""
    return (planes[..., 0].astype(np.uint16) << 8) | planes[..., 1]
