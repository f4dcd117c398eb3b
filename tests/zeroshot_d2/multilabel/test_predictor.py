"""What a predictor of tags returns."""

import dataclasses

import numpy as np
import pytest
import torch

from zeroshot_d2 import ClassSplit
from zeroshot_d2.multilabel.predictor import Tags, best_labels, scores_of

SPLIT = ClassSplit(["cat", "dog", "cow", "pig"], unseen=["dog"])
SCORES = np.array([1.0, 3.0, 2.0, 3.0], dtype=np.float32)


def test_the_best_labels_equal_ones_in_the_order_of_the_vocabulary():
    assert best_labels(SCORES, 3) == [1, 3, 2]
    assert best_labels(SCORES, 4, threshold=2.0) == [1, 3, 2]
    assert best_labels(SCORES, 2, threshold=9.0) == []
    for top_k in (0, 5):
        with pytest.raises(ValueError, match=f"top_k must be between 1 and the 4 classes of the vocabulary, got {top_k}"):
            best_labels(SCORES, top_k)


def test_classes_best_first():
    tags = Tags(SPLIT, SCORES)
    assert tags.classes(top_k=2) == [
        {"index": 1, "name": "dog", "unseen": True, "score": 3.0},
        {"index": 3, "name": "pig", "unseen": False, "score": 3.0},
    ]
    assert [entry["name"] for entry in tags.classes()] == ["dog", "pig", "cow", "cat"]
    assert [entry["name"] for entry in tags.classes(threshold=2)] == ["dog", "pig", "cow"]


def test_a_result_is_data():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Tags(SPLIT, SCORES).scores = None


def test_scores_leave_the_graph_and_the_device():
    scores = scores_of({"scores": torch.ones(3, dtype=torch.float16, requires_grad=True)})
    assert scores.dtype == np.float32 and scores.tolist() == [1, 1, 1]
