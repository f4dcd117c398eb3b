"""Thresholds as a number and as a file, and how they are chosen."""

import argparse

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_f1_score

from zeroshot_d2 import ClassSplit
from zeroshot_d2.multilabel.calibration import best_cut, calibration, f1_at
from zeroshot_d2.multilabel.predictor import best_labels
from zeroshot_d2.segmentation.calibration import KINDS, ConfidenceCounts, lowest_threshold, threshold_figure
from zeroshot_d2.segmentation.predictor import Segmentation
from zeroshot_d2.storage import write_json
from zeroshot_d2.thresholds import Thresholds, read_thresholds, thresholds

SPLIT = ClassSplit(["cat", "traffic light", "cow"], unseen=["cow"])


# ---- a number or a file ----


def test_a_number_and_a_file(tmp_path):
    assert thresholds("0.5") == Thresholds(0.5)
    file = tmp_path / "thresholds.json"
    write_json(file, {"threshold": 1, "of_class": {"Traffic_Light": 2.5}, "dataset": "x"})
    found = thresholds(str(file))
    assert found == Thresholds(1.0, {"Traffic_Light": 2.5})
    assert found.for_vocabulary(SPLIT).tolist() == [1.0, 2.5, 1.0]


@pytest.mark.parametrize("text", ["nan", "inf", "", "half", "missing.json"])
def test_what_is_no_threshold(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"must be a (finite )?number"):
        thresholds(text)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"threshold": "a"},
        {"threshold": True},
        {"threshold": 1, "of_class": {"cat": None}},
        {"threshold": 1, "of_class": []},
    ],
)
def test_what_is_no_file_of_thresholds(tmp_path, content):
    write_json(tmp_path / "thresholds.json", content)
    with pytest.raises(ValueError, match=r"thresholds\.json.*let `calibrate` write"):
        read_thresholds(tmp_path / "thresholds.json")
    with pytest.raises(argparse.ArgumentTypeError):
        thresholds(str(tmp_path / "thresholds.json"))


def test_labels_above_their_own_thresholds():
    scores = np.array([3.0, 1.0, 2.0], dtype=np.float32)
    assert best_labels(scores, 3, np.array([4.0, 0.5, 0.0])) == [2, 1]
    assert best_labels(scores, 3, 1.5) == [0, 2] and best_labels(scores, 3) == [0, 2, 1]


# ---- labels of images ----


@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_has_a_better_f1(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 12, 60) / 4.0  # with ties
    present = rng.random(60) < 0.2 + 0.2 * scores
    cut = best_cut(scores, present)
    everywhere = [f1_at(scores, present, at) for at in np.unique(np.concatenate([scores, scores - 0.1, scores + 0.1]))]
    assert cut.f1 == pytest.approx(max(everywhere)) == pytest.approx(f1_at(scores, present, cut.threshold))
    reference = binary_f1_score(torch.from_numpy(scores >= cut.threshold), torch.from_numpy(present))
    assert cut.f1 == pytest.approx(reference.item(), rel=1e-6)


def test_limits_of_a_cut():
    assert best_cut(np.array([1.0, 2.0, 3.0]), np.array([False, True, True])).threshold == 1.5
    everything = best_cut(np.array([1.0, 2.0]), np.array([True, True]))
    assert everything.threshold == 1.0 and everything.f1 == 1
    equal = best_cut(np.array([2.0, 2.0]), np.array([True, False]))
    assert equal.threshold == 2.0 and equal.f1 == pytest.approx(2 / 3)
    assert f1_at(np.array([1.0]), np.array([False]), 2.0) == 0
    with pytest.raises(ValueError, match="none of the labels is present"):
        best_cut(np.array([1.0]), np.array([False]))


def test_classes_with_few_images_have_the_threshold_of_all():
    rng = np.random.default_rng(0)
    present = rng.random((40, 3)) < np.array([0.5, 0.5, 0.02])
    present[:, 2] = False
    present[:2, 2] = True
    scores = present + np.array([0.0, 5.0, 0.0]) + 0.1 * rng.random((40, 3))
    found = calibration(SPLIT, scores, present, np.ones_like(present), min_images=5)
    assert set(found.content["of_class"]) == {"cat", "traffic light"}
    assert 0.1 < found.content["of_class"]["cat"] < 1 and 5.1 < found.content["of_class"]["traffic light"] < 6
    assert found.content["F1_with_own_thresholds"] > 95 > found.content["F1"]
    assert found.figure.axes[1].get_yticklabels()[0].get_text() == "cat"
    plt.close("all")


def test_what_is_not_annotated_does_not_count():
    scores, present = np.array([[3.0, 9.0], [1.0, 9.0]]), np.array([[True, False], [False, False]])
    annotated = np.array([[True, False], [True, False]])
    found = calibration(ClassSplit(["cat", "cow"]), scores, present, annotated, min_images=1)
    assert found.content["threshold"] == 2 and found.content["F1"] == 100 and set(found.content["of_class"]) == {"cat"}

    with pytest.raises(ValueError, match="no label says that a class is absent"):
        calibration(ClassSplit(["cat", "cow"]), scores, present, present, min_images=1)


# ---- segmentation ----


def counted():
    confidence = np.array([[0.95, 0.9, 0.6, 0.55, 0.3, 0.2, 0.1, 0.8]], dtype=np.float32)
    truth = np.array([[0, 1, 0, 2, 1, 2, 3, 9]])
    labels = np.array([[0, 1, 0, 2, 0, 0, 0, 1]])
    found = Segmentation(SPLIT, labels, confidence)
    counts = ConfidenceCounts(SPLIT)
    counts.add(found, truth)
    return counts, found


def test_pixels_are_counted_by_confidence():
    counts, _ = counted()
    assert {kind: int(counts.all[kind].sum()) for kind in KINDS} == {"seen": 4, "unseen": 2, "unlabelled": 2}
    assert counts.accuracy("seen", "unseen")[[0, 25, 50, 90]].tolist() == pytest.approx([4 / 6, 4 / 5, 1, 1])
    assert np.isnan(counts.accuracy("unseen")[60]) and counts.kept("unseen")[[0, 50, 60]].tolist() == [1, 0.5, 0]
    assert counts.kept("unlabelled")[[0, 50, 90]].tolist() == [1, 0.5, 0]


def test_the_lowest_threshold_that_is_right_often_enough():
    counts, found = counted()
    assert lowest_threshold(counts, 60) == 0
    assert lowest_threshold(counts, 80) == 0.21  # the pixel of 0.2 is wrong
    assert lowest_threshold(counts, 100) == pytest.approx(0.31)
    with pytest.raises(ValueError, match="no threshold makes 101 % of the pixels right: the most are 100.0 %, at 0.31"):
        lowest_threshold(counts, 101)
    with pytest.raises(ValueError, match="no labelled pixel"):
        lowest_threshold(ConfidenceCounts(SPLIT), 50)
    image = np.zeros((1, 8, 3), np.uint8)
    figure = threshold_figure(counts, 0.31, image, found, [(255, 0, 0), (0, 255, 0), (0, 0, 255)])
    assert len(figure.axes) == 5
    plt.close("all")
