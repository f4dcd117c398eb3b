"""Lookup tables, label files and registration of segmentation data sets."""

import logging
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from zeroshot_d2 import IGNORE_LABEL, ClassSplit, label_table, read_label, register_sem_seg
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


@pytest.mark.parametrize(
    ("vocabulary", "expected"),
    [
        ("all", [0, 1, 2, IGNORE_LABEL]),
        ("seen", [0, IGNORE_LABEL, 1, IGNORE_LABEL]),
        ("unseen", [IGNORE_LABEL, 0, IGNORE_LABEL, IGNORE_LABEL]),
    ],
)
def test_vocabularies_share_one_label_image(vocabulary, expected):
    mapped = label_table(SPLIT, vocabulary, [10, 300, 7]).apply(np.array([[10, 300, 7, 255]], dtype=np.int32))
    assert mapped.dtype == np.uint16
    np.testing.assert_array_equal(mapped, [expected])


def test_several_values_of_one_class_and_default_values():
    table = label_table(SPLIT, label_values={1: "cat", 2: "cat", 3: "dog", 4: "cow"}, ignore_values=(0,))
    np.testing.assert_array_equal(table.apply(np.array([[0, 1, 2, 3, 4]])), [[IGNORE_LABEL, 0, 0, 1, 2]])
    np.testing.assert_array_equal(label_table(SPLIT).apply(np.array([[2, 65535]])), [[2, IGNORE_LABEL]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_values": [1, 2]}, "2 label values for 3 classes"),
        ({"label_values": [1, 2, 2]}, r"\[2\] stand for more than one"),
        ({"label_values": [1, 2, 255]}, "both class 'cow' and an ignore value"),
        ({"label_values": [1, 2, -3]}, "-3 of class 'cow'"),
        ({"label_values": [1, 2, 65536]}, "65536"),
        ({"label_values": {1: "cat", 2: "dog"}}, r"no label value stands for class\(es\) \['cow'\]"),
        ({"label_values": {1: "cat", 2: "dog", 3: "cow", 4: "bat"}}, "'bat', which is not a class"),
        ({"ignore_values": [70000]}, "70000"),
        ({"vocabulary": "both"}, "'both'"),
    ],
)
def test_bad_tables_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        label_table(SPLIT, **arguments)


def test_an_unknown_value_is_named_with_its_file(tmp_path):
    Image.fromarray(np.array([[0, 7, 9]], dtype=np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.png: label value\(s\) 7, 9 .*classes: 0-2; ignored: 255"):
        read_label(tmp_path / "x.png", label_table(SPLIT))
    with pytest.raises(ValueError, match="16 bits"):
        label_table(SPLIT).apply(np.array([[-1]]))
    with pytest.raises(ValueError, match="float"):
        label_table(SPLIT).apply(np.zeros((2, 2)))


def test_file_formats(tmp_path):
    values = np.array([[0, 1, 2], [2, 2, 255]])
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "grey.png")
    palette = Image.fromarray(values.astype(np.uint8), mode=None).convert("L")
    palette = Image.frombytes("P", palette.size, palette.tobytes())
    palette.putpalette([v for color in class_colors(256) for v in color])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "grey16.png")
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "grey16.tif")
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "grey32.tif")
    for file in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(
            read_label(file, label_table(SPLIT)), [[0, 1, 2], [2, 2, IGNORE_LABEL]], err_msg=str(file)
        )
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_label(tmp_path / "bits.png", label_table(SPLIT)), [[1, 0]])


def test_bad_files_are_named(tmp_path):
    table = label_table(SPLIT)
    with pytest.raises(FileNotFoundError, match="gone.png"):
        read_label(tmp_path / "gone.png", table)
    Image.fromarray(np.random.default_rng(0).integers(0, 3, (64, 64)).astype(np.uint8)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut.png is unreadable or truncated"):
        read_label(tmp_path / "cut.png", table)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match="text.png is unreadable"):
        read_label(tmp_path / "text.png", table)
    Image.fromarray(np.zeros((2, 2, 3), dtype=np.uint8)).save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match="rgb.png has 3 channels"):
        read_label(tmp_path / "rgb.png", table)


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
    assert meta.evaluator_type == "alignzeg_sem_seg"
    assert meta.stuff_colors == [class_colors(3)[0], class_colors(3)[2]]


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
    with pytest.raises(ValueError, match="already registered"):
        register_sem_seg(name, SPLIT, "i", "l")


def test_colors_are_distinct_and_stable():
    colors = class_colors(171)
    assert len(set(colors)) == 171
    assert class_colors(20) == colors[:20]
