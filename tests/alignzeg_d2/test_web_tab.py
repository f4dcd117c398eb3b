"""The functions behind AlignZeg's tab; the tab itself is tested in a browser by tests/test_web_page.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from comparisons import assert_same_labels
from detectron2.config import CfgNode
from PIL import Image

from alignzeg_d2 import AlignZeg
from alignzeg_d2.gamma_sweep import OFF, segment_with_gamma
from alignzeg_d2.predictor import AlignZegPredictor
from zeroshot_d2.demo_world import SPLIT, render
from zeroshot_d2.segmentation.predictor import Segmentation

pytest.importorskip("gradio", reason="the extra 'web' is not installed")
from alignzeg_d2.web_tab import Segmenter, with_gamma
from zeroshot_d2.web import Watched
from zeroshot_d2.web_server import Limits, Stopped

LIMITS = Limits(pixels=20_000)


@pytest.fixture(scope="module")
def cfg(trained_cfg: Callable[..., CfgNode]) -> CfgNode:
    return trained_cfg("MODEL.ALIGNZEG.PBC.GAMMA", 0.3)


@pytest.fixture(scope="module")
def segmenter(cfg: CfgNode) -> Segmenter:
    return Segmenter(cfg, LIMITS)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(render(7, 1).image).save(path)
    return str(path)


# ------------------------------------------------------------------------------------- the functions behind the page


def test_the_page_shows_what_the_predictor_gives(segmenter, cfg, photo):
    found = segmenter.find(photo, segmenter.default_names, "")
    overlay, rows, summary, heaviest, _ = segmenter.show(found, segmenter.gamma)
    expected = AlignZegPredictor(cfg)(photo).classes()
    assert segmenter.gamma == cfg.MODEL.ALIGNZEG.PBC.GAMMA
    assert [row[0].removeprefix("★ ") for row in rows] == [entry["name"] for entry in expected]
    assert [row[1] == "unseen" for row in rows] == [row[0].startswith("★ ") for row in rows]
    assert [row[1] == "unseen" for row in rows] == [entry["unseen"] for entry in expected]
    for column, key, tolerance in ((2, "area", 0.001), (3, "score", 0.01)):
        factor = 100 if key == "area" else 1
        values = [float(row[column]) / factor for row in rows]
        assert values == pytest.approx([entry[key] for entry in expected], abs=tolerance)
    assert overlay.shape[1] == 800 and len(heaviest) == 8 and all("\nI = " in caption for _, caption in heaviest)
    assert re.match(r"Of 16 proposals, \d+ have a class indicator \*I\* above γ = 0\.3\.", summary)


@pytest.mark.parametrize("gamma", [0.0, 0.2, 0.6, OFF])
def test_any_gamma_gives_what_the_sweep_gives(segmenter, photo, gamma):
    found = segmenter.find(photo, segmenter.default_names, "")
    before = found.segmentation.labels.copy()
    seen = segmenter.model.seen_mask(SPLIT)
    expected = segment_with_gamma(found.segmentation.proposals, seen, gamma, (64, 64)).numpy()
    given = with_gamma(segmenter.model, found, gamma)
    assert (given.labels != expected).mean() < 0.001  # a tie at a pixel may fall either way
    assert np.array_equal(found.segmentation.labels, before) and segmenter.model.postprocessor.gamma == 0.3


def test_a_photo_can_be_given_up_half_way(segmenter, photo):
    checks = iter(range(10**6))

    def check() -> None:
        if next(checks) == 100:
            raise Stopped("nobody waits")

    with pytest.raises(Stopped), Watched(check):
        segmenter.find(photo, "dark sand, plain blue tile", "")
    with Watched(lambda: next(checks)):
        watched = segmenter.find(photo, segmenter.default_names, "").segmentation
    expected = segmenter.find(photo, segmenter.default_names, "").segmentation
    assert (watched.labels != expected.labels).mean() < 0.001 and next(checks) > 200


def test_what_is_kept_is_enough_for_another_gamma(segmenter, photo):
    found = segmenter.find(photo, segmenter.default_names, "")
    kept = found.kept()
    assert kept.segmentation.labels.size == kept.segmentation.confidence.size == 0
    overlay, rows, summary, *_ = segmenter.show(kept, 0.2)
    expected = segmenter.show(found, 0.2)
    assert np.array_equal(overlay, expected[0]) and rows == expected[1] and summary == expected[2]


def test_gamma_decides_what_becomes_unseen(segmenter, photo):
    found = segmenter.find(photo, segmenter.default_names, "")
    _, everything, summary, heaviest, picture = segmenter.show(found, 0.0)
    assert {row[1] for row in everything} == {"unseen"} and "16 have" in summary
    assert any(" → ★ " in caption for _, caption in heaviest) and picture.ndim == 3
    _, nothing, summary, heaviest, picture = segmenter.show(found, OFF)
    assert nothing != everything and "0 have" in summary and picture is None
    assert not any("→" in caption for _, caption in heaviest)


def test_a_vocabulary_keeps_its_order_and_any_order_gives_the_same_classes(segmenter, cfg, photo):
    names = ["dark sand", "zebra|striped horse", "netted blue tile", "plain blue tile"]
    maps = []
    for order in (names, names[::-1]):
        segmentation = segmenter.find(photo, ", ".join(order), "dark sand").segmentation
        assert segmentation.vocabulary.names == tuple(name.split("|")[0] for name in order)
        assert set(segmentation.vocabulary.unseen) == {"zebra", "dark sand"}
        maps.append(segmentation.labels)
    scores = AlignZegPredictor(cfg)(photo, vocabulary=names, unseen=["dark sand"], scores=True).scores
    assert_same_labels(maps[0], scores.argmax(0), scores)
    assert_same_labels(3 - maps[1], scores.argmax(0), scores)


def test_visitors_do_not_see_the_vocabulary_of_others(segmenter, photo):
    texts = ["dark sand, plain blue tile", "light water, striped red tile, zebra", segmenter.default_names] * 4

    def segmentation(text: str) -> Segmentation:
        return segmenter.find(photo, text, "").segmentation

    expected = [segmentation(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        for given, alone in zip(pool.map(segmentation, texts), expected, strict=True):
            assert given.vocabulary == alone.vocabulary
            assert (given.labels != alone.labels).mean() < 0.001  # a tie at a pixel may fall either way


@pytest.mark.parametrize(
    ("names", "unseen", "message"),
    [
        (" , ", "", "a vocabulary needs at least one class name"),
        ("cat, dog, cat", "", r"lists \['cat'\] more than once"),
        ("cat, dog", "cow", r"unseen classes \['cow'\] are not in the vocabulary: cat, dog"),
        (",".join(map(str, range(2001))), "", "typed 2,001 names, .* this page takes 2,000"),
        ("cat", "x" * 101, "has 101 characters"),
    ],
)
def test_faulty_vocabularies(segmenter, photo, names, unseen, message):
    with pytest.raises(ValueError, match=message):
        segmenter.find(photo, names, unseen)


def test_faulty_photos(segmenter, tmp_path):
    Image.new("RGB", (201, 100)).save(tmp_path / "large.png")
    for photo, message in ((None, "no photo yet"), (str(tmp_path / "large.png"), "more than the 20,000")):
        with pytest.raises(ValueError, match=message):
            segmenter.find(photo, segmenter.default_names, "")


def test_a_vocabulary_of_seen_classes_has_no_bias_to_correct(segmenter, photo):
    _, _, summary, _, picture = segmenter.show(segmenter.find(photo, "dark sand, plain blue tile", ""), 0.0)
    assert "no unseen class" in summary and picture is None


def test_a_model_without_correction(demo_cfg, demo_model: Callable[..., AlignZeg], photo, tmp_path):
    plain = ("MODEL.ALIGNZEG.PBC.POSTPROCESSOR", "NoCorrection")
    torch.save({"model": demo_model(*plain).state_dict()}, tmp_path / "model.pth")
    segmenter = Segmenter(demo_cfg(*plain, "MODEL.WEIGHTS", str(tmp_path / "model.pth")), LIMITS)
    assert segmenter.gamma is None
    _, rows, summary, heaviest, picture = segmenter.show(segmenter.find(photo, segmenter.default_names, ""), 0.0)
    assert rows and "has no class indicator" in summary and picture is None
    assert not any("I =" in caption for _, caption in heaviest)


def test_pixels_of_little_confidence_are_other(segmenter, photo):
    found = segmenter.find(photo, segmenter.default_names, "")
    confidence = np.sort(found.segmentation.confidence.ravel())
    least = float(confidence[len(confidence) // 2])
    _, rows, *_ = segmenter.show(found, segmenter.gamma, least)
    (other,) = (row for row in rows if row[0] == "other")
    assert other[1] == "" and float(other[2]) == pytest.approx(50, abs=1)
    _, without, *_ = segmenter.show(found, segmenter.gamma, 0.0)
    assert "other" not in [row[0] for row in without]
    again = segmenter.show(found.kept(), segmenter.gamma, least)[1]
    assert again == rows
    with pytest.raises(ValueError, match="has a class 'other' already"):
        segmenter.show(segmenter.find(photo, "cat, other", ""), OFF, least)


def test_a_photo_that_is_seen_in_windows(trained_cfg, photo):
    slide = ("TEST.SLIDE.ENABLED", True, "TEST.SLIDE.WINDOW", 48, "TEST.SLIDE.STRIDE", 32)
    segmenter = Segmenter(trained_cfg(*slide), LIMITS)
    assert segmenter.gamma is None  # there is nothing that another threshold could be tried on
    found = segmenter.find(photo, segmenter.default_names, "")
    assert found.segmentation.proposals is None
    _, rows, summary, heaviest, picture = segmenter.show(found, 0.5)
    assert [row[0].removeprefix("★ ") for row in rows] == [entry["name"] for entry in found.segmentation.classes()]
    assert "in several windows or sizes" in summary and not heaviest and picture is None
