"""The crop of the training pipeline: anywhere in the image, and padding only to the right and below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zeroshot_d2 import IGNORE_LABEL, ClassSplit, load_config, register_sem_seg
from zeroshot_d2.segmentation.mapper import SegmentationMapper

CROP = ("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.COLOR_AUG_SSD", False)


def mapper(dataset: str, *options: Any) -> SegmentationMapper:
    keys = ["DATASETS.TRAIN", (dataset,), *CROP, "INPUT.RANDOM_FLIP", "none", *options]
    return SegmentationMapper(load_config("demo/alignzeg.yaml", keys), is_train=True)


@pytest.fixture
def coordinates(tmp_path: Path) -> dict[str, Any]:
    """A record whose image says where each pixel comes from: red is the column, green the row, of 60 x 80."""
    rows, columns = np.mgrid[0:60, 0:80].astype(np.uint8)
    Image.fromarray(np.stack([columns, rows, rows], axis=-1)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(tmp_path / "a_label.png")
    record = {
        "file_name": str(tmp_path / "a.png"),
        "sem_seg_file_name": str(tmp_path / "a_label.png"),
        "image_id": 0,
        "dataset_name": "crop_coordinates",
    }
    register_sem_seg("crop_coordinates", ClassSplit(["a"]), load=lambda: [record], replace=True)
    return record


def test_both_axes_are_drawn_independently_and_every_pixel_is_reached(coordinates: dict[str, Any]) -> None:
    crop = mapper("crop_coordinates", "INPUT.MIN_SIZE_TRAIN", (60,), "INPUT.CROP.SIZE", [30, 40])
    np.random.seed(0)  # noqa: NPY002  (what augmentations draw from)
    corners = []
    seen = np.zeros((60, 80), bool)
    for _ in range(600):
        image = crop(coordinates)["image"]
        left, top = int(image[0, 0, 0]), int(image[1, 0, 0])
        corners.append((left, top))
        seen[top : top + 30, left : left + 40] = True
    left, top = np.array(corners).T
    assert {left.min(), left.max(), top.min(), top.max()} == {0, 40, 30}
    assert abs(np.corrcoef(left, top)[0, 1]) < 0.15
    assert seen.mean() > 0.99  # each of the outermost corners is in one crop of 1,271


@pytest.mark.parametrize("flip", ["none", "horizontal"])
def test_padding_lies_to_the_right_and_below_also_of_a_flipped_image(coordinates: dict[str, Any], flip: str) -> None:
    padded = mapper(
        "crop_coordinates", "INPUT.MIN_SIZE_TRAIN", (60,), "INPUT.CROP.SIZE", [90, 100], "INPUT.RANDOM_FLIP", flip
    )
    directions = set()
    for seed in range(20):
        np.random.seed(seed)  # noqa: NPY002
        sample = padded(coordinates)
        assert sample["image"].shape == (3, 90, 100)
        assert (sample["sem_seg"][:60, :80] == 0).all()
        assert (sample["sem_seg"][60:] == IGNORE_LABEL).all() and (sample["sem_seg"][:, 80:] == IGNORE_LABEL).all()
        assert (sample["image"][:, 60:] == 128).all() and (sample["image"][:, :, 80:] == 128).all()
        directions.add(int(sample["image"][0, 0, 0]))
    assert directions == ({0} if flip == "none" else {0, 79})


@pytest.mark.parametrize(
    "options",
    [
        ("INPUT.CROP.TYPE", "relative_range", "INPUT.CROP.SIZE", [0.9, 0.9]),
        ("INPUT.CROP.SIZE", [0, 40]),
        ("INPUT.CROP.SIZE", [40]),
    ],
)
def test_crops_that_are_not_supported(coordinates: dict[str, Any], options: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"INPUT\.CROP\.TYPE .* is not supported: use TYPE 'absolute'"):
        mapper("crop_coordinates", *options)
