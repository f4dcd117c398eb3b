"""The config keys of zero-shot segmentation: those of the trainer, and a device that is there.

The mapper reads Detectron2's own keys: ``INPUT.FORMAT``, ``MIN_SIZE_*``, ``MAX_SIZE_*``, ``CROP``, ``COLOR_AUG_SSD`` and
``RANDOM_FLIP``.
"""

from __future__ import annotations

from detectron2.config import CfgNode

from ..config import add_trainer_config


def add_segmentation_config(cfg: CfgNode) -> None:
    """Add the task's keys to ``cfg`` in place; a second call changes nothing."""
    add_trainer_config(cfg)
