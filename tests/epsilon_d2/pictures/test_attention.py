"""Where the groups look: a panel per group over the whole image, and the label that each speaks for."""

from __future__ import annotations

import numpy as np
import pytest

from epsilon_d2.pictures.attention import (
    AttendedImage,
    attention_by_module,
    attention_figure,
    attentions_figure,
    labels_of_groups,
    spoken_labels,
)
from zeroshot_d2 import ClassSplit
from zeroshot_d2.multilabel.predictor import Tags

SPLIT = ClassSplit(["cat", "dog", "cow", "sky"], unseen=["dog"])
SCORES, GROUPS = np.array([0.1, 0.9, 0.5, 0.7], dtype=np.float32), np.array([2, 0, 0, 1])


def test_a_panel_per_group_over_the_whole_image():
    attention = np.random.default_rng(0).random((8, 4, 4))
    figure = attention_figure(np.zeros((20, 30, 3), dtype=np.uint8), attention, title="a photo")
    overlays = [axes.get_images()[1] for axes in figure.axes if len(axes.get_images()) == 2]
    assert len(overlays) == 8
    for group, overlay in zip(attention, overlays, strict=True):
        np.testing.assert_array_equal(overlay.get_array(), group)
        assert list(overlay.get_extent()) == [0, 30, 20, 0]


def test_a_group_speaks_for_the_best_of_its_labels():
    assert labels_of_groups(SCORES, GROUPS, SPLIT, num_groups=4) == ["★ dog", "sky", "cat", ""]
    assert labels_of_groups(SCORES, GROUPS, SPLIT, num_groups=4, top_k=1) == ["★ dog", "", "", ""]
    figure = attention_figure(np.zeros((8, 8, 3), dtype=np.uint8), np.ones((2, 4, 4)), labels=["★ dog", ""])
    assert [axes.get_title() for axes in figure.axes] == ["image", "group 1\n★ dog", "group 2\n–"]


@pytest.mark.parametrize("keys", [{"group_attention"}, {"global_attention"}, {"group_attention", "global_attention"}])
def test_a_result_has_the_attention_of_the_modules_of_its_model(keys):
    attention = {key: np.ones((3, 4, 4)) for key in keys}
    tags = Tags(SPLIT, SCORES, {**attention, "group_of_class": GROUPS})
    modules = {"group_attention": "GPA", "global_attention": "GFP"}
    assert set(attention_by_module(tags)) == {modules[key] for key in keys}
    assert spoken_labels(tags) == ["★ dog", "sky", "cat"]


def test_a_result_without_attention_has_none_to_show():
    for attention in (None, {"group_of_class": GROUPS}):  # not asked for; a model without both modules
        assert attention_by_module(Tags(SPLIT, SCORES, attention)) == {}
        assert spoken_labels(Tags(SPLIT, SCORES, attention)) is None


def test_a_row_per_image_and_module_and_a_column_per_group():
    maps = np.random.default_rng(0).random((3, 4, 4))
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    figure = attentions_figure([AttendedImage(image, {"GPA": maps, "GFP": 2 * maps})] * 2)
    rows = np.reshape(figure.axes, (4, 4))
    assert [axes.get_ylabel() for axes in rows[:, 0]] == ["GPA", "GFP", "GPA", "GFP"]
    for row, factor in zip(rows, (1, 2, 1, 2), strict=True):
        for group, axes in zip(maps, row[1:], strict=True):
            np.testing.assert_array_equal(axes.get_images()[1].get_array(), factor * group)
    with pytest.raises(ValueError, match="GPA or GFP"):
        attentions_figure([AttendedImage(image, {})])
