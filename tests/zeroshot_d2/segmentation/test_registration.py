"""Registration of segmentation data sets: folders, lists, functions, metadata."""

import logging
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from zeroshot_d2 import IGNORE_LABEL, ClassSplit, register_sem_seg
from zeroshot_d2.pictures.colors import class_colors

SPLIT = ClassSplit(["cat", "dog", "cow"], unseen=["dog"])


@pytest.fixture
def name():
    name = "test_sem_seg_dataset"
    yield name
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def write_release(root: Path, stems=("a", "sub/b")) -> tuple[Path, Path]:
    images, labels = root / "images", root / "labels"
    for stem in stems:
        for folder, suffix in ((images, ".jpg"), (labels, ".png")):
            (folder / stem).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.zeros((4, 5, 3) if suffix == ".jpg" else (4, 5), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{stem}{suffix}")
    return images, labels


def test_registered_dataset(tmp_path, name, caplog):
    images, labels = write_release(tmp_path)
    (labels / "sub" / "b.png").unlink()
    register_sem_seg(name, SPLIT, images, labels, vocabulary="seen", expected_images=2)
    with caplog.at_level(logging.WARNING):
        records = DatasetCatalog.get(name)
    assert records == [
        {
            "file_name": str(images / "a.jpg"),
            "sem_seg_file_name": str(labels / "a.png"),
            "image_id": "a",
            "dataset_name": name,
        }
    ]
    assert "1 of 2 images have no label" in caplog.text and "sub/b" in caplog.text
    assert "found 1 images, the whole release has 2" in caplog.text
    meta = MetadataCatalog.get(name)
    assert meta.class_split == SPLIT.only_seen() and meta.stuff_classes == ["cat", "cow"]
    assert meta.protocol == "supervised" and meta.ignore_label == IGNORE_LABEL
    assert meta.evaluator_type == "zero_shot_sem_seg"
    assert meta.stuff_colors == [class_colors(3)[0], class_colors(3)[2]]


def test_labels_without_an_image_are_named(tmp_path, name, caplog):
    images, labels = write_release(tmp_path, ("a", "sub/b", "c"))
    (images / "sub" / "b.jpg").unlink()
    register_sem_seg(name, SPLIT, images, labels)
    with caplog.at_level(logging.WARNING):
        assert [record["image_id"] for record in DatasetCatalog.get(name)] == ["a", "c"]
    assert "1 of 3 label images have no image *.jpg" in caplog.text and "sub/b" in caplog.text


def test_endings_in_capitals_count(tmp_path, name, caplog):
    images, labels = write_release(tmp_path)
    (images / "a.jpg").rename(images / "a.JPG")
    (labels / "a.png").rename(labels / "a.Png")
    register_sem_seg(name, SPLIT, images, labels)
    with caplog.at_level(logging.WARNING):
        assert [Path(record["file_name"]).name for record in DatasetCatalog.get(name)] == ["a.JPG", "b.jpg"]
    assert not caplog.records


def test_images_that_differ_in_the_case_of_the_ending_alone(tmp_path, name):
    images, labels = write_release(tmp_path, ("a",))
    (images / "a.JPG").write_bytes((images / "a.jpg").read_bytes())
    register_sem_seg(name, SPLIT, images, labels)
    with pytest.raises(ValueError, match="would be one image"):
        DatasetCatalog.get(name)


def test_protocol_follows_the_vocabulary(name):
    for vocabulary, protocol in (("all", "GZS3"), ("unseen", "ZS3"), ("seen", "supervised")):
        register_sem_seg(name, SPLIT, "i", "l", vocabulary=vocabulary)
        assert MetadataCatalog.get(name).protocol == protocol
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_sem_seg(name, ClassSplit(["a", "b"]), "i", "l")
    assert MetadataCatalog.get(name).protocol == "supervised"


def test_image_list_gives_order_and_reports_what_is_missing(tmp_path, name, caplog):
    images, labels = write_release(tmp_path, ("a", "b", "c"))
    (tmp_path / "list.txt").write_bytes("\ufeffc\r\na\r\n\r\nlost\r\n".encode())
    register_sem_seg(name, SPLIT, images, labels, stems_file=tmp_path / "list.txt")
    with caplog.at_level(logging.WARNING):
        assert [record["image_id"] for record in DatasetCatalog.get(name)] == ["c", "a"]
    assert "1 of the 3 images" in caplog.text and "lost" in caplog.text


def test_load_callable(name):
    records = [{"file_name": "0.png", "sem_seg_file_name": "0_label.png", "image_id": 0, "height": 4, "width": 5}]
    register_sem_seg(name, SPLIT, load=lambda: records)
    assert DatasetCatalog.get(name) == [{**records[0], "dataset_name": name}]
    assert "dataset_name" not in records[0]


def test_missing_folders_lists_and_images_are_named(tmp_path, name):
    register_sem_seg(name, SPLIT, tmp_path / "images", tmp_path / "labels")  # registering reads nothing
    with pytest.raises(FileNotFoundError, match=f"looked for the folder {tmp_path}/images"):
        DatasetCatalog.get(name)
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError, match=f"looked for the folder {tmp_path}/labels"):
        DatasetCatalog.get(name)
    (tmp_path / "labels").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image with a label: 0 files \*\.jpg"):
        DatasetCatalog.get(name)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    register_sem_seg(name, SPLIT, tmp_path / "images", tmp_path / "labels", stems_file=tmp_path / "train.txt")
    with pytest.raises(FileNotFoundError, match=f"looked for {tmp_path}/train.txt"):
        DatasetCatalog.get(name)
    (tmp_path / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        DatasetCatalog.get(name)
    (tmp_path / "train.txt").write_text("a\na\n")
    with pytest.raises(ValueError, match="twice"):
        DatasetCatalog.get(name)


def test_bad_registrations_are_named(name):
    with pytest.raises(ValueError, match="either image_root and label_root, or load"):
        register_sem_seg(name, SPLIT)
    with pytest.raises(ValueError, match="go together"):
        register_sem_seg(name, SPLIT, "images")
    with pytest.raises(ValueError, match="'zs'"):
        register_sem_seg(name, SPLIT, "i", "l", protocol="zs")
    with pytest.raises(ValueError, match="GZS3 needs"):
        register_sem_seg(name, SPLIT, "i", "l", protocol="GZS3", vocabulary="seen")
    with pytest.raises(ValueError, match="1 colours for 3"):
        register_sem_seg(name, SPLIT, "i", "l", colors=[(0, 0, 0)])
    register_sem_seg(name, SPLIT, load=lambda: [{"file_name": "x"}])
    with pytest.raises(ValueError, match="lacks"):
        DatasetCatalog.get(name)


@pytest.mark.parametrize("values", [[1, 2, 3], np.array([1, 2, 3]), {1: "cat", 2: "dog", 3: "cow"}])
def test_the_same_again_changes_nothing_and_another_is_refused(name, values):
    for _ in range(2):
        register_sem_seg(name, SPLIT, "i", "l", label_values=values)
    with pytest.raises(ValueError, match=f"'{name}' is already registered, with other arguments: .* replace=True"):
        register_sem_seg(name, SPLIT, "i", "l", vocabulary="seen", label_values=values)
    assert MetadataCatalog.get(name).protocol == "GZS3"
    register_sem_seg(name, SPLIT, "i", "l", vocabulary="seen", label_values=values, replace=True)
    assert MetadataCatalog.get(name).protocol == "supervised"


def test_a_registration_that_fails_leaves_the_first(name):
    register_sem_seg(name, SPLIT, "i", "l")
    with pytest.raises(ValueError, match="1 colours for 3"):
        register_sem_seg(name, SPLIT, "i", "l", colors=[(0, 0, 0)], replace=True)
    assert MetadataCatalog.get(name).class_split == SPLIT and name in DatasetCatalog.list()


def test_lines_of_an_image_list_are_no_comments(tmp_path, name):
    images, labels = write_release(tmp_path, ("#1", "b"))
    (tmp_path / "list.txt").write_text("#1\nb\n")
    register_sem_seg(name, SPLIT, images, labels, stems_file=tmp_path / "list.txt")
    assert [record["image_id"] for record in DatasetCatalog.get(name)] == ["#1", "b"]
