"""The task's pictures by hand: the first labels under an image, and curves of mAP."""

from __future__ import annotations

import numpy as np
import pytest

from zeroshot_d2 import ClassSplit
from zeroshot_d2.multilabel.pictures import LabelledImage, sweep_figure, top_labels_figure


def test_unseen_labels_are_starred_and_right_ones_bold():
    split = ClassSplit(["cat", "dog", "cow"], unseen=["dog"])
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    scores = np.array([0.1, 0.9, 0.5])
    figure = top_labels_figure([LabelledImage(image, scores, present=[1]), LabelledImage(image, scores)], split, top_k=2)
    figure.draw_without_rendering()
    texts = [text for axes in figure.axes for text in axes.texts]
    names = [(text.get_text(), text.get_fontweight()) for text in texts[::2]]
    assert names == [("★ dog", "bold"), ("cow", "normal"), ("★ dog", "normal"), ("cow", "normal")]
    assert [text.get_text() for text in texts[1::2]] == ["0.90", "0.50"] * 2
    with pytest.raises(ValueError, match="no image"):
        top_labels_figure([], split)


def test_labels_below_the_threshold_are_left_out():
    split = ClassSplit(["cat", "dog", "cow"])
    example = LabelledImage(np.zeros((20, 30, 3), dtype=np.uint8), np.array([0.1, 0.9, 0.5]), title="a photo")
    figure = top_labels_figure([example], split, top_k=3, threshold=0.5)
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["dog", "0.90", "cow", "0.50"]
    assert figure.axes[0].get_title() == "a photo"


def test_sweep_curves_are_means_with_the_deviation_of_the_runs():
    figure = sweep_figure({8: {"ZSL": [44.0], "GZSL": [64.0]}, 2: {"ZSL": [40.0, 42.0], "GZSL": [60.0, 60.0]}}, "groups")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["2", "8"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("groups", "mAP (%)")
    zsl, gzsl = axes.containers
    assert zsl[0].get_ydata().tolist() == [41.0, 44.0] and gzsl[0].get_ydata().tolist() == [60.0, 64.0]
    (bar,) = zsl[2]
    np.testing.assert_allclose(bar.get_segments()[0][:, 1], [41 - 2**0.5, 41 + 2**0.5])
    assert axes.get_title().endswith("1 to 2 runs")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ZSL", "GZSL"]
    with pytest.raises(ValueError, match="at least one value"):
        sweep_figure({}, "groups")
