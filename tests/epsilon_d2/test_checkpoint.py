"""Checkpoints leave out backbone and label vectors, name them, refuse others, and say which classes they are for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from comparisons import assert_close
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor

from epsilon_d2 import Epsilon, add_epsilon_config
from epsilon_d2.predictor import EpsilonPredictor
from zeroshot_d2 import config_file, load_config
from zeroshot_d2.checkpoint import Checkpointer, ModelRecord, read_record
from zeroshot_d2.commands import predict, train
from zeroshot_d2.demo_world import SPLIT, register_demo_world_multilabel, render
from zeroshot_d2.images import write_image

BACKBONE, LABELS = "MODEL.EPSILON.BACKBONE", "MODEL.EPSILON.LABEL_EMBEDDINGS"
RANDOM = (f"{BACKBONE}.PRETRAINED", "", f"{LABELS}.CLIP_PRETRAINED", "", f"{LABELS}.TEMPLATES", "single")


def photo() -> np.ndarray:
    """(64, 64, 3) BGR."""
    return np.ascontiguousarray(render(7, 0).image[:, :, ::-1])


@pytest.fixture(scope="module")
def trained(epsilon_model: Callable[..., Epsilon]) -> Epsilon:
    """A model whose learnt weights differ from those of any fresh one."""
    model = epsilon_model()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def checkpoint(trained: Epsilon, epsilon_cfg: Callable[..., CfgNode], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the trainer writes it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    Checkpointer(trained, str(folder), record=ModelRecord.for_training(epsilon_cfg(), trained)).save("model")
    return folder / "model.pth"


def test_a_checkpoint_holds_what_learns_and_a_record(trained, checkpoint):
    learnt = {name for name, p in trained.named_parameters() if p.requires_grad}
    assert set(trained.state_dict()) == learnt | {"label_mean"}
    assert set(torch.load(checkpoint, weights_only=True)) == {"model", "zeroshot_d2"}
    record = read_record(checkpoint)
    assert record.system == "Epsilon" and record.vocabulary == SPLIT
    assert set(record.trained) == set(SPLIT.only_seen().texts)
    assert set(record.frozen) == {"backbone", "label embeddings"}
    assert record.frozen["backbone"]["class"] == "ClipViT" and record.frozen["label embeddings"]["source"] == "clip"


def test_loads_back_to_the_same_scores(trained, checkpoint, epsilon_model, inputs):
    other = epsilon_model()
    expected = trained(inputs)[0]["scores"]
    assert not torch.allclose(other(inputs)[0]["scores"], expected, rtol=0.01)
    Checkpointer(other).load(str(checkpoint))
    assert_close(other(inputs)[0]["scores"], expected)


def test_another_backbone_tap_labels_or_size_is_refused(checkpoint, epsilon_model):
    with pytest.raises(ValueError, match="trained with the backbone .*'demo-world-clip'"):
        Checkpointer(epsilon_model(f"{BACKBONE}.TAP", 3)).load(str(checkpoint))
    with pytest.raises(ValueError, match="trained with the label embeddings"):
        Checkpointer(epsilon_model(f"{LABELS}.CLIP_PRETRAINED", "bundled")).load(str(checkpoint))
    with pytest.raises(ValueError, match="or has them in another shape"):
        Checkpointer(epsilon_model("MODEL.EPSILON.NUM_GROUPS", 2)).load(str(checkpoint))


# ---- Detectron2's own predictor ----


def plain_cfg(weights: Path, *options: object) -> CfgNode:
    cfg = get_cfg()
    add_epsilon_config(cfg)
    cfg.merge_from_file(str(config_file("demo/epsilon.yaml")))
    cfg.merge_from_list([*RANDOM, *options, "MODEL.WEIGHTS", str(weights)])
    return cfg


def test_detectron2s_predictor_runs_on_this_machine(trained, checkpoint):
    cfg = get_cfg()
    add_epsilon_config(cfg)
    assert cfg.MODEL.DEVICE.startswith("cuda") == torch.cuda.is_available()
    scores = DefaultPredictor(plain_cfg(checkpoint))(photo())["scores"]
    expected = trained([{"image": torch.from_numpy(photo()[:, :, ::-1].transpose(2, 0, 1).copy())}])[0]["scores"]
    assert_close(scores, expected)


def test_detectron2s_predictor_refuses_other_frozen_weights_too(checkpoint):
    with pytest.raises(ValueError, match="trained with the backbone"):
        DefaultPredictor(plain_cfg(checkpoint, f"{BACKBONE}.TAP", 3))
    with pytest.raises(ValueError, match="trained with the label embeddings"):
        DefaultPredictor(plain_cfg(checkpoint, f"{LABELS}.CLIP_PRETRAINED", "bundled"))


# ---- a data set that only the training knew ----


@pytest.fixture(scope="module")
def run_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one iteration on data sets that nobody has registered any more."""
    folder = tmp_path_factory.mktemp("elsewhere")
    register_demo_world_multilabel("elsewhere_tags_train", seed=3, num_images=2, vocabulary="seen")
    register_demo_world_multilabel("elsewhere_tags_test", seed=4, num_images=2)
    words = {
        **dict(zip(RANDOM[::2], RANDOM[1::2], strict=True)),
        "DATASETS.TRAIN": "('elsewhere_tags_train',)",
        "DATASETS.TEST": "('elsewhere_tags_test',)",
        "DATALOADER.NUM_WORKERS": "0",
        "SOLVER.IMS_PER_BATCH": "2",
        "SOLVER.MAX_EPOCHS": "1",
        "OUTPUT_DIR": str(folder),
    }
    try:
        train.main(["--config-file", "demo/epsilon.yaml", *(word for pair in words.items() for word in pair)])
    finally:
        for name in ("elsewhere_tags_train", "elsewhere_tags_test"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    return folder


def test_a_checkpoint_knows_its_classes(run_elsewhere):
    predictor = EpsilonPredictor(load_config(run_elsewhere / "config.yaml", weights=run_elsewhere / "model_final.pth"))
    assert predictor.vocabulary == SPLIT
    assert predictor.trained == frozenset(SPLIT.only_seen().texts)
    assert predictor.model.trained_classes == predictor.trained
    found = predictor(photo(), vocabulary=["plain blue tile", "dark water|dark sea", "zebra"])
    assert found.vocabulary.unseen == ("dark water", "zebra")


def test_prediction_needs_no_registration(run_elsewhere, tmp_path):
    write_image(tmp_path / "photo.png", render(7, 0).image)
    words = ["--model", str(run_elsewhere), "--input", str(tmp_path / "photo.png"), "--output", str(tmp_path / "out")]
    assert predict.main([*words, "--top-k", "38"]) == 0
    classes = json.loads((tmp_path / "out/photo.json").read_text())["classes"]
    assert {entry["name"] for entry in classes if entry["unseen"]} == set(SPLIT.unseen)
