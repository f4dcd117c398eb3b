"""Proposal features on a plane: marks of unseen classes and of prototypes."""

from __future__ import annotations

import numpy as np
import pytest

from alignzeg_d2.pictures.tsne import EmbeddedFeatures, tsne_figure
from zeroshot_d2.class_split import ClassSplit

SPLIT = ClassSplit(("cat", "dog", "very long name of a cow"), unseen=("dog",))


def test_tsne_marks_unseen_classes_and_prototypes():
    positions = np.arange(12.0).reshape(6, 2)
    panel = EmbeddedFeatures(positions, np.array([0, 0, 1, 1, 2, 1]), {1: np.array([50.0, 60.0])}, "a note")
    figure = tsne_figure({"Baseline": panel, "Ours": panel}, SPLIT)
    assert [axes.get_title() for axes in figure.axes] == ["Baseline", "Ours"]
    drawn = [collection.get_offsets().tolist() for collection in figure.axes[0].collections]
    assert sorted(map(len, drawn)) == [1, 1, 2, 3] and [[50.0, 60.0]] in drawn
    assert figure.axes[0].get_xlabel() == "a note"
    legend = figure.legends[0]
    names = [text.get_text() for text in legend.get_texts()]
    markers = dict(zip(names, [handle.get_marker() for handle in legend.legend_handles], strict=True))
    assert markers == {"cat": "o", "very long name of a cow": "o", "dog (unseen)": "*", "text prototype": "X"}


def test_tsne_refuses_more_classes_than_colours():
    names = tuple(f"class {k}" for k in range(8))
    with pytest.raises(ValueError, match="7 seen and as many unseen classes, got 8"):
        tsne_figure({"Ours": EmbeddedFeatures(np.zeros((8, 2)), np.arange(8))}, ClassSplit(names))
    with pytest.raises(ValueError, match="at least one panel"):
        tsne_figure({}, SPLIT)
