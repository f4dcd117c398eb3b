"""Registration of data sets with image-level labels, from memory, functions and files."""

import logging
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader, get_detection_dataset_dicts

from zeroshot_d2 import ClassSplit, register_multilabel
from zeroshot_d2.multilabel.columns import LabelColumns, MultiLabelDataset
from zeroshot_d2.training_stream import TrainingLoader

SPLIT = ClassSplit(["sky", "dog", "cat"], unseen=["dog"])


@pytest.fixture
def name():
    name = "test_multilabel_dataset"
    yield name
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def columns() -> LabelColumns:
    """Image 0: dog, not cat. Image 1: nothing. Image 2: sky, cat."""
    image, classes, signs = np.array([2, 0, 2, 0]), np.array([0, 2, 2, 1]), np.array([1, -1, 1, 1])
    return LabelColumns.build(["sky", "dog", "cat"], ["a\\1.jpg", "b/ü.jpg", "c.jpg"], image, classes, signs)


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
    assert meta.protocol == protocol and meta.labels_complete is False and meta.evaluator_type == "zero_shot_multilabel"
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
        ({"a": "cat"}, "the labels of a must be a list of names, got 'cat'"),
        ({"a": {"cat": 2}}, "the sign of 'cat' for a must be 1"),
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


def test_the_same_again_changes_nothing_and_another_is_refused(name):
    for _ in range(2):
        register_multilabel(name, SPLIT, "photos", {"a": ["cat"], "b": {"dog": -1}})
    with pytest.raises(ValueError, match=f"'{name}' is already registered, with other arguments: .* replace=True"):
        register_multilabel(name, SPLIT, "photos", {"a": ["cat"], "b": {"dog": 1}})
    register_multilabel(name, SPLIT, "photos", {"a": ["sky"]}, replace=True)
    assert [record["positive_labels"].tolist() for record in DatasetCatalog.get(name)] == [[0]]
