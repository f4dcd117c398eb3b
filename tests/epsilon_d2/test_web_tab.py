"""The functions behind Epsilon's tab; the tab itself is tested in a browser by tests/test_web_page.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image

from epsilon_d2 import Epsilon
from epsilon_d2.predictor import EpsilonPredictor
from zeroshot_d2.demo_world import SPLIT, render

pytest.importorskip("gradio", reason="the extra 'web' is not installed")
from epsilon_d2.web_tab import Labeller
from zeroshot_d2.web import Watched
from zeroshot_d2.web_server import Limits, Stopped

LIMITS = Limits(pixels=10_000)


@pytest.fixture(scope="module")
def cfg(
    epsilon_cfg: Callable[..., CfgNode], epsilon_model: Callable[..., Epsilon], tmp_path_factory: pytest.TempPathFactory
) -> CfgNode:
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": epsilon_model().state_dict()}, path)
    return epsilon_cfg("MODEL.WEIGHTS", str(path))


@pytest.fixture(scope="module")
def labeller(cfg: CfgNode) -> Labeller:
    return Labeller(cfg, LIMITS)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(render(3, 0, num_objects=(3, 5)).image).resize((90, 60)).save(path)
    return str(path)


def test_the_page_shows_what_the_predictor_gives(labeller, cfg, photo):
    rows, pictures = labeller.tag(photo, labeller.default_labels, 38)
    classes = EpsilonPredictor(cfg)(photo).classes()
    assert [row[0].removeprefix("★ ") for row in rows] == [entry["name"] for entry in classes]
    assert [float(row[2]) for row in rows] == pytest.approx([entry["score"] for entry in classes], abs=0.001)
    assert {row[0] for row in rows if row[1] == "unseen"} == {f"★ {name}" for name in SPLIT.unseen}
    assert len(pictures) == 2 and all(picture.shape[1] > 800 for picture in pictures)
    assert not np.array_equal(*pictures)


def test_labels_of_ones_own_do_not_stay(labeller, photo):
    before, _ = labeller.tag(photo, labeller.default_labels, 3)
    rows, _ = labeller.tag(photo, "zebra|striped horse, plain red tile", 10)
    assert {(row[0], row[1]) for row in rows} == {("★ zebra", "unseen"), ("plain red tile", "seen")}
    assert labeller.tag(photo, labeller.default_labels, 3)[0] == before and len(before) == 3


def test_a_photo_can_be_given_up_half_way(labeller, photo):
    checks = iter(range(10**6))

    def check() -> None:
        if next(checks) == 100:
            raise Stopped("nobody waits")

    with pytest.raises(Stopped), Watched(check):
        labeller.tag(photo, "zebra, plain red tile, green hill", 3)


def test_a_threshold_leaves_out_what_is_below_it(labeller, photo):
    rows, _ = labeller.tag(photo, labeller.default_labels, 38)
    least = (float(rows[4][2]) + float(rows[5][2])) / 2
    assert labeller.tag(photo, labeller.default_labels, 38, str(least))[0] == rows[:5]
    assert labeller.tag(photo, labeller.default_labels, 38, None)[0] == rows


@pytest.mark.parametrize(
    ("labels", "threshold", "message"),
    [
        ("", "", "at least one class name"),
        ("cat, cat", "", r"lists \['cat'\] more than once"),
        ("cat", "high", "least score must be a number, got 'high'"),
        (", ".join(map(str, range(10_000))), "", "typed 10,000 names, .* this page takes 2,000"),
    ],
)
def test_what_was_typed_can_be_faulty(labeller, photo, labels, threshold, message):
    with pytest.raises(ValueError, match=message):
        labeller.tag(photo, labels, 3, threshold)


def test_the_photo_can_be_faulty(labeller, tmp_path):
    Image.new("RGB", (200, 51)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"large\.png has 200 x 51 pixels"):
        labeller.tag(str(tmp_path / "large.png"), labeller.default_labels, 3)


def test_a_model_without_a_module_has_one_picture(epsilon_cfg, epsilon_model, photo, tmp_path):
    options = ("MODEL.EPSILON.GFP.ENABLED", False)
    torch.save({"model": epsilon_model(*options).state_dict()}, tmp_path / "model.pth")
    labeller = Labeller(epsilon_cfg(*options, "MODEL.WEIGHTS", str(tmp_path / "model.pth")), LIMITS)
    _, (of_groups, of_blocks) = labeller.tag(photo, "zebra, plain red tile", 2)
    assert of_groups is not None and of_blocks is None
