"""Checkpoints leave the frozen CLIP out, name it, and refuse another one; they also say which classes they are for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from comparisons import assert_close
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from safetensors.torch import save_file

from alignzeg_d2 import AlignZeg, add_alignzeg_config
from alignzeg_d2.predictor import AlignZegPredictor
from zeroshot_d2 import config_file, load_config
from zeroshot_d2.checkpoint import Checkpointer, ModelRecord, read_record
from zeroshot_d2.clip.loader import DEMO_CLIP
from zeroshot_d2.commands import predict, train
from zeroshot_d2.demo_world import SPLIT, register_demo_world, render
from zeroshot_d2.images import write_image

IMAGES = [{"image": torch.randint(0, 256, (3, 48, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)}]
PROMPTS = ("MODEL.ALIGNZEG.CLIP.NUM_PROMPTS", 2)


def photo() -> np.ndarray:
    """(64, 64, 3) BGR."""
    return np.ascontiguousarray(render(7, 0).image[:, :, ::-1])


@pytest.fixture(scope="module")
def trained(demo_model: Callable[..., AlignZeg]) -> AlignZeg:
    """A model whose learnt weights differ from those of any fresh one."""
    torch.manual_seed(7)
    model = demo_model(*PROMPTS)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def checkpoint(trained: AlignZeg, demo_cfg: Callable[..., CfgNode], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the trainer writes it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    Checkpointer(trained, str(folder), record=ModelRecord.for_training(demo_cfg(*PROMPTS), trained)).save("model")
    return folder / "model.pth"


@pytest.fixture(scope="module")
def another_clip(random_clip, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The demo world's CLIP with one weight changed."""
    path = tmp_path_factory.mktemp("clip") / "other.safetensors"
    state = {name: value.clone().contiguous() for name, value in random_clip.state_dict().items()}
    state["visual.conv1.weight"][0, 0, 0, 0] += 1
    save_file(state, str(path))
    return str(path)


def test_a_checkpoint_holds_what_learns_and_a_record(trained, checkpoint):
    learnt = {name for name, p in trained.named_parameters() if p.requires_grad}
    assert set(trained.state_dict()) == learnt
    assert not any(name.startswith("clip_image_encoder.") and "prompts" not in name for name in learnt)
    assert set(torch.load(checkpoint, weights_only=True)) == {"model", "zeroshot_d2"}
    record = read_record(checkpoint)
    assert record.system == "AlignZeg" and record.vocabulary == SPLIT
    assert set(record.trained) == set(SPLIT.only_seen().texts)
    assert (
        record.frozen["CLIP"].keys() == {"name", "pretrained", "sha256"} and record.frozen["CLIP"]["name"] == DEMO_CLIP.name
    )


def test_loads_back_to_the_same_outputs(trained, checkpoint, demo_model):
    torch.manual_seed(8)
    other = demo_model(*PROMPTS)
    expected = trained(IMAGES)[0]["sem_seg"]
    assert not torch.allclose(other(IMAGES)[0]["sem_seg"], expected, rtol=0.01)
    Checkpointer(other).load(str(checkpoint))
    assert_close(other(IMAGES)[0]["sem_seg"], expected)
    other.load_state_dict(trained.state_dict())  # torch's own way, strictly


def test_another_clip_is_refused(checkpoint, demo_model, another_clip):
    other = demo_model(*PROMPTS, "MODEL.ALIGNZEG.CLIP.PRETRAINED", another_clip)
    with pytest.raises(ValueError, match=rf"trained with the CLIP .*{DEMO_CLIP.name}.*this model has .*other"):
        Checkpointer(other).load(str(checkpoint))


def test_equal_weights_of_another_path_are_the_same_clip(trained, checkpoint, demo_model, random_clip, tmp_path):
    path = tmp_path / "moved.safetensors"
    save_file({name: value.contiguous() for name, value in random_clip.state_dict().items()}, str(path))
    moved = demo_model(*PROMPTS, "MODEL.ALIGNZEG.CLIP.PRETRAINED", str(path))
    Checkpointer(moved).load(str(checkpoint))
    assert_close(moved(IMAGES)[0]["sem_seg"], trained(IMAGES)[0]["sem_seg"])
    assert moved.frozen_record["CLIP"]["pretrained"] == str(path)  # it goes on recording its own path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.ALIGNZEG.CLIP.NUM_PROMPTS", 3), "clip_image_encoder.prompts"),  # another shape
        (("MODEL.ALIGNZEG.IMAGE_ENCODER.DEPTH", 4), "image_encoder"),  # more layers
        (("MODEL.ALIGNZEG.PIXEL_DECODER.NAME", "TransformerPixelDecoder"), "pixel_decoder"),
    ],
)
def test_checkpoint_of_another_config_is_refused(checkpoint, demo_model, options, message):
    other = demo_model(*PROMPTS, *options)
    with pytest.raises(ValueError, match=rf"the checkpoint lacks .*{message}"):
        Checkpointer(other).load(str(checkpoint))


@pytest.mark.parametrize("checkpointer", [Checkpointer, DetectionCheckpointer])
def test_checkpoint_of_something_else_is_refused(tmp_path, demo_model, checkpointer):
    torch.save({"model": {"backbone.conv.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="the checkpoint lacks"):
        checkpointer(demo_model()).load(str(tmp_path / "other.pth"))


def test_missing_file_is_an_error(tmp_path, demo_model):
    with pytest.raises((AssertionError, FileNotFoundError), match="nothing.pth"):
        Checkpointer(demo_model()).load(str(tmp_path / "nothing.pth"))


# ---- PBC and its indicator ----


def test_a_model_trained_with_pbc_is_evaluated_without(trained, checkpoint, demo_cfg, demo_model):
    """The indicator in the checkpoint has no place in such a model; everything else has."""
    without = ("MODEL.ALIGNZEG.PBC.POSTPROCESSOR", "NoCorrection")
    predictor = AlignZegPredictor(demo_cfg(*PROMPTS, *without, "MODEL.WEIGHTS", str(checkpoint)))
    assert predictor.model.class_indicator is None
    found = predictor(photo(), scores=True, proposals=True)
    off = AlignZegPredictor(demo_cfg(*PROMPTS, "MODEL.ALIGNZEG.PBC.GAMMA", 1.0, "MODEL.WEIGHTS", str(checkpoint)))
    assert_close(found.scores, off(photo(), scores=True).scores)
    assert found.proposals["class_indicator"] is None
    with pytest.raises(ValueError, match=r"the checkpoint lacks .*class_indicator"):  # but not the other way round
        torch.save({"model": predictor.model.state_dict()}, checkpoint.with_name("without.pth"))
        Checkpointer(demo_model(*PROMPTS)).load(str(checkpoint.with_name("without.pth")))


# ---- Detectron2's own predictor, as README.md shows it ----


def readme_cfg(weights: Path, *options: object) -> CfgNode:
    cfg = get_cfg()
    add_alignzeg_config(cfg)
    cfg.merge_from_file(str(config_file("demo/alignzeg.yaml")))
    random = ["MODEL.ALIGNZEG.CLIP.PRETRAINED", "", "MODEL.ALIGNZEG.CLIP.TEMPLATES", "single"]
    cfg.merge_from_list([*random, *PROMPTS, *options, "MODEL.WEIGHTS", str(weights)])
    return cfg


def test_detectron2s_predictor_runs_on_this_machine(checkpoint, demo_cfg):
    plain = get_cfg()
    add_alignzeg_config(plain)
    assert plain.MODEL.DEVICE.startswith("cuda") == torch.cuda.is_available()
    cfg = readme_cfg(checkpoint)  # the demo's, which is for the CPU
    scores = DefaultPredictor(cfg)(photo())["sem_seg"]
    gamma = ("MODEL.ALIGNZEG.PBC.GAMMA", cfg.MODEL.ALIGNZEG.PBC.GAMMA)
    ours = AlignZegPredictor(demo_cfg(*PROMPTS, *gamma, "MODEL.WEIGHTS", str(checkpoint)))
    assert_close(scores.cpu(), ours(photo(), scores=True).scores.cpu())


def test_detectron2s_predictor_refuses_another_clip_too(checkpoint, another_clip):
    with pytest.raises(ValueError, match=rf"trained with the CLIP .*{DEMO_CLIP.name}.*this model has .*other"):
        DefaultPredictor(readme_cfg(checkpoint, "MODEL.ALIGNZEG.CLIP.PRETRAINED", another_clip))


# ---- a data set that only the training knew ----

NAMES = ["plain blue tile", "dark water|dark sea", "zebra"]


@pytest.fixture(scope="module")
def run_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one iteration on data sets that nobody has registered any more."""
    folder = tmp_path_factory.mktemp("elsewhere")
    register_demo_world("elsewhere_train", seed=3, num_images=2, vocabulary="seen")
    register_demo_world("elsewhere_val", seed=4, num_images=2)
    words = {
        "MODEL.ALIGNZEG.CLIP.PRETRAINED": "",
        "MODEL.ALIGNZEG.CLIP.TEMPLATES": "single",
        "DATASETS.TRAIN": "('elsewhere_train',)",
        "DATASETS.TEST": "('elsewhere_val',)",
        "DATALOADER.NUM_WORKERS": "0",
        "SOLVER.IMS_PER_BATCH": "2",
        "SOLVER.MAX_ITER": "1",
        "OUTPUT_DIR": str(folder),
    }
    try:
        train.main(["--config-file", "demo/alignzeg.yaml", *(word for pair in words.items() for word in pair)])
    finally:
        for name in ("elsewhere_train", "elsewhere_val"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    return folder


def test_a_checkpoint_knows_its_classes(run_elsewhere):
    predictor = AlignZegPredictor(load_config(run_elsewhere / "config.yaml", weights=run_elsewhere / "model_final.pth"))
    assert predictor.vocabulary == SPLIT
    assert predictor.trained == frozenset(SPLIT.only_seen().texts)
    assert predictor.model.trained_classes == predictor.trained
    found = predictor(photo(), vocabulary=NAMES)
    assert found.vocabulary.unseen == ("dark water", "zebra")
    assert predictor.model.seen_mask(found.vocabulary).tolist() == [True, False, False]
    assert len(predictor.colors) == len(SPLIT) and len(predictor.colors_of(found.vocabulary)) == 3


def test_prediction_needs_no_registration(run_elsewhere, tmp_path):
    write_image(tmp_path / "photo.png", render(7, 0).image)
    words = ["--model", str(run_elsewhere), "--input", str(tmp_path / "photo.png"), "--output", str(tmp_path / "out")]
    assert predict.main(words) == 0
    assert (tmp_path / "out/photo_overlay.png").is_file()
    vocabulary = json.loads((tmp_path / "out/vocabulary.json").read_text())
    assert [entry["name"] for entry in vocabulary if entry["unseen"]] == [
        name for name in SPLIT.names if name in SPLIT.unseen
    ]
