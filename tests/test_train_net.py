"""train_net.py with the real system: its look-ups, and resuming with the losses of an uninterrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser

import train_net
from alignzeg_d2.oracle import OracleEvaluator
from zeroshot_d2.demo_world import register_demo_world
from zeroshot_d2.segmentation.evaluation import ZeroShotSemSegEvaluator

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
DEMO = ROOT / "configs" / "demo" / "alignzeg.yaml"
TRAINER = train_net.Trainer


def load(config_file: Path, *options: Any) -> Any:
    cfg = get_cfg()
    train_net.add_config_keys(cfg, str(config_file))
    cfg.merge_from_file(str(config_file))
    cfg.merge_from_list(list(options))
    return cfg


@pytest.mark.parametrize("config_file", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_config_finds_its_mapper_datasets_and_evaluators(config_file: Path) -> None:
    cfg = load(config_file)
    for is_train in (True, False):
        assert train_net.Trainer.build_mapper(cfg, is_train=is_train) is not None
    assert cfg.DATASETS.TRAIN and cfg.DATASETS.TEST
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert name in DatasetCatalog
        assert MetadataCatalog.get(name).evaluator_type in train_net.Trainer.evaluators


def test_oracle_is_a_key() -> None:
    cfg = load(DEMO)
    name = cfg.DATASETS.TEST[0]
    assert type(train_net.Trainer.build_evaluator(cfg, name)) is ZeroShotSemSegEvaluator
    cfg.MODEL.ALIGNZEG.TEST.ORACLE = True
    assert type(train_net.Trainer.build_evaluator(cfg, name)) is OracleEvaluator


def train(output_dir: Path, monkeypatch: pytest.MonkeyPatch, *flags: str, stop_after: int | None = None) -> list[float]:
    """Train AlignZeg with a random CLIP for four iterations, a checkpoint after each two; its losses, unsmoothed."""
    losses: list[float] = []

    class Recorder(TRAINER):
        def after_step(self) -> None:
            super().after_step()
            losses.append(self.storage.history("total_loss").latest())
            if self.iter == stop_after:
                raise InterruptedError

    monkeypatch.setattr(train_net, "Trainer", Recorder)
    options = {
        "OUTPUT_DIR": str(output_dir),
        "MODEL.ALIGNZEG.CLIP.PRETRAINED": "",
        "DATASETS.TRAIN": "('small_world',)",
        "DATASETS.TEST": "()",
        "DATALOADER.NUM_WORKERS": "0",
        "SEED": "7",
        "SOLVER.MAX_ITER": "4",
        "SOLVER.CHECKPOINT_PERIOD": "2",
        "SOLVER.IMS_PER_BATCH": "2",
    }
    arguments = ["--config-file", str(DEMO), *flags, *(word for pair in options.items() for word in pair)]
    train_net.main(default_argument_parser().parse_args(arguments))
    return losses


def test_alignzeg_resumes_with_the_losses_of_an_uninterrupted_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_demo_world("small_world", seed=11, num_images=12, vocabulary="seen")
    whole = train(tmp_path / "whole", monkeypatch)
    assert len(whole) == 4
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        train(tmp_path / "stopped", patch, stop_after=2)
    assert train(tmp_path / "stopped", monkeypatch, "--resume") == whole[2:]
    weights = [torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"] for name in ("whole", "stopped")]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
