"""AlignZeg's predictor: what every predictor promises, label maps and proposals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from comparisons import assert_close, assert_same_labels
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from predictor_contract import NAMES, PredictorContract, photo

from alignzeg_d2.predictor import AlignZegPredictor
from zeroshot_d2.demo_world import SPLIT


@pytest.fixture(scope="module")
def cfg(trained_cfg: Callable[..., CfgNode]) -> Callable[..., CfgNode]:
    """As ``trained_cfg``, but for the weights too."""

    def build(*options: object) -> CfgNode:
        cfg = trained_cfg()
        cfg.merge_from_list(list(options))
        return cfg

    return build


@pytest.fixture(scope="module")
def predictor(cfg: Callable[..., CfgNode]) -> AlignZegPredictor:
    return AlignZegPredictor(cfg(), batch_size=3)


@pytest.fixture
def fresh(cfg: Callable[..., CfgNode]) -> AlignZegPredictor:
    return AlignZegPredictor(cfg(), batch_size=3)


class TestAlignZegPredictor(PredictorContract):
    OPTION = ATTRIBUTE = "scores"
    OUTPUT = "sem_seg"

    @staticmethod
    def scores(predictor: Any, image: Any, **arguments: Any) -> torch.Tensor:
        return predictor(image, scores=True, **arguments).scores

    @staticmethod
    def numbers(result: Any) -> np.ndarray:
        return result.confidence


def test_labels_and_best_are_those_of_the_scores(cfg, predictor):
    wide = np.concatenate([photo(0), photo(1)[:, :40]], axis=1)
    output = DefaultPredictor(cfg())(wide)
    scores = output["sem_seg"]
    for found in (predictor(wide, scores=True), predictor(wide), predictor([wide])[0]):
        assert found.labels.shape == found.confidence.shape == (64, 104)
        assert (found.labels.dtype, found.confidence.dtype) == (np.int64, np.float32)
        assert_same_labels(found.labels, scores.argmax(0), scores)
        assert_close(found.confidence, scores.amax(0) / output["sem_seg_coverage"])
        assert found.proposals is None


def test_proposals_show_what_the_correction_did(cfg):
    predictor = AlignZegPredictor(cfg("MODEL.ALIGNZEG.PBC.GAMMA", 0.0))  # every proposal counts as unseen
    vocabulary = ["plain blue tile", "zebra"]
    found = predictor([photo(0)], vocabulary=vocabulary, proposals=True)[0]
    proposals = found.proposals
    assert proposals["mask_logits"].shape == (16, 16, 16)
    assert proposals["class_indicator"].shape == (16,)
    assert proposals["features"].shape == (16, 96)
    before, after = proposals["class_logits"], proposals["corrected_logits"]
    assert before.shape == after.shape == (16, len(vocabulary) + 1)
    assert torch.equal(after[:, 1:], before[:, 1:])  # the unseen class and the background
    assert torch.equal(after[:, 0], before[:, :-1].min().expand(16))
    assert found.scores is None and predictor(photo(0)).proposals is None
    both = predictor(photo(0), scores=True, proposals=True)
    assert both.scores.shape == (len(SPLIT), 64, 64) and both.proposals is not None


def test_unseen_classes_are_what_the_correction_favours(predictor):
    split = predictor.marked(NAMES, unseen=["plain blue tile"])
    assert predictor.model.seen_mask(split).tolist() == [False] * 4
    assert predictor.model.seen_mask(predictor.marked(NAMES)).tolist() == [False, False, True, False]


def test_classes_present(predictor):
    found = predictor(photo(0))
    classes = found.classes()
    assert [entry["pixels"] for entry in classes] == sorted((entry["pixels"] for entry in classes), reverse=True)
    assert sum(entry["pixels"] for entry in classes) == 64 * 64
    assert sum(entry["area"] for entry in classes) == pytest.approx(1)
    for entry in classes:
        here = found.labels == entry["index"]
        assert entry["score"] == pytest.approx(found.confidence[here].mean(), rel=1e-4)
        assert entry["name"] == SPLIT.names[entry["index"]] and entry["unseen"] == (entry["name"] in SPLIT.unseen)


def test_colours_are_the_data_sets_or_distinct(predictor):
    assert len(set(predictor.colors)) == len(SPLIT)
    some = predictor.marked(["plain blue tile", "dark water"])
    assert predictor.colors_of(some) == [predictor.colors[SPLIT.names.index(name)] for name in some.names]
    assert len(set(predictor.colors_of(predictor.marked(NAMES)))) == 4
