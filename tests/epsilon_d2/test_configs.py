"""Every config of Epsilon builds on random weights and runs forward, in evaluation and in training, without any data."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog

from epsilon_d2 import Epsilon, add_epsilon_config
from epsilon_d2 import epsilon as epsilon_module

CONFIGS = Path(__file__).parents[2] / "configs"
EPSILON = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    if CfgNode.load_yaml_with_base(str(path)).get("MODEL", {}).get("META_ARCHITECTURE") == "Epsilon"
)


def config(name: str) -> CfgNode:
    cfg = get_cfg()
    add_epsilon_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    return cfg


def random_labels(cfg: CfgNode) -> tuple[object, dict[str, str]]:
    """Label vectors of the width of GloVe's 300: those of the real vocabularies need a file that is not here."""
    return lambda prompts: torch.randn(len(prompts), 300, generator=torch.Generator().manual_seed(0)), {"sha256": ""}


@pytest.mark.parametrize("name", EPSILON)
def test_builds_and_runs(name, monkeypatch):
    monkeypatch.setattr(epsilon_module, "build_label_embeddings", random_labels)
    cfg = config(name)
    options = ["MODEL.DEVICE", "cpu", "MODEL.EPSILON.BACKBONE.PRETRAINED", ""]
    if cfg.MODEL.BACKBONE.NAME == "TimmViT":  # two of the twelve blocks, all of the width
        options += ["MODEL.EPSILON.BACKBONE.TAP", 2]
        if "ablation" in name:  # building a random ViT-B/16 takes longer than everything else here
            options += ["MODEL.EPSILON.BACKBONE.NAME", "vit_tiny_patch16_224"]
    cfg.merge_from_list(options)
    model = Epsilon(cfg)
    image = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8)
    (out,) = model.eval()([{"image": image}])
    vocabulary = MetadataCatalog.get(cfg.DATASETS.TEST[0]).class_split
    assert out["scores"].shape == (len(vocabulary),) and out["scores"].isfinite().all()
    sample = {"image": image, "positive_labels": np.array([1, 4]), "dataset_name": cfg.DATASETS.TRAIN[0]}
    losses = model.train()([sample, {**sample, "positive_labels": np.array([], dtype=int)}])
    assert set(losses) == {"loss_rank", "loss_reg"} and all(loss.isfinite() for loss in losses.values())
    assert [name for name in EPSILON if config(name).OUTPUT_DIR == cfg.OUTPUT_DIR] == [name]


@pytest.mark.parametrize("dataset", ["nus_wide", "open_images"])
def test_numbers_of_the_implementation_details(dataset):
    cfg = config(f"{dataset}/epsilon.yaml")
    solver, model = cfg.SOLVER, cfg.MODEL.EPSILON
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM) == ("ADAM", 1e-5, 4e-3, 4e-3)
    assert (solver.IMS_PER_BATCH, solver.MAX_EPOCHS, solver.STEPS_EPOCHS, solver.GAMMA) == (96, 7, [3], 0.5)
    assert (model.NUM_GROUPS, model.LOSS.LAMBDA, model.LOSS.RANK_FORM) == (8, 0.3, "paper")
    assert model.BACKBONE.NAME == "vit_base_patch16_224" and model.IMAGE_SIZE == 224
    assert tuple(model.TEST.TOP_K) == ((3, 5) if dataset == "nus_wide" else (10, 20))
    split = MetadataCatalog.get(cfg.DATASETS.TEST[0]).class_split
    assert (len(split.seen), len(split.unseen)) == ((925, 81) if dataset == "nus_wide" else (7186, 400))
    assert len(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).class_split) == len(split.seen)


@pytest.mark.parametrize("dataset", ["nus_wide", "demo"])
def test_ablations_of_table_3(dataset):
    columns = {
        "backbone_only": (False, False, 8),
        "backbone_only_m2": (False, False, 2),
        "gpa": (True, False, 8),
        "gpa_m2": (True, False, 2),
        "gfp": (False, True, 8),
        "gfp_m2": (False, True, 2),
    }
    full = config(f"{dataset}/epsilon.yaml")
    for name, column in columns.items():
        cfg = config(f"{dataset}/epsilon_ablation/{name}.yaml")
        model = cfg.MODEL.EPSILON
        assert column == (model.GPA.ENABLED, model.GFP.ENABLED, model.NUM_GROUPS)
        model.GPA.ENABLED, model.GFP.ENABLED, model.NUM_GROUPS, cfg.OUTPUT_DIR = True, True, 8, full.OUTPUT_DIR
        assert cfg == full
