"""The demo world with image-level labels."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from zeroshot_d2.demo_world import SPLIT, register_demo_world_multilabel, render


@pytest.fixture
def register():
    names = []

    def do(name, **arguments):
        register_demo_world_multilabel(name, seed=5, num_images=12, **arguments)
        names.append(name)
        return DatasetCatalog.get(name)

    yield do
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_labels_are_the_classes_that_are_visible(register):
    records = register("demo_labels")
    assert len(records) == 12
    for index in range(12):
        rendered = render(5, index, num_objects=(3, 5))
        assert records[index]["positive_labels"].tolist() == list(rendered.classes)
        assert records[index]["negative_labels"].size == 0
    meta = MetadataCatalog.get("demo_labels")
    assert (meta.protocol, meta.evaluator_type, meta.labels_complete) == ("GZSL", "epsilon_multilabel", True)
    assert meta.class_split == SPLIT


def test_the_seen_vocabulary_leaves_out_the_unseen_labels(register):
    whole, seen = register("demo_labels_all"), register("demo_labels_seen", vocabulary="seen")
    split = MetadataCatalog.get("demo_labels_seen").class_split
    assert split == SPLIT.only_seen()
    unseen = 0
    for a, b in zip(whole, seen, strict=True):
        kept = [SPLIT.names[k] for k in a["positive_labels"] if not SPLIT.unseen_mask[k]]
        assert [split.names[k] for k in b["positive_labels"]] == kept
        unseen += len(a["positive_labels"]) - len(kept)
    assert unseen > 0  # unseen classes do occur in training images; only their labels are missing
    assert np.all([a["file_name"] == b["file_name"] for a, b in zip(whole, seen, strict=True)])


def test_without_unseen_classes(register):
    drawn = {k for record in register("demo_labels_drawn", draw_unseen=False) for k in record["positive_labels"].tolist()}
    assert drawn and not drawn & set(SPLIT.unseen_indices.tolist())
    rendered = render(5, 3, num_objects=(3, 5), classes=SPLIT.seen_indices)
    assert DatasetCatalog.get("demo_labels_drawn")[3]["positive_labels"].tolist() == list(rendered.classes)


def test_one_ground_alone():
    ground = SPLIT.names.index("dark sand")
    for index in range(4):
        assert set(render(0, index, classes=[7, ground]).classes) == {7, ground}
