"""Colours of classes."""

from zeroshot_d2.pictures.colors import class_colors


def test_colors_are_distinct_and_stable():
    colors = class_colors(171)
    assert len(set(colors)) == 171
    assert class_colors(20) == colors[:20]
