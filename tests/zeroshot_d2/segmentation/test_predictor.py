"""What a predictor of segmentations returns, from outputs of models by hand."""

import dataclasses

import numpy as np
import pytest
import torch

from zeroshot_d2 import ClassSplit
from zeroshot_d2.segmentation.predictor import ClassCounts, Segmentation, segmentation_of

SPLIT = ClassSplit(["cat", "dog", "cow"], unseen=["dog"])
SCORES = torch.tensor([[[0.9, 0.1, 0.2]], [[0.3, 0.8, 0.6]], [[0.1, 0.1, 0.1]]])


def test_classes_largest_first_with_the_mean_of_their_scores():
    found = segmentation_of({"sem_seg": SCORES}, SPLIT, scores=False)
    assert found.labels.tolist() == [[0, 1, 1]] and found.labels.dtype == np.int64 and found.confidence.dtype == np.float32
    assert found.classes() == [
        {"index": 1, "name": "dog", "unseen": True, "pixels": 2, "area": pytest.approx(2 / 3), "score": pytest.approx(0.7)},
        {"index": 0, "name": "cat", "unseen": False, "pixels": 1, "area": pytest.approx(1 / 3), "score": pytest.approx(0.9)},
    ]


def test_equal_areas_stand_in_the_order_of_the_vocabulary():
    labels = np.array([[2, 0]])
    found = Segmentation(SPLIT, labels, np.ones((1, 2), dtype=np.float32))
    assert [entry["name"] for entry in found.classes()] == ["cat", "cow"]


def test_all_scores_are_there_where_they_are_wanted():
    assert segmentation_of({"sem_seg": SCORES}, SPLIT, scores=False).scores is None
    assert torch.equal(segmentation_of({"sem_seg": SCORES}, SPLIT, scores=True).scores, SCORES)
    assert segmentation_of({"sem_seg_labels": torch.tensor([[1]])}, SPLIT, scores=True).scores is None


def test_models_that_give_labels_alone():
    found = segmentation_of({"sem_seg_labels": torch.tensor([[1, 0]])}, SPLIT, scores=False)
    assert found.labels.tolist() == [[1, 0]] and found.confidence.tolist() == [[1.0, 1.0]] and found.proposals is None
    output = {"sem_seg_labels": torch.tensor([[1]]), "sem_seg_confidence": torch.tensor([[0.5]]), "proposals": {"a": None}}
    found = segmentation_of(output, SPLIT, scores=False)
    assert found.confidence.tolist() == [[0.5]] and found.proposals == {"a": None}


def test_a_result_is_data():
    found = segmentation_of({"sem_seg": SCORES}, SPLIT, scores=False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.labels = None


def test_confidences_lie_between_0_and_1():
    """Divided by the coverage where there is one; cut off where a model says nothing about it."""
    output = {"sem_seg": 2 * SCORES, "sem_seg_coverage": torch.tensor([[2.0, 1.7, 4.0]])}
    found = segmentation_of(output, SPLIT, scores=True)
    np.testing.assert_allclose(found.confidence, [[0.9, 1.6 / 1.7, 0.3]], rtol=1e-6)
    np.testing.assert_allclose(segmentation_of({"sem_seg": 2 * SCORES}, SPLIT, scores=False).confidence, [[1, 1, 1]])
    assert segmentation_of({"sem_seg": -SCORES}, SPLIT, scores=False).confidence.tolist() == [[0, 0, 0]]


def test_none_of_these():
    found = segmentation_of({"sem_seg": SCORES}, SPLIT, scores=True)
    other = found.with_other(0.75)
    assert other.vocabulary.names == ("cat", "dog", "cow", "other") and other.vocabulary.unseen == ("dog",)
    assert other.labels.tolist() == [[0, 1, 3]] and found.labels.tolist() == [[0, 1, 1]]
    assert [entry["name"] for entry in other.classes()] == ["cat", "dog", "other"] and other.scores is found.scores
    assert found.with_other(0.0).labels.tolist() == found.labels.tolist()
    assert found.with_other(1.0, "unsure").labels.tolist() == [[3, 3, 3]]
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"the threshold must lie in \[0, 1\], as confidences do, got"):
            found.with_other(threshold)
    with pytest.raises(ValueError, match=r"the vocabulary has a class 'Cow' already"):
        found.with_other(0.5, "Cow")


def test_classes_of_parts_add_up():
    found = segmentation_of({"sem_seg": SCORES}, SPLIT, scores=False)
    counts = ClassCounts(SPLIT)
    for part in (slice(0, 2), slice(2, 3)):
        counts.add(found.labels[:, part], found.confidence[:, part])
    assert counts.classes() == found.classes()
    assert ClassCounts(SPLIT).classes() == []
