"""The picture of a data set."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from tiny_releases import faulty_release, save_noise, save_values

from zeroshot_d2 import ClassSplit, register_multilabel, register_sem_seg
from zeroshot_d2.datasets.contact_sheet import _font, contact_sheet

SPLIT = ClassSplit(["cat", "dog", "cow"], unseen=["dog"])
NAME = "test_contact_sheet"


@pytest.fixture(autouse=True)
def unregister():
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def sheet_of_a_dog(folder, width, height):
    """The sheet of one black image that is a dog from edge to edge."""
    Image.new("RGB", (width, height), "black").save(folder / "0.png")
    save_values(folder / "labels/0.png", np.full((height, width), 1))
    records = [{"file_name": str(folder / "0.png"), "sem_seg_file_name": str(folder / "labels/0.png"), "image_id": 0}]
    register_sem_seg(NAME, SPLIT, load=lambda: records, colors=[(0, 0, 0), (200, 100, 50), (9, 9, 9)])
    contact_sheet(NAME, folder / "sheet.png")
    return Image.open(folder / "sheet.png")


def test_labels_are_laid_over_in_their_colour(tmp_path):
    with sheet_of_a_dog(tmp_path, 320, 240) as sheet:
        assert sheet.getpixel((100, 100)) == (100, 50, 25)


def test_small_images_are_enlarged_and_stars_are_drawn(tmp_path):
    with sheet_of_a_dog(tmp_path, 64, 50) as sheet:
        assert sheet.getpixel((255, 199)) == (100, 50, 25)  # four times as large
        assert sheet.getpixel((257, 100)) == sheet.getpixel((100, 202)) == (255, 255, 255)
    font = _font("DejaVu Sans")
    assert bytes(font.getmask("★")) != bytes(font.getmask("\U0010ffff"))  # what stands for letters that it lacks


def test_a_file_that_cannot_be_read_is_a_grey_tile(tmp_path):
    faulty_release(tmp_path)
    register_sem_seg(NAME, SPLIT, tmp_path / "images", tmp_path / "labels")
    contact_sheet(NAME, tmp_path / "sheet", count=8)
    with Image.open(tmp_path / "sheet") as sheet:
        assert sheet.format == "PNG" and sheet.width == 4 * 328
        right_edge = [sheet.getpixel((328 * column + 318, 120)) for column in range(4)]
    assert [color == (211, 211, 211) for color in right_edge] == [False, False, False, True]  # the fourth has a bad value


def test_image_level_labels(tmp_path):
    for i in range(3):
        save_noise(tmp_path / f"{i}.jpg")
    labels = {"0.jpg": {"cat": 1, "dog": -1}, "1.jpg": {"cat": 1}, "2.jpg": {}, "gone.jpg": {"cow": 1}}
    register_multilabel(NAME, SPLIT, tmp_path, labels)
    contact_sheet(NAME, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        legend = np.asarray(sheet)[240:300, :328].reshape(-1, 3)
    assert (legend == (200, 0, 0)).all(axis=1).any()  # the dog, verified to be absent
