"""Finished runs of both systems as they lie on a disk, made without a training: learnt weights that no fresh model has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from zeroshot_d2.checkpoint import Checkpointer, ModelRecord
from zeroshot_d2.cli import load_config
from zeroshot_d2.storage import write_json

CLIP = {
    "AlignZeg": ("MODEL.ALIGNZEG.CLIP.PRETRAINED",),
    "Epsilon": ("MODEL.EPSILON.BACKBONE.PRETRAINED", "MODEL.EPSILON.LABEL_EMBEDDINGS.CLIP_PRETRAINED"),
}
"""The keys of a system that say which weights its CLIP has."""

TEMPLATES = {"AlignZeg": "MODEL.ALIGNZEG.CLIP.TEMPLATES", "Epsilon": "MODEL.EPSILON.LABEL_EMBEDDINGS.TEMPLATES"}

RESULTS = {
    "demo_world_val": {"protocol": "GZS3", "hIoU": 61.23456, "mIoU": None, "IoU": {"grass": 50.0}, "num_images": 12},
    "demo_world_val_unseen": {"protocol": "ZS3", "mIoU": 55.5, "num_images": 12},
}


def save_run(folder: Path, system: str, *options: Any) -> CfgNode:
    """Write config.yaml, model_final.pth, its safetensors and results.json; the config, with the weights.

    The CLIP is a random one unless ``options`` say otherwise.
    """
    random = [word for key in CLIP[system] for word in (key, "")]
    cfg = load_config(f"demo/{system.lower()}.yaml", [*random, TEMPLATES[system], "single", *options])
    cfg.OUTPUT_DIR = str(folder.absolute())
    cfg.MODEL.WEIGHTS = ""
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    Checkpointer(model, str(folder), record=ModelRecord.for_training(cfg, model)).save("model_final", iteration=3)
    write_json(folder / "results.json", RESULTS)
    (folder / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    return cfg
