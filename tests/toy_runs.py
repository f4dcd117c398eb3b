"""Trainings of the toy system in the tests' own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn
from toy_system import TOY

from zeroshot_d2.trainer import Trainer


def toy_cfg(output_dir: Path, *options: Any) -> CfgNode:
    cfg = TOY.default_config()
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.merge_from_list(list(options))
    output_dir.mkdir(exist_ok=True)
    return cfg


def train(output_dir: Path, *options: Any) -> Trainer:
    trainer = Trainer(toy_cfg(output_dir, *options))
    trainer.resume_or_load(resume=True)
    trainer.train()
    return trainer


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
