"""Dataset dicts -> model inputs: reads an image and makes it the square that the model sees.

Shapes: S side of the square, K classes.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor
from torchvision.transforms import v2

from ..images import MAX_PIXELS, ImageArray, UnreadableImage, image_size, read_image
from ..ranges import check_ranges
from ..vocabulary import split_of_dataset

logger = logging.getLogger(__name__)


class MultiLabelMapper:
    """In training: random crop, size and flip. In testing: the whole image, squeezed to the square.

    A JPEG of which a crop is drawn is decoded at the smallest scale at which the crop has the pixels of the square. In
    testing, and in prediction, images are decoded at their own size.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        crop: v2.RandomResizedCrop | None = None,
        transform: v2.Transform,
        image_format: str,
        skip_unreadable: bool,
        num_classes: Mapping[str, int] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """
        Args:
            is_train: whether labels are needed.
            crop: a random part of the image, made the square; None: ``transform`` gets the whole image.
            transform: torchvision's, from (3, H, W) uint8, or what ``crop`` made of it, to (3, S, S) uint8.
            image_format: "RGB" or "BGR".
            skip_unreadable: return None for an image that cannot be read instead of raising.
            num_classes: K by data set, so that loader workers need not know it; others are looked up in MetadataCatalog.
            max_pixels: files with more are refused.
        """
        self.is_train = is_train
        self.crop = crop
        self.transform = transform
        self.image_format = image_format
        self.skip_unreadable = skip_unreadable
        self.num_classes = dict(num_classes or {})
        self.max_pixels = max_pixels

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        check_ranges(cfg)
        size = (cfg.INPUT.IMAGE_SIZE, cfg.INPUT.IMAGE_SIZE)
        least, most = cfg.INPUT.CROP_SCALE
        if least > most:
            raise ValueError(f"INPUT.CROP_SCALE must be shares 0 < least <= most <= 1, got {least, most}")
        crops = is_train and least < 1
        steps: list[v2.Transform] = [v2.Identity() if crops else v2.Resize(size, antialias=True)]
        if is_train and cfg.INPUT.RANDOM_FLIP != "none":
            flips = {"horizontal": v2.RandomHorizontalFlip, "vertical": v2.RandomVerticalFlip}
            steps.append(flips[cfg.INPUT.RANDOM_FLIP]())
        return {
            "is_train": is_train,
            "crop": v2.RandomResizedCrop(size, scale=(least, most), antialias=True) if crops else None,
            "transform": v2.Compose(steps),
            "image_format": cfg.INPUT.FORMAT,
            "skip_unreadable": cfg.INPUT.SKIP_UNREADABLE and is_train,
            "num_classes": {
                name: len(split_of_dataset(name)) for name in (cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST)
            },
            "max_pixels": cfg.INPUT.MAX_PIXELS,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """Adds ``image`` (3, S, S) uint8; labels stay sparse: ``positive_labels`` and ``negative_labels``, class indices.

        Raises:
            FileNotFoundError, UnreadableImage: the image is missing or cannot be read; it is named. None is returned instead
                where unreadable images are to be skipped.
            ValueError: a label outside the vocabulary, or none where training needs them.
        """
        dataset_dict = copy.copy(dataset_dict)
        check_labels(
            dataset_dict, required=self.is_train, num_classes=self.num_classes.get(dataset_dict.get("dataset_name", ""))
        )
        try:
            image = self._read(dataset_dict["file_name"])
        except (FileNotFoundError, UnreadableImage) as error:
            if self.skip_unreadable:
                logger.warning("skipped: %s", error)
                return None
            raise
        dataset_dict["image"] = self.transform(image)
        return dataset_dict

    def _read(self, path: str) -> Tensor:
        """The image (3, H, W), or the square (3, S, S) that was drawn from it."""
        if self.crop is None:
            return self._as_tensor(read_image(path, max_pixels=self.max_pixels))
        # Drawn before the image is decoded: the decoder of JPEG can leave out detail that the square will not show.
        height, width = image_size(path, max_pixels=self.max_pixels)
        box = self.crop.make_params([torch.empty(1, height, width, device="meta")])  # which looks at the size alone
        side_y, side_x = self.crop.size
        at_least = (math.ceil(height * side_y / box["height"]), math.ceil(width * side_x / box["width"]))
        image = self._as_tensor(read_image(path, max_pixels=self.max_pixels, at_least=at_least))
        return self.crop.transform(image, _scaled(box, (height, width), (image.shape[-2], image.shape[-1])))

    def _as_tensor(self, image: ImageArray) -> Tensor:
        """RGB (H, W, 3) -> (3, H, W) in the model's order."""
        if self.image_format == "BGR":
            image = image[:, :, ::-1]
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _scaled(box: Mapping[str, int], size: tuple[int, int], smaller: tuple[int, int]) -> dict[str, int]:
    """A crop of an image of (H, W) ``size`` in the same image of a ``smaller`` size."""
    axes = {"top": 0, "height": 0, "left": 1, "width": 1}
    # Rounded down, it neither ends behind the image nor falls below the square, whose sides are whole.
    return {key: value * smaller[axes[key]] // size[axes[key]] for key, value in box.items()}


def check_labels(dataset_dict: dict[str, Any], *, required: bool, num_classes: int | None = None) -> None:
    """Compare the labels of a dataset dict with the vocabulary of its data set.

    Args:
        dataset_dict: of one image.
        required: whether labels must be there.
        num_classes: K; by default that of the data set, which then must be registered.

    Raises:
        ValueError: an index outside the vocabulary, or no ``positive_labels`` although they are ``required``.
    """
    if "positive_labels" not in dataset_dict:
        if required:
            raise ValueError(
                f'{dataset_dict.get("file_name")} has no "positive_labels": register the data set with '
                "zeroshot_d2.register_multilabel"
            )
        return
    if num_classes is None:
        num_classes = len(split_of_dataset(dataset_dict["dataset_name"]))
    for key in ("positive_labels", "negative_labels"):
        labels = np.asarray(dataset_dict.get(key, ()), dtype=np.int64)
        if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
            raise ValueError(
                f"{dataset_dict.get('file_name')}: {key} {labels.tolist()} are not all among the {num_classes} classes of "
                f"data set {dataset_dict['dataset_name']!r}"
            )
