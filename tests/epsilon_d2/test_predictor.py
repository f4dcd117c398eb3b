"""Epsilon's predictor: what every predictor promises, tags and where the groups look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from comparisons import assert_close
from detectron2.config import CfgNode
from predictor_contract import NAMES, PredictorContract, photo

from epsilon_d2.predictor import EpsilonPredictor
from zeroshot_d2.demo_world import SPLIT
from zeroshot_d2.multilabel.predictor import best_labels


@pytest.fixture(scope="module")
def cfg(trained_epsilon_cfg: Callable[..., CfgNode]) -> Callable[..., CfgNode]:
    """As ``trained_epsilon_cfg``, but for the weights too."""

    def build(*options: object) -> CfgNode:
        cfg = trained_epsilon_cfg()
        cfg.merge_from_list(list(options))
        return cfg

    return build


@pytest.fixture(scope="module")
def predictor(cfg: Callable[..., CfgNode]) -> EpsilonPredictor:
    return EpsilonPredictor(cfg(), batch_size=3)


@pytest.fixture
def fresh(cfg: Callable[..., CfgNode]) -> EpsilonPredictor:
    return EpsilonPredictor(cfg(), batch_size=3)


class TestEpsilonPredictor(PredictorContract):
    OPTION = ATTRIBUTE = "attention"
    OUTPUT = "scores"

    @staticmethod
    def scores(predictor: Any, image: Any, **arguments: Any) -> np.ndarray:
        return predictor(image, **arguments).scores

    @staticmethod
    def numbers(result: Any) -> np.ndarray:
        return result.scores


def test_any_size_is_squeezed_as_the_model_squeezes_it(predictor):
    wide = np.concatenate([photo(0), photo(1)[:, :40]], axis=1)
    rgb = torch.from_numpy(wide[:, :, ::-1].transpose(2, 0, 1).copy())
    expected = predictor.model.inference([{"image": rgb, "vocabulary": NAMES}])[0]["scores"]
    found = predictor(wide, vocabulary=NAMES)
    assert found.scores.shape == (4,) and found.scores.dtype == np.float32
    assert_close(found.scores, expected)


def test_attention_shows_where_each_group_looks(predictor):
    found = predictor(photo(0), vocabulary=NAMES, attention=True)
    assert set(found.attention) == {"group_attention", "global_attention", "group_of_class"}
    for key in ("group_attention", "global_attention"):
        assert found.attention[key].shape == (8, 8, 8)
        np.testing.assert_allclose(found.attention[key].sum(axis=(1, 2)), 1, rtol=1e-4)
    assert found.attention["group_of_class"].shape == (4,)


@pytest.mark.parametrize("module", ["GPA", "GFP"])
def test_attention_of_a_model_without_one_of_the_modules(epsilon_model, epsilon_cfg, tmp_path, module):
    options = (f"MODEL.EPSILON.{module}.ENABLED", False)
    torch.save({"model": epsilon_model(*options).state_dict()}, tmp_path / "model.pth")
    predictor = EpsilonPredictor(epsilon_cfg(*options, "MODEL.WEIGHTS", str(tmp_path / "model.pth")))
    left = {"GPA": "global_attention", "GFP": "group_attention"}[module]
    assert set(predictor(photo(0), attention=True).attention) == {left, "group_of_class"}


def test_explanations_are_pictures_of_the_attention(predictor):
    assert predictor.explanation_needs == ("attention",)
    found = predictor(photo(0), attention=True)
    figures = predictor.explain(photo(0), found)
    assert set(figures) == {"group_attention", "global_attention"}
    (image,) = figures["group_attention"].axes[0].get_images()
    np.testing.assert_array_equal(image.get_array(), photo(0)[:, :, ::-1])
    assert predictor.explain(photo(0), predictor(photo(0))) == {}


def test_best_labels():
    scores = np.array([1.0, 3.0, 2.0, 3.0])
    assert best_labels(scores, 3) == [1, 3, 2]
    assert best_labels(scores, 4, threshold=2.0) == [1, 3, 2]
    assert best_labels(scores, 2, threshold=9.0) == []


def test_classes_are_the_best_labels_first(predictor):
    found = predictor(photo(0))
    classes = found.classes()
    assert [entry["index"] for entry in classes] == np.argsort(-found.scores, kind="stable").tolist()
    for entry in classes:
        assert entry["name"] == SPLIT.names[entry["index"]] and entry["unseen"] == (entry["name"] in SPLIT.unseen)
        assert entry["score"] == found.scores[entry["index"]]
    assert found.classes(top_k=3) == classes[:3]
    least = (classes[4]["score"] + classes[5]["score"]) / 2
    assert found.classes(threshold=least) == classes[:5]
    assert found.classes(top_k=2, threshold=least) == classes[:2]
    for top_k in (0, 39):
        with pytest.raises(ValueError, match=f"between 1 and the 38 classes of the vocabulary, got {top_k}"):
            found.classes(top_k=top_k)
