"""The config keys of zero-shot segmentation, shared by all its systems."""

from __future__ import annotations

from detectron2.config import CfgNode

from ..config import add_trainer_config
from ..ranges import choice, declare, each, whole


def add_segmentation_config(cfg: CfgNode) -> None:
    """Add the task's keys to ``cfg`` in place; a second call changes nothing."""
    add_trainer_config(cfg)
    if "COLOR_AUG_SSD" in cfg.INPUT:
        return
    # The mapper also reads Detectron2's INPUT.FORMAT, MIN_SIZE_*, MAX_SIZE_*, CROP (absolute sizes) and RANDOM_FLIP.
    # Random brightness, contrast, saturation and hue in training, as in SSD.
    cfg.INPUT.COLOR_AUG_SSD = False


declare(
    "INPUT",
    {
        "MIN_SIZE_TRAIN": each(whole(1), least=1),
        "MIN_SIZE_TRAIN_SAMPLING": choice("choice", "range"),
        "MAX_SIZE_TRAIN": whole(1),
        "MIN_SIZE_TEST": whole(0),  # 0: photos as they are
        "MAX_SIZE_TEST": whole(1),
    },
)
