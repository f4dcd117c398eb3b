"""Image-level labels: columns on disk, registration, and the conversion of tiny NUS-WIDE and Open Images releases."""

import csv
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import tiny_releases
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader, get_detection_dataset_dicts
from tiny_releases import prepare_script as script

from zeroshot_d2 import ClassSplit, register_multilabel
from zeroshot_d2.datasets.builtin import MULTILABEL_DATASETS, load_class_list
from zeroshot_d2.multilabel.columns import LabelColumns, MultiLabelDataset
from zeroshot_d2.training_stream import TrainingLoader

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"
SPLIT = ClassSplit(["sky", "dog", "cat"], unseen=["dog"])


@pytest.fixture
def name():
    name = "test_multilabel_dataset"
    yield name
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def columns() -> LabelColumns:
    """Image 0: dog, not cat. Image 1: nothing. Image 2: sky, cat."""
    image, classes, signs = np.array([2, 0, 2, 0]), np.array([0, 2, 2, 1]), np.array([1, -1, 1, 1])
    return LabelColumns.build(["sky", "dog", "cat"], ["a\\1.jpg", "b/ü.jpg", "c.jpg"], image, classes, signs)


# ------------------------------------------------------------------------------------------------------ columns
def test_columns_sort_rows_and_keep_paths():
    made = columns()
    assert len(made) == 3 and [made.path(i) for i in range(3)] == ["a/1.jpg", "b/ü.jpg", "c.jpg"]
    np.testing.assert_array_equal(made.row(0), ([1, 2], [1, -1]))
    assert made.row(1)[0].size == 0
    np.testing.assert_array_equal(made.row(2), ([0, 2], [1, 1]))


def test_of_contradicting_labels_present_wins():
    made = LabelColumns.build(["x"], ["a", "b"], np.array([0, 0, 1]), np.array([0, 0, 0]), np.array([-1, 1, -1]))
    np.testing.assert_array_equal(made.signs, [1, -1])


def test_saved_columns_are_mapped_and_equal(tmp_path):
    made = columns()
    made.save(tmp_path / "labels.npz")
    opened = LabelColumns.open(tmp_path / "labels.npz")
    assert opened.class_ids == made.class_ids and isinstance(opened.classes.base, np.memmap)
    for array in ("path_bytes", "path_ends", "row_ends", "classes", "signs"):
        np.testing.assert_array_equal(getattr(opened, array), getattr(made, array))
        np.testing.assert_array_equal(np.load(tmp_path / "labels.npz")[array], getattr(made, array))


def test_a_mapped_file_travels_as_its_name(tmp_path):
    large = LabelColumns.build(["x"], [f"{i}.jpg" for i in range(5000)], np.arange(5000), np.zeros(5000), np.ones(5000))
    large.save(tmp_path / "labels.npz")
    pickled = pickle.dumps(LabelColumns.open(tmp_path / "labels.npz"))
    assert len(pickled) < 500
    assert pickle.loads(pickled).path(4999) == "4999.jpg"
    assert pickle.loads(pickle.dumps(large)).path(4999) == "4999.jpg"


def test_no_labels_at_all(tmp_path):
    empty = LabelColumns.build(["x"], ["a", "b"], np.array([]), np.array([]), np.array([]))
    empty.save(tmp_path / "labels.npz")
    assert LabelColumns.open(tmp_path / "labels.npz").row(1)[0].size == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["x", "x"], ["a"], [0], [0], [1]), "more than once"),
        ((["x"], ["a"], [1], [0], [1]), r"image indices \[1, 1\]"),
        ((["x"], ["a"], [0], [1], [1]), r"class indices \[1, 1\]"),
        ((["x"], ["a"], [0], [0], [0]), "signs must be"),
    ],
)
def test_bad_columns_are_named(arguments, message):
    class_ids, paths, *labels = arguments
    with pytest.raises(ValueError, match=message):
        LabelColumns.build(class_ids, paths, *map(np.array, labels))


def test_bad_files_are_named(tmp_path):
    file = tmp_path / "labels.npz"
    with pytest.raises(FileNotFoundError, match=r"labels\.npz"):
        LabelColumns.open(file)
    columns().save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut off"):
        LabelColumns.open(file)
    np.savez(file, other=np.zeros(3))
    with pytest.raises(ValueError, match="lacks"):
        LabelColumns.open(file)
    np.savez_compressed(file, other=np.zeros(3))
    with pytest.raises(ValueError, match="compressed"):
        LabelColumns.open(file)


# ------------------------------------------------------------------------------------------------- registration
@pytest.mark.parametrize(
    ("vocabulary", "protocol", "positive", "negative"),
    [
        ("all", "GZSL", [[1], [], [0, 2]], [[2], [], []]),
        ("seen", "supervised", [[], [], [0, 1]], [[1], [], []]),
        ("unseen", "ZSL", [[0], [], []], [[], [], []]),
    ],
)
def test_vocabularies_share_one_file(tmp_path, name, vocabulary, protocol, positive, negative):
    columns().save(tmp_path / "labels.npz")
    register_multilabel(name, SPLIT, "photos", tmp_path / "labels.npz", vocabulary=vocabulary, complete=False)
    records = DatasetCatalog.get(name)
    assert len(records) == 3
    for i, record in enumerate(records):
        assert record["dataset_name"] == name
        np.testing.assert_array_equal(record["positive_labels"], positive[i])
        np.testing.assert_array_equal(record["negative_labels"], negative[i])
    assert records[-1]["file_name"] == str(Path("photos") / "c.jpg") and records[-1]["image_id"] == "c.jpg"
    with pytest.raises(IndexError):
        records[3]
    meta = MetadataCatalog.get(name)
    assert meta.protocol == protocol and meta.labels_complete is False and meta.evaluator_type == "epsilon_multilabel"
    assert meta.class_ids == meta.class_split.names


def test_labels_in_memory_by_name_or_signed_or_from_a_function(name):
    named = {"a.jpg": ["cat", "sky"], "b.jpg": []}
    for labels in (named, lambda: named, {"a.jpg": {"cat": 1, "sky": 1, "dog": -1}, "b.jpg": {}}):
        register_multilabel(name, SPLIT, "photos", labels)
        first, second = DatasetCatalog.get(name)
        np.testing.assert_array_equal(first["positive_labels"], [0, 2])
        assert second["positive_labels"].size == 0
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert first["negative_labels"].tolist() == [1]


def test_vocabulary_order_is_that_of_the_split(name):
    reordered = ClassSplit(["cat", "sky", "dog"], unseen=["dog"])
    register_multilabel(name, reordered, "photos", {"a.jpg": ["sky", "cat"]})
    np.testing.assert_array_equal(DatasetCatalog.get(name)[0]["positive_labels"], [0, 1])


def test_class_counts(name):
    register_multilabel(name, SPLIT, "photos", {"a": {"cat": 1, "dog": -1}, "b": {"cat": 1}})
    positive, negative = DatasetCatalog.get(name).class_counts()
    assert positive.tolist() == [0, 0, 2] and negative.tolist() == [0, 1, 0]


def test_display_names_may_collide_with_ids_of_their_own(name):
    split = ClassSplit(["snowshoe (1)", "snowshoe (2)"], prompts=["snowshoe", "snowshoe"])
    register_multilabel(name, split, "photos", {"a": ["/m/2"]}, class_ids=["/m/1", "/m/2"])
    np.testing.assert_array_equal(DatasetCatalog.get(name)[0]["positive_labels"], [1])
    assert MetadataCatalog.get(name).class_ids == ("/m/1", "/m/2")


def test_detectron2_takes_it_where_it_takes_a_list(tmp_path, name):
    columns().save(tmp_path / "labels.npz")
    register_multilabel(name, SPLIT, "photos", tmp_path / "labels.npz")
    assert isinstance(get_detection_dataset_dicts(name), MultiLabelDataset)
    loader = build_detection_test_loader(
        DatasetCatalog.get(name), mapper=lambda record: record["image_id"], num_workers=0, batch_size=2
    )
    assert list(loader) == [["a/1.jpg", "b/ü.jpg"], ["c.jpg"]]


def _only_labels(record: dict) -> dict:
    return {"id": record["image_id"], "positive": record["positive_labels"].tolist()}


@pytest.mark.parametrize("workers", [0, 2])
def test_training_stream_over_a_mapped_file(tmp_path, name, workers):
    """Workers read the file themselves; an epoch has each image once, with its labels."""
    made = LabelColumns.build(
        *(["sky", "dog", "cat"], [f"{i}.jpg" for i in range(8)], np.arange(8), np.arange(8) % 3, np.ones(8))
    )
    made.save(tmp_path / "labels.npz")
    register_multilabel(name, SPLIT, "photos", tmp_path / "labels.npz")
    loader = TrainingLoader(get_detection_dataset_dicts(name), _only_labels, batch_size=4, seed=1, num_workers=workers)
    assert loader.num_images == 8
    batches = iter(loader)
    epoch = [*next(batches), *next(batches)]
    assert sorted(sample["id"] for sample in epoch) == [f"{i}.jpg" for i in range(8)]
    assert all(sample["positive"] == [int(sample["id"][0]) % 3] for sample in epoch)


def test_bad_registrations_are_named(tmp_path, name, caplog):
    with pytest.raises(ValueError, match="'warn'"):
        register_multilabel(name, SPLIT, "photos", {}, other_labels="warn")
    with pytest.raises(ValueError, match="give one unique id per class"):
        register_multilabel(name, SPLIT, "photos", {}, class_ids=["x", "y", "y"])
    for labels, message in (
        ({"a": ["bird"]}, "label 'bird' of a is not a class"),
        ({"a": "cat"}, "must be a list of names, got the string 'cat'"),
        ({"a": {"cat": 2}}, "signs must be"),
        ({}, "has no image"),
    ):
        register_multilabel(name, SPLIT, "photos", labels)
        with pytest.raises(ValueError, match=message):
            DatasetCatalog.get(name)
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_multilabel(name, SPLIT, "photos", {"a": ["bird", "cat"]}, other_labels="ignore", expected_images=2)
    with caplog.at_level(logging.WARNING):
        assert DatasetCatalog.get(name)[0]["positive_labels"].tolist() == [2]
    assert "found 1 images, the whole release has 2" in caplog.text
    with pytest.raises(ValueError, match="already registered"):
        register_multilabel(name, SPLIT, "photos", {})
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    columns().save(tmp_path / "labels.npz")
    register_multilabel(name, ClassSplit(["sky", "dog"]), "photos", tmp_path / "labels.npz")
    with pytest.raises(ValueError, match=r"labels \['cat'\] that are not classes"):
        DatasetCatalog.get(name)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    register_multilabel(name, ClassSplit(["sky", "dog", "cat", "bat"]), "photos", tmp_path / "labels.npz")
    with pytest.raises(ValueError, match="1 of 4 classes, for example 'bat', are not in its labels"):
        DatasetCatalog.get(name)


# ----------------------------------------------------------------------------------------------------- NUS-WIDE
def parse_names(dataset: str, index: int) -> list[str]:
    split = MetadataCatalog.get(dataset).class_split
    return [split.names[k] for k in DatasetCatalog.get(dataset)[index]["positive_labels"]]


def test_nus_wide(root, capsys, caplog):
    nus = tiny_releases.nus_wide_files(root)
    with pytest.raises(FileNotFoundError, match=r"nus_wide_train\.npz.*prepare_nus_wide\.py"):
        DatasetCatalog.get("nus_wide_train")
    script("prepare_nus_wide").convert(nus)
    printed = capsys.readouterr().out
    assert "925 seen + 81 unseen classes; 75 tags are concepts" in printed
    assert "test: 1 of 2 images are missing" in printed
    split = load_class_list("nus_wide").split
    with caplog.at_level(logging.WARNING):
        train, test = DatasetCatalog.get("nus_wide_train"), DatasetCatalog.get("nus_wide_test")
    assert "found 2 images, the whole release has 161789" in caplog.text
    assert [record["image_id"] for record in train] == ["actor/0001_1.jpg", "actor/0003_3.jpg"]
    assert all(Path(record["file_name"]).is_file() for record in train)
    assert [record["image_id"] for record in test] == ["zoo/0002_2.jpg"]
    assert parse_names("nus_wide_train", 0) == [split.seen[0]]  # neither the concept nor the tag that is one
    assert parse_names("nus_wide_train", 1) == [split.seen[924]]
    assert parse_names("nus_wide_test", 0) == [split.seen[3], "zebra"]
    assert parse_names("nus_wide_81_train", 0) == ["airport"] and parse_names("nus_wide_81_test", 0) == ["zebra"]
    assert MetadataCatalog.get("nus_wide_81_test").class_split.unseen == ()


def test_nus_wide_downloads_that_are_wrong(root):
    nus, prepare = tiny_releases.nus_wide_files(root), script("prepare_nus_wide")
    tags = nus / "NUS_WID_Tags/AllTags1k.txt"
    whole = tags.read_text()
    tags.write_text("\n".join(whole.splitlines()[:3]))
    with pytest.raises(ValueError, match="has 3 lines for the 4 images"):
        prepare.convert(nus)
    tags.write_text(whole.replace("1\t", "", 1))
    with pytest.raises(ValueError, match="line 1: 999 values for 1000 tags"):
        prepare.convert(nus)
    tags.write_text(whole.replace("1\t", "2\t", 1))
    with pytest.raises(ValueError, match="expected only 0 and 1, found b'2'"):
        prepare.convert(nus)
    tags.write_text(whole)
    (nus / "Groundtruth/AllLabels/Labels_cat.txt").write_text("0\n")
    with pytest.raises(ValueError, match=r"Labels_cat\.txt has 1 labels for the 4 images"):
        prepare.convert(nus)
    (nus / "Groundtruth/AllLabels/Labels_cat.txt").unlink()
    with pytest.raises(FileNotFoundError, match="concept 'cat' are missing"):
        prepare.convert(nus)
    (nus / "Groundtruth/AllLabels/Labels_cat.txt").write_text("0\n0\n0\n0\n")
    (nus / "ImageList/TrainImagelist.txt").write_text("elsewhere\\1.jpg\n")
    with pytest.raises(ValueError, match="1 images of TrainImagelist.txt are not in Imagelist.txt"):
        prepare.convert(nus)
    (nus / "copy").mkdir()
    (nus / "copy/TagList1k.txt").write_bytes((nus / "TagList1k.txt").read_bytes())
    assert prepare.find(nus, "TagList1k.txt").is_file()  # a second copy does no harm
    (nus / "copy/Imagelist.txt").write_text("")
    with pytest.raises(FileNotFoundError, match="more than once"):
        prepare.convert(nus)
    with pytest.raises(FileNotFoundError, match=r"Imagelist\.txt not found"):
        prepare.convert(root / "elsewhere")
    assert not list(nus.glob("*.npz"))


def test_nus_wide_without_images(root):
    nus, prepare = tiny_releases.nus_wide_files(root), script("prepare_nus_wide")
    (nus / "Flickr").rename(nus / "photos")
    with pytest.raises(FileNotFoundError, match="looked for the folder .*Flickr"):
        prepare.convert(nus)
    prepare.convert(nus, check_images=False)
    assert len(DatasetCatalog.get("nus_wide_test")) == 2


# -------------------------------------------------------------------------------------------------- Open Images
def test_open_images(root, capsys):
    folder = tiny_releases.open_images_files(root)
    script("prepare_open_images_v4").convert(folder, "test", expected_rows=9)
    printed = capsys.readouterr().out
    assert "5 labels, the whole release has 9" in printed and "1 of them of classes outside the 7586" in printed
    assert "1 of 3 images are missing" in printed
    split = MetadataCatalog.get("open_images_v4_test").class_split
    first, second = DatasetCatalog.get("open_images_v4_test")
    assert first["image_id"] == "000026e7ee790996.jpg" and Path(first["file_name"]).is_file()
    assert [split.names[k] for k in first["positive_labels"]] == [split.unseen[0]]
    assert first["negative_labels"].tolist() == [0] and second["positive_labels"].tolist() == [0]
    assert MetadataCatalog.get("open_images_v4_test").labels_complete is False


def test_open_images_downloads_that_are_wrong(root):
    prepare = script("prepare_open_images_v4")
    with pytest.raises(FileNotFoundError, match="looked for .*imagelabels.csv and .*imagelabels.csv"):
        prepare.convert(root / "open_images_v4", "test")
    folder = tiny_releases.open_images_files(root)
    file = folder / "test-annotations-human-imagelabels.csv"
    whole = file.read_text()
    for text, message in (
        (whole.replace("ImageID", "image"), "the first line should be ImageID"),
        (whole.replace("00000000000000aa", "aa"), "line 6: .*16 hexadecimal digits"),
        (whole.rsplit(",", 1)[0], "line 6: cannot understand"),
        (whole.replace(",0\n", ",0.7\n").replace(",0\r\n", ",0.7\r\n"), "line 4: .*'0.7'"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            prepare.convert(folder, "test")
    file.write_text(whole)
    for image in (folder / "test").iterdir():
        image.unlink()
    with pytest.raises(FileNotFoundError, match="none of the 3 images"):
        prepare.convert(folder, "test")
    (folder / "test").rmdir()
    with pytest.raises(FileNotFoundError, match="--no-image-check"):
        prepare.convert(folder, "test")
    prepare.convert(folder, "test", check_images=False)
    assert len(DatasetCatalog.get("open_images_v4_test")) == 3


# -------------------------------------------------------------------------------------------------- class lists
def test_class_lists():
    nus, images = load_class_list("nus_wide"), load_class_list("open_images_v4")
    assert (len(nus.split.seen), len(nus.split.unseen)) == (925, 81) and nus.class_ids == nus.split.names
    assert (len(images.split.seen), len(images.split.unseen)) == (7186, 400)
    assert len(set(images.class_ids)) == 7586 and all(mid.startswith("/m/") for mid in images.class_ids)
    assert all(text == text.strip() for text in (*images.split.names, *images.split.prompts))
    collided = [k for k, name in enumerate(images.split.names) if name.startswith("Snowshoe (")]
    assert len(collided) == 2 and {images.split.prompts[k] for k in collided} == {"Snowshoe"}


def test_registered_vocabularies():
    sizes = {d.name: len(MetadataCatalog.get(d.name).class_split) for d in MULTILABEL_DATASETS}
    assert sizes == {
        "nus_wide_train": 925,
        "nus_wide_test": 1006,
        "nus_wide_81_train": 81,
        "nus_wide_81_test": 81,
        "open_images_v4_train": 7186,
        "open_images_v4_val": 7586,
        "open_images_v4_test": 7586,
    }
    assert MetadataCatalog.get("open_images_v4_test").protocol == "GZSL"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the official lists are not there")
def test_class_lists_against_the_official_files():
    tags = (SHARED / "nus_wide/TagList1k.txt").read_text().split()
    concepts = (SHARED / "nus_wide/Concepts81.txt").read_text().split()
    split = load_class_list("nus_wide").split
    assert split.unseen == tuple(concepts) and split.seen == tuple(t for t in tags if t not in set(concepts))
    folder = SHARED / "open_images_v4"
    with open(folder / "class-descriptions.csv", encoding="utf-8", newline="") as file:
        description = dict(csv.reader(file))
    trainable = (folder / "classes-trainable.txt").read_text().split()
    candidates = (folder / "unseen_labels.txt").read_text().split()
    top = [candidates[int(k)] for k in (folder / "top_400_unseen.csv").read_text(encoding="utf-8-sig").split()]
    content = load_class_list("open_images_v4")
    assert content.class_ids == (*trainable, *top) and not set(trainable) & set(top)
    assert content.split.prompts == tuple(description[mid].strip() for mid in content.class_ids)
