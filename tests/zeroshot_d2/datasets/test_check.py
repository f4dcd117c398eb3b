"""The check of a registered data set finds what is put in."""

import csv

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from tiny_releases import faulty_release, save_noise

from zeroshot_d2 import ClassSplit, register_multilabel, register_sem_seg
from zeroshot_d2.datasets.check import check

SPLIT = ClassSplit(["cat", "dog", "cow"], unseen=["dog"])
NAME = "test_check_dataset"


@pytest.fixture(autouse=True)
def unregister():
    yield
    if NAME in DatasetCatalog.list():
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_fault_is_named_and_classes_are_counted(tmp_path, workers):
    faulty_release(tmp_path)
    register_sem_seg(NAME, SPLIT, tmp_path / "images", tmp_path / "labels")
    report = check(NAME, workers=workers)
    assert (report.num_images, report.num_checked, len(report.problems)) == (8, 8, 4)
    cut, side, size, value = (
        next(problem for problem in report.problems if part in problem)
        for part in ("4_cut.jpg", "7_side.jpg", "6_size.jpg", "3_value.png")
    )
    assert "cannot read the image" in cut
    assert "is 6x4 pixels" in side and "4x6" in side and "lies on its side" in side
    assert "is 6x4 pixels" in size and "5x5" in size and "side" not in size
    assert "label value(s) 77 are neither" in value
    assert report.images.tolist() == [4, 2, 0] and report.amount.tolist() == [24 + 2400 + 24 + 25, 48, 0]
    assert report.without_label == 1
    text = report.text()
    assert "classes that do not occur: 1 (cow" in text and "faults: 4" in text


def test_image_level_labels(tmp_path):
    for i in range(3):
        save_noise(tmp_path / f"{i}.jpg")
    labels = {"0.jpg": {"cat": 1, "dog": -1}, "1.jpg": {"cat": 1}, "2.jpg": {}, "gone.jpg": {"cow": 1}}
    register_multilabel(NAME, SPLIT, tmp_path, labels)
    report = check(NAME)
    assert report.images.tolist() == [2, 0, 1] and report.amount.tolist() == [0, 1, 0]
    assert report.without_label == 1 and len(report.problems) == 1 and "gone.jpg" in report.problems[0]
    assert "verified absent" in report.text()


def test_a_limit_is_spread_over_the_data_set(tmp_path):
    for i in range(9):
        save_noise(tmp_path / f"{i}.jpg")
    register_multilabel(NAME, SPLIT, tmp_path, {f"{i}.jpg": ["cat"] if i in (0, 4, 8) else ["cow"] for i in range(9)})
    report = check(NAME, limit=3)
    assert report.num_checked == 3 and report.num_images == 9 and report.images.tolist() == [3, 0, 0]
    with pytest.raises(ValueError, match="got 0"):
        check(NAME, limit=0)


def test_a_data_set_without_a_split_is_refused():
    DatasetCatalog.register(NAME, list)
    with pytest.raises(ValueError, match="no class split"):
        check(NAME)


def test_what_was_found_is_written_whole(tmp_path):
    faulty_release(tmp_path)
    register_sem_seg(NAME, SPLIT, tmp_path / "images", tmp_path / "labels")
    report = check(NAME)
    report.save(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["classes.csv", "faults.txt"]
    with open(tmp_path / "out/classes.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["class", "unseen", "images", "pixels"],
            *(["cat", "0", "4", "2473"], ["dog", "1", "2", "48"], ["cow", "0", "0", "0"]),
        ]
    assert (tmp_path / "out/faults.txt").read_text().splitlines() == report.problems


def test_unseen_classes_have_a_star(tmp_path):
    register_multilabel(NAME, SPLIT, tmp_path, {"gone.jpg": ["cat"]})
    assert "★ dog" in check(NAME).text() and "★ cat" not in check(NAME).text()


def test_a_name_that_is_not_registered():
    with pytest.raises(ValueError, match="no data set 'nothing' is registered; .*datasets list.*--import FILE"):
        check("nothing")
