"""A-847, from a tiny release in its official format."""

import numpy as np
import pytest
import tiny_releases
from detectron2.data import DatasetCatalog
from PIL import Image
from tiny_releases import names_in_order

from zeroshot_d2.datasets.preparation.ade20k_847 import convert, rewrite
from zeroshot_d2.images import read_label_image


def test_from_colour_coded_segmentations(root):
    tiny_releases.ade20k_847(root)
    (record,) = DatasetCatalog.get("ade20k_847_val")
    assert names_in_order("ade20k_847_val", record) == ["wall", "building", None]
    with Image.open(record["file_name"]) as image:
        assert image.size == (tiny_releases.WIDTH // 2, tiny_releases.HEIGHT // 2)
        assert read_label_image(record["sem_seg_file_name"]).shape == image.size[::-1]
    release = root / "ADE20K_2021_17_01"
    with pytest.raises(FileNotFoundError, match="no image found below"):
        convert(release, release / "ade20k_847", "training")


def test_another_short_side_keeps_no_old_files(root):
    tiny_releases.ade20k_847(root)
    release = root / "ADE20K_2021_17_01"
    side = min(tiny_releases.WIDTH, tiny_releases.HEIGHT) // 2
    with pytest.raises(ValueError, match=f"as with --short-side {side - 1}: take the value of the earlier run"):
        convert(release, release / "ade20k_847", "validation", short_side=side - 1)
    convert(release, release / "ade20k_847", "validation", short_side=side)


def test_a_missing_segmentation_is_named(root):
    tiny_releases.save_photo(root / "x.jpg")
    with pytest.raises(ValueError, match="x.jpg or its _seg.png"):
        rewrite((root / "x.jpg", root / "o.jpg", root / "o.png", 0))


def test_a_photo_on_its_side_is_turned_upright_with_its_labels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by a quarter, clockwise
    Image.fromarray(np.array([[9, 9, 200]] * 2, dtype=np.uint8)).save(tmp_path / "x.jpg", exif=exif, quality=100)
    codes = np.zeros((2, 3, 3), dtype=np.uint8)
    codes[..., 1] = [[1, 2, 3], [4, 5, 6]]  # green: the class
    Image.fromarray(codes).save(tmp_path / "x_seg.png")
    rewrite((tmp_path / "x.jpg", tmp_path / "o.jpg", tmp_path / "o.png", 0))
    np.testing.assert_array_equal(read_label_image(tmp_path / "o.png", photo=tmp_path / "o.jpg"), [[4, 1], [5, 2], [6, 3]])
    with Image.open(tmp_path / "o.jpg") as image:
        assert image.size == (2, 3) and not image.getexif()
        assert image.getpixel((0, 0))[0] < 100 < image.getpixel((0, 2))[0]
