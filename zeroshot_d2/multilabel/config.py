"""The config keys of multi-label zero-shot classification, shared by all its systems."""

from __future__ import annotations

from detectron2.config import CfgNode

from ..config import add_trainer_config
from ..ranges import declare, each, number, whole


def add_multilabel_config(cfg: CfgNode) -> None:
    """Add the task's keys to ``cfg`` in place; a second call changes nothing."""
    add_trainer_config(cfg)
    if "TOP_K" in cfg.TEST:
        return

    # ---- input: the mapper also reads Detectron2's INPUT.FORMAT and INPUT.RANDOM_FLIP ----
    cfg.INPUT.IMAGE_SIZE = 224  # side of the square that the model sees
    # Share of the image's area that a training crop keeps; (1.0, 1.0): no crop.
    cfg.INPUT.CROP_SCALE = (0.7, 1.0)

    # ---- evaluation ----
    cfg.TEST.TOP_K = (3, 5)  # K of P, R and F1; (10, 20) on Open Images


declare(
    "",
    {
        "INPUT.IMAGE_SIZE": whole(1),
        "INPUT.CROP_SCALE": each(number(above=0, most=1), count=2),
        "TEST.TOP_K": each(whole(1), least=1, distinct=True),
    },
)
