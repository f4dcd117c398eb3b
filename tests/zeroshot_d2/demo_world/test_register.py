"""The demo world as data sets, in both views: files, vocabularies, seeds."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from zeroshot_d2 import IGNORE_LABEL, demo_world, read_label
from zeroshot_d2.demo_world import (
    DEMO_NEAR,
    SPLIT,
    register,
    register_demo_world,
    register_demo_world_multilabel,
    render,
    render_files,
)
from zeroshot_d2.demo_world.register import NUM_TEST_MULTILABEL, NUM_TRAIN, NUM_TRAIN_MULTILABEL, NUM_VAL


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROSHOT_D2_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def name():
    yield "test_world"
    if "test_world" in DatasetCatalog.list():
        DatasetCatalog.remove("test_world")
        MetadataCatalog.remove("test_world")


def test_files_hold_the_rendered_images_and_are_rendered_once():
    records = render_files(9, 3)
    for record in records:
        rendered = render(9, record["image_id"])
        np.testing.assert_array_equal(np.asarray(Image.open(record["file_name"])), rendered.image)
        np.testing.assert_array_equal(np.asarray(Image.open(record["sem_seg_file_name"])), rendered.label)
        assert (record["height"], record["width"]) == (64, 64)
    first = Path(records[0]["file_name"])
    stamp = first.stat().st_mtime_ns
    Path(records[1]["file_name"]).unlink()
    again = render_files(9, 4)
    assert first.stat().st_mtime_ns == stamp and Path(records[1]["file_name"]).is_file()
    assert again[:3] == records and len(list(first.parent.iterdir())) == 8


@pytest.mark.parametrize("registers", [register_demo_world, register_demo_world_multilabel])
def test_the_same_world_again_and_another_one(name, registers):
    registers(name, seed=9, num_images=2)
    registers(name, seed=9, num_images=2)
    with pytest.raises(ValueError, match=f"'{name}' is already registered, .* pass replace=True"):
        registers(name, seed=9, num_images=3, vocabulary="unseen")
    assert len(DatasetCatalog.get(name)) == 2 and MetadataCatalog.get(name).class_split == SPLIT
    registers(name, seed=9, num_images=3, vocabulary="unseen", replace=True)
    assert len(DatasetCatalog.get(name)) == 3 and MetadataCatalog.get(name).class_split.names == SPLIT.unseen


def test_no_image_is_no_world():
    with pytest.raises(ValueError, match="num_images=0"):
        render_files(0, 0)


def test_worlds_do_not_share_a_folder():
    worlds = [((1, 1), {}), ((2, 1), {}), ((1, 1), {"size": 96}), ((1, 1), {"num_objects": (4, 5)})]
    worlds.append(((1, 1), {"world": DEMO_NEAR}))
    folders = {Path(render_files(*args, **options)[0]["file_name"]).parent for args, options in worlds}
    assert len(folders) == 5


@pytest.mark.parametrize(
    ("name", "vocabulary", "protocol", "count"),
    [
        ("demo_world_train_seen", SPLIT.seen, "supervised", NUM_TRAIN),
        ("demo_world_train_all", SPLIT.names, None, NUM_TRAIN),
        ("demo_world_val", SPLIT.names, "GZS3", NUM_VAL),
        ("demo_world_val_unseen", SPLIT.unseen, "ZS3", NUM_VAL),
        ("demo_world_held_out", SPLIT.names, "GZS3", NUM_VAL),
        ("demo_near_train_seen", DEMO_NEAR.split.seen, "supervised", NUM_TRAIN),
        ("demo_near_val", DEMO_NEAR.split.names, "GZS3", NUM_VAL),
        ("demo_near_val_unseen", DEMO_NEAR.unseen, "ZS3", NUM_VAL),
        ("demo_near_held_out", DEMO_NEAR.split.names, "GZS3", NUM_VAL),
        ("demo_near_train_visible", set(DEMO_NEAR.split.seen) - set(DEMO_NEAR.hidden), "supervised", NUM_TRAIN),
        ("demo_near_val_hidden", DEMO_NEAR.split.seen, "GZS3", NUM_VAL),
    ],
)
def test_registered_sets(name, vocabulary, protocol, count, monkeypatch):
    metadata = MetadataCatalog.get(name)
    assert set(metadata.class_split.names) == set(vocabulary)
    assert protocol is None or metadata.protocol == protocol
    assert metadata.ignore_label == IGNORE_LABEL
    asked = []
    monkeypatch.setattr(register, "render_files", lambda seed, n, **_: asked.append((seed, n)) or render_files(seed, 2))
    records = DatasetCatalog.get(name)
    assert len(records) == 2 and [n for _, n in asked] == [count]


def test_seeds_of_training_and_evaluation_differ():
    assert len({demo_world.TRAIN_SEED, demo_world.VAL_SEED, demo_world.HELD_OUT_SEED}) == 3


@pytest.mark.parametrize("hidden", [(), DEMO_NEAR.hidden])
def test_training_ignores_unseen_pixels_and_zs3_ignores_seen_ones(name, hidden):
    records, split = render_files(1, 12, world=DEMO_NEAR), DEMO_NEAR.split
    seen, unseen = (set(split.seen) - set(hidden), hidden) if hidden else (split.seen, split.unseen)
    for vocabulary, kept_names in (("seen", [*seen]), ("unseen", [*unseen]), ("all", [*seen, *unseen])):
        register_demo_world(name, 1, 12, vocabulary=vocabulary, world=DEMO_NEAR, hidden=hidden)
        metadata = MetadataCatalog.get(name)
        assert set(metadata.class_split.names) == set(kept_names)
        ignored = 0
        for record in records:
            raw = np.asarray(Image.open(record["sem_seg_file_name"]))
            mapped = read_label(record["sem_seg_file_name"], metadata.label_table)
            names = np.array([*metadata.class_split.names, "ignored"])
            shown = names[np.minimum(mapped, len(names) - 1)]
            original = np.array(split.names)[raw]
            kept = np.isin(original, kept_names)
            np.testing.assert_array_equal(shown[kept], original[kept])
            assert (mapped[~kept] == IGNORE_LABEL).all()
            ignored += (~kept).sum()
        assert (ignored > 0) == (vocabulary != "all" or bool(hidden))
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_registering_again_changes_nothing():
    before = DatasetCatalog.list()
    demo_world.register_builtin()
    demo_world.register_builtin()
    assert set(before) <= set(DatasetCatalog.list())


# ---- image-level labels ----


@pytest.fixture
def register_labels():
    names = []

    def do(name, **arguments):
        register_demo_world_multilabel(name, seed=5, num_images=12, **arguments)
        names.append(name)
        return DatasetCatalog.get(name)

    yield do
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_labels_are_the_classes_that_are_visible(register_labels):
    records = register_labels("demo_labels")
    assert len(records) == 12
    for index in range(12):
        rendered = render(5, index, num_objects=(3, 5))
        assert records[index]["positive_labels"].tolist() == list(rendered.classes)
        assert records[index]["negative_labels"].size == 0
    meta = MetadataCatalog.get("demo_labels")
    assert (meta.protocol, meta.evaluator_type, meta.labels_complete) == ("GZSL", "zero_shot_multilabel", True)
    assert meta.class_split == SPLIT


def test_the_seen_vocabulary_leaves_out_the_unseen_labels(register_labels):
    whole, seen = register_labels("demo_labels_all"), register_labels("demo_labels_seen", vocabulary="seen")
    split = MetadataCatalog.get("demo_labels_seen").class_split
    assert split == SPLIT.only_seen()
    unseen = 0
    for a, b in zip(whole, seen, strict=True):
        kept = [SPLIT.names[k] for k in a["positive_labels"] if not SPLIT.unseen_mask[k]]
        assert [split.names[k] for k in b["positive_labels"]] == kept
        unseen += len(a["positive_labels"]) - len(kept)
    assert unseen > 0  # unseen classes do occur in training images; only their labels are missing
    assert np.all([a["file_name"] == b["file_name"] for a, b in zip(whole, seen, strict=True)])


def test_without_unseen_classes(register_labels):
    drawn = {
        k for record in register_labels("demo_labels_drawn", draw_unseen=False) for k in record["positive_labels"].tolist()
    }
    assert drawn and not drawn & set(SPLIT.unseen_indices.tolist())
    rendered = render(5, 3, num_objects=(3, 5), classes=SPLIT.seen_indices)
    assert DatasetCatalog.get("demo_labels_drawn")[3]["positive_labels"].tolist() == list(rendered.classes)


@pytest.mark.parametrize(
    ("name", "vocabulary", "protocol", "count"),
    [
        ("demo_world_multilabel_train", SPLIT.seen, "supervised", NUM_TRAIN_MULTILABEL),
        ("demo_world_multilabel_test", SPLIT.names, "GZSL", NUM_TEST_MULTILABEL),
        ("demo_world_multilabel_held_out", SPLIT.names, "GZSL", NUM_TEST_MULTILABEL),
    ],
)
def test_registered_sets_of_image_level_labels(name, vocabulary, protocol, count, monkeypatch):
    metadata = MetadataCatalog.get(name)
    assert metadata.class_split.names == tuple(vocabulary) and metadata.protocol == protocol
    asked = []
    monkeypatch.setattr(register, "render_files", lambda seed, n, **_: asked.append(n) or render_files(seed, 2))
    assert len(DatasetCatalog.get(name)) == 2 and asked == [count]


def test_a_world_is_registered_once_under_a_name(name):
    for _ in range(2):
        register_demo_world(name, 1, 12)
    with pytest.raises(ValueError, match="already registered, with other arguments"):
        register_demo_world(name, 2, 12)
