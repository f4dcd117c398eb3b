"""The task's pictures by hand: colours, names and their places, comparisons and bars."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.pictures.style import UNSEEN_COLOR, figure_pixels, save_figure
from zeroshot_d2.segmentation.iou_bars import class_iou_figure, unseen_iou_figure
from zeroshot_d2.segmentation.pictures import (
    Comparison,
    blend_labels,
    comparison_figure,
    label_figure,
)

SPLIT = ClassSplit(("cat", "dog", "very long name of a cow"), unseen=("dog",))
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
IGNORED = 65535


@pytest.fixture
def image() -> np.ndarray:
    return np.full((40, 60, 3), 100, dtype=np.uint8)


@pytest.fixture
def label() -> np.ndarray:
    """cat on the left, dog on the right; the top left corner is ignored."""
    label = np.zeros((40, 60), dtype=np.uint16)
    label[:, 30:] = 1
    label[:10, :10] = IGNORED
    return label


def pixels(figure: Figure) -> np.ndarray:
    """What a PNG of the figure shows, (H, W, 3)."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return np.asarray(Image.open(file).convert("RGB"))


def names_in(figure: Figure, panel: int = 0) -> dict[str, object]:
    """The names written into a panel, line breaks taken out."""
    return {text.get_text().replace("\n", " "): text for text in figure.axes[panel].texts}


def test_blending_by_hand(image, label):
    blended = blend_labels(image, label, COLORS, alpha=0.5)
    assert blended[20, 0].tolist() == [178, 50, 50]  # (100 + 255) / 2 rounds to even
    assert blended[20, 59].tolist() == [50, 178, 50]
    assert blended[0, 0].tolist() == [100, 100, 100]  # ignored
    assert (image == 100).all()  # untouched


def test_blending_refuses_what_does_not_fit(image, label):
    with pytest.raises(ValueError, match=r"\(40, 60\).*\(40, 59\)"):
        blend_labels(image, label[:, :-1], COLORS)
    with pytest.raises(ValueError, match=r"alpha.*1\.5"):
        blend_labels(image, label, COLORS, alpha=1.5)


def test_names_stand_in_their_regions_and_unseen_ones_are_marked(image, label):
    figure = label_figure(image, label, SPLIT, COLORS)
    names = names_in(figure)
    assert set(names) == {"cat", "★ dog"}
    for name, k in (("cat", 0), ("★ dog", 1)):
        column, row = names[name].get_position()
        assert label[round(row), round(column)] == k
    assert to_hex(names["★ dog"].get_bbox_patch().get_facecolor()) == UNSEEN_COLOR
    assert to_hex(names["cat"].get_bbox_patch().get_facecolor()) != UNSEEN_COLOR
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cat", "★ dog"]


def test_names_stand_in_their_regions_of_a_photograph():
    label = np.zeros((1300, 2000), dtype=np.int64)
    label[700:, 1500:] = 1
    figure = label_figure(np.zeros((1300, 2000, 3), dtype=np.uint8), label, SPLIT, COLORS)
    for name, k in (("cat", 0), ("★ dog", 1)):
        column, row = names_in(figure)[name].get_position()
        assert label[round(row), round(column)] == k


def test_ignored_regions_are_named_only_on_request(image, label):
    label[:, :30] = IGNORED
    assert set(names_in(label_figure(image, label, SPLIT, COLORS))) == {"★ dog"}
    assert set(names_in(label_figure(image, label, SPLIT, COLORS, ignored_name="no label"))) == {"★ dog", "no label"}


def test_small_regions_get_no_name_but_are_in_the_legend(image, label):
    label[39, 59] = 2
    figure = label_figure(image, label, SPLIT, COLORS)
    assert "very long name of a cow" not in names_in(figure)
    assert "very long name of a cow" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_names_stay_inside_their_panel(image):
    label = np.zeros((40, 60), dtype=np.int64)
    label[:, 58:] = 2  # a strip far narrower than the name
    figure = label_figure(image, label, SPLIT, COLORS)
    figure.draw_without_rendering()
    text = names_in(figure)["very long name of a cow"]
    frame, box = figure.axes[0].get_window_extent(), text.get_bbox_patch().get_window_extent()
    assert frame.x0 - 0.5 <= box.x0 < box.x1 <= frame.x1 + 0.5


def test_the_picture_shows_the_colours(image, label):
    shown = pixels(label_figure(image, label, SPLIT, COLORS, alpha=1.0)).reshape(-1, 3)
    for color in (COLORS[0], COLORS[1], (100, 100, 100)):
        assert (shown == color).all(axis=1).mean() > 0.01, color
    assert not (shown == COLORS[2]).all(axis=1).any()


def test_an_image_without_labels_is_drawn(image):
    figure = label_figure(image, np.full((40, 60), IGNORED), SPLIT, COLORS)
    assert not names_in(figure) and not figure.legends
    assert (pixels(figure) == 100).all(axis=2).mean() > 0.5


def test_comparison_has_a_column_per_prediction_and_counts_labelled_pixels(image, label):
    all_cat = np.zeros((40, 60), dtype=np.int64)
    figure = comparison_figure([Comparison(image, label, {"Baseline": all_cat, "Ours": label})] * 2, SPLIT, COLORS)
    assert [axes.get_title() for axes in figure.axes[:4]] == ["Image", "Ground truth", "Baseline", "Ours"]
    # 1200 dog pixels of 2400, of which 100 are ignored: all cat is right on 1100 / 2300
    assert [axes.get_xlabel()[:4] for axes in figure.axes[4:]] == ["", "", "48 %", "100 "]
    assert set(names_in(figure, 2)) == {"cat"} and set(names_in(figure, 3)) == {"cat", "★ dog"}


def test_comparison_without_ground_truth(image, label):
    figure = comparison_figure([Comparison(image, None, {"Ours": label})], SPLIT, COLORS)
    assert [axes.get_title() for axes in figure.axes] == ["Image", "Ours"]
    assert figure.axes[1].get_xlabel() == ""


def test_comparison_refuses_rows_that_differ(image, label):
    rows = [Comparison(image, label, {"Ours": label}), Comparison(image, label, {"Baseline": label})]
    with pytest.raises(ValueError, match="same columns"):
        comparison_figure(rows, SPLIT, COLORS)
    with pytest.raises(ValueError, match="at least one row"):
        comparison_figure([], SPLIT, COLORS)


def test_unseen_iou_bars_and_their_mean():
    ious = {"Baseline": {"a": 10.0, "b": 30.0, "c": None}, "Ours": {"a": 20.0, "b": 60.0, "c": None, "seen": 99.0}}
    axes = unseen_iou_figure(ious, ["a", "b", "c"]).axes[0]
    assert [patch.get_width() for patch in axes.patches] == [10, 30, 0, 20, 60, 0]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == [20, 40]  # means over the classes that occur
    assert [text.get_text() for text in axes.texts] == [
        "10.0",
        "30.0",
        "not in the images",
        "20.0",
        "60.0",
        "not in the images",
    ]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["★ a", "★ b", "★ c"]


def test_unseen_iou_refuses_missing_classes():
    with pytest.raises(ValueError, match=r"'Ours'.*\['b'\]"):
        unseen_iou_figure({"Ours": {"a": 1.0}}, ["a", "b"])
    with pytest.raises(ValueError, match="models and classes"):
        unseen_iou_figure({}, ["a"])


def test_many_classes_stand_in_columns_of_one_scale():
    names = [f"class {k}" for k in range(90)]
    figure = class_iou_figure({"Ours": {name: float(k) for k, name in enumerate(names)}}, names, names[:2])
    assert [len(axes.patches) for axes in figure.axes] == [30, 30, 30]
    assert len({axes.get_xlim() for axes in figure.axes} | {axes.get_ylim() for axes in figure.axes}) == 2
    labels = [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()]
    assert labels == [f"★ {name}" for name in names[:2]] + names[2:]
    assert figure.axes[0].get_yticklabels()[2].get_color() != UNSEEN_COLOR
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Ours (mean 44.5)"]


def test_saved_as_png_of_the_wanted_resolution(image, label, tmp_path):
    figure = label_figure(image, label, SPLIT, COLORS)
    save_figure(figure, tmp_path / "a.png", dpi=50)
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.size == (250, int(50 * figure.get_size_inches()[1]))


@pytest.mark.parametrize(("height", "width"), [(500, 10), (3000, 1), (6000, 1), (1, 6000), (10, 500), (1, 1)])
def test_pictures_of_thin_photos_stay_small(height, width):
    image, label = np.zeros((height, width, 3), dtype=np.uint8), np.zeros((height, width), dtype=np.int64)
    shape = figure_pixels(label_figure(image, label, SPLIT, COLORS)).shape
    assert shape[1] == (800 if width <= 800 else 1600)
    assert shape[0] <= 4200
    both = figure_pixels(comparison_figure([Comparison(image, label, {"Ours": label})], SPLIT, COLORS)).shape
    assert both[0] <= 2200 and both[1] == 1200


@pytest.mark.parametrize(
    ("photo", "asked", "expected"), [(64, None, 800), (1300, None, 1300), (4000, None, 1600), (64, 320, 320)]
)
def test_the_width_follows_the_photo_or_is_asked_for(photo, asked, expected):
    image, label = np.zeros((30, photo, 3), dtype=np.uint8), np.zeros((30, photo), dtype=np.int64)
    assert figure_pixels(label_figure(image, label, SPLIT, COLORS, width=asked)).shape[1] == expected


@pytest.mark.parametrize("width", [0, -1, 199, 4001])
def test_widths_that_no_picture_has(width):
    with pytest.raises(ValueError, match=f"200 to 4000 pixels, got {width}"):
        label_figure(np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((4, 4), dtype=np.int64), SPLIT, COLORS, width=width)
