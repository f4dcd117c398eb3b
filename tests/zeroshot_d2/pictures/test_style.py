"""The look of every picture: marks of unseen classes, and how a figure becomes a file or pixels."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from zeroshot_d2 import ClassSplit
from zeroshot_d2.pictures.style import (
    UNSEEN_COLOR,
    class_text,
    figure_pixels,
    finish,
    mark_unseen,
    new_figure,
    save_figure,
    show_image,
    starred,
)

SPLIT = ClassSplit(["cat", "dog"], unseen=["dog"])


def test_unseen_classes_have_a_star():
    assert [class_text(SPLIT, k) for k in range(2)] == ["cat", "★ dog"]
    assert starred("cow", True) == "★ cow" and starred("cow", False) == "cow"
    text = Figure().text(0, 0, "dog")
    mark_unseen(text)
    assert (text.get_color(), text.get_fontweight()) == (UNSEEN_COLOR, "bold")


def test_figures_become_pixels():
    pixels = figure_pixels(Figure(figsize=(2, 1)), dpi=50)
    assert pixels.shape == (50, 100, 3) and pixels.dtype == np.uint8 and (pixels == 255).all()


@pytest.mark.parametrize(
    ("ending", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml"), ("PNG", b"\x89PNG")]
)
def test_the_ending_decides_about_the_format(tmp_path, ending, start):
    save_figure(Figure(figsize=(2, 1)), tmp_path / "new" / f"a.{ending}", dpi=50)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"a.{ending}"]
    assert (tmp_path / "new" / f"a.{ending}").read_bytes().startswith(start)


def test_a_picture_has_the_wanted_resolution(tmp_path):
    save_figure(Figure(figsize=(2, 1)), tmp_path / "a.png", dpi=75)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (150, 75)


def test_a_picture_that_cannot_be_drawn_leaves_no_file(tmp_path):
    with pytest.raises(ValueError):
        save_figure(Figure(), tmp_path / "a.xyz")
    assert not list(tmp_path.iterdir())


def test_names_that_stick_out_are_moved_into_their_panel():
    figure = new_figure(2, 1)
    axes = figure.subplots()
    show_image(axes, np.zeros((10, 20, 3), dtype=np.uint8))
    boxed = axes.text(19.4, 9.4, "a name", ha="center", bbox={"boxstyle": "round"})
    plain = axes.text(19.4, 9.4, "a name", ha="center")
    finish(figure).draw_without_rendering()
    frame, box = axes.get_window_extent(), boxed.get_bbox_patch().get_window_extent()
    assert frame.x0 - 0.5 <= box.x0 < box.x1 <= frame.x1 + 0.5 and frame.y0 - 0.5 <= box.y0 < box.y1 <= frame.y1 + 0.5
    assert plain.get_position() == (19.4, 9.4)  # only names in boxes are moved
