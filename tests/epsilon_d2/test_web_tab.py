"""The functions behind Epsilon's tab; the tab itself is tested in a browser by tests/alignzeg_d2/test_web.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from PIL import Image

from epsilon_d2 import Epsilon
from epsilon_d2.web import load_labeller
from epsilon_d2.web_tab import Labeller
from zeroshot_d2.demo_world import SPLIT, render
from zeroshot_d2.predictor import Predictor


@pytest.fixture(scope="module")
def cfg(
    epsilon_cfg: Callable[..., CfgNode], epsilon_model: Callable[..., Epsilon], tmp_path_factory: pytest.TempPathFactory
) -> CfgNode:
    folder = tmp_path_factory.mktemp("weights")
    DetectionCheckpointer(epsilon_model(), str(folder)).save("model")
    return epsilon_cfg("MODEL.WEIGHTS", str(folder / "model.pth"), "MODEL.EPSILON.TEST.RETURN_ATTENTION", True)


@pytest.fixture(scope="module")
def labeller(cfg: CfgNode) -> Labeller:
    return Labeller(cfg, max_pixels=10_000)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(render(3, 0, num_objects=(3, 5)).image).resize((90, 60)).save(path)
    return str(path)


def test_the_page_shows_what_the_predictor_gives(labeller, cfg, photo):
    rows, pictures = labeller.tag(photo, labeller.default_labels, 38)
    scores = Predictor(cfg)(np.asarray(Image.open(photo)))["scores"].numpy()
    order = np.argsort(-scores, kind="stable")
    assert [row[0].removeprefix("★ ") for row in rows] == [SPLIT.names[k] for k in order]
    assert [row[2] for row in rows] == [f"{scores[k]:.3f}" for k in order]
    assert {row[0] for row in rows if row[1] == "unseen"} == {f"★ {name}" for name in SPLIT.unseen}
    assert len(pictures) == 2 and all(picture.shape[1] > 800 for picture in pictures)
    assert not np.array_equal(*pictures)


def test_labels_of_ones_own_do_not_stay(labeller, photo):
    before, _ = labeller.tag(photo, labeller.default_labels, 3)
    rows, _ = labeller.tag(photo, "zebra|striped horse, plain red tile", 10)
    assert {(row[0], row[1]) for row in rows} == {("★ zebra", "unseen"), ("plain red tile", "seen")}
    assert labeller.tag(photo, labeller.default_labels, 3)[0] == before and len(before) == 3


def test_a_threshold_leaves_out_what_is_below_it(labeller, photo):
    rows, _ = labeller.tag(photo, labeller.default_labels, 38)
    least = (float(rows[4][2]) + float(rows[5][2])) / 2
    assert labeller.tag(photo, labeller.default_labels, 38, str(least))[0] == rows[:5]


@pytest.mark.parametrize(
    ("labels", "threshold", "message"),
    [
        ("", "", "at least one class name"),
        ("cat, cat", "", r"lists \['cat'\] more than once"),
        ("cat", "high", "least score must be a number, got 'high'"),
    ],
)
def test_what_was_typed_can_be_faulty(labeller, photo, labels, threshold, message):
    with pytest.raises(ValueError, match=message):
        labeller.tag(photo, labels, 3, threshold)


def test_the_photo_can_be_faulty(labeller, tmp_path):
    Image.new("RGB", (200, 51)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"large\.png has 200 x 51 pixels"):
        labeller.tag(str(tmp_path / "large.png"), labeller.default_labels, 3)


def test_missing_files_are_named(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config-file nowhere\.yaml does not exist"):
        load_labeller("nowhere.yaml", None, 100)
    with pytest.raises(FileNotFoundError, match="output/demo/epsilon/model_final.pth do not exist"):
        load_labeller(None, None, 100)
