"""The config keys of the trainer, shared by all systems. Detectron2's own keys keep their meaning."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode

from .images import MAX_PIXELS


def add_trainer_config(cfg: CfgNode) -> None:
    """Add the trainer's keys to ``cfg`` in place. Every task calls it; a second call changes nothing."""
    if "OPTIMIZER" in cfg.SOLVER:
        return

    # Detectron2 has "cuda" whatever the machine.
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

    # ---- optimiser ----
    # "ADAMW", "ADAM" or "SGD" (SOLVER.MOMENTUM and SOLVER.NESTEROV count for SGD only).
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Weight decay of nn.Embedding modules and of the parameters named below; SOLVER.WEIGHT_DECAY_NORM (0) is that of
    # normalisation layers, SOLVER.WEIGHT_DECAY that of everything else.
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    # Last components of parameter names: "pos_embed" covers encoder.pos_embed, not encoder.pos_embed_mlp.weight.
    cfg.SOLVER.WEIGHT_DECAY_EMBED_NAMES = ["pos_embed", "positional_embedding", "query_embed", "cls_token"]
    # SOLVER.CLIP_GRADIENTS.CLIP_TYPE also takes "full_model": the norm over all parameters ("norm": one for each).

    # ---- schedule ----
    # SOLVER.LR_SCHEDULER_NAME also takes "WarmupPolyLR": BASE_LR * (1 - iteration / MAX_ITER) ** POLY_LR_POWER, but not
    # less than BASE_LR * POLY_LR_CONSTANT_ENDING.
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0
    # Length of the training in epochs of DATASETS.TRAIN; 0: SOLVER.MAX_ITER iterations count instead.
    cfg.SOLVER.MAX_EPOCHS = 0
    # With MAX_EPOCHS: after how many epochs the rate is multiplied by SOLVER.GAMMA (replaces SOLVER.STEPS).
    cfg.SOLVER.STEPS_EPOCHS = []

    # ---- data ----
    # False: an image or label that cannot be read ends the run with an error that names the file.
    # True: training replaces it by another image, counts it and logs its name. Evaluation never skips an image.
    cfg.INPUT.SKIP_UNREADABLE = False
    # Files with more pixels (width times height) are refused.
    cfg.INPUT.MAX_PIXELS = MAX_PIXELS
    # Batches of similar aspect ratio would depend on the number of processes, so the trainer refuses True.
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    # Images per process and step of the evaluation.
    cfg.TEST.IMS_PER_BATCH = 1
