"""train_net.py and the verb behind it with the real systems: the same program, other losses, resuming, evaluation only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

import train_net
from alignzeg_d2.oracle import OracleEvaluator
from zeroshot_d2 import launch, load_config
from zeroshot_d2.cli import import_systems
from zeroshot_d2.commands import train as verb
from zeroshot_d2.demo_world import register_demo_world, register_demo_world_multilabel
from zeroshot_d2.segmentation.evaluation import ZeroShotSemSegEvaluator
from zeroshot_d2.system import System, all_systems
from zeroshot_d2.trainer import Results, Trainer

register_demo_world("small_world", seed=11, num_images=12, vocabulary="seen")
register_demo_world("small_world_val", seed=12, num_images=6)
register_demo_world_multilabel("small_world_labels", seed=12, num_images=6)


def test_train_net_is_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(verb, "main", lambda argv: given.append(list(argv)) or 0)
    assert train_net.main(["train", "--config-file", "a.yaml"]) == 0
    assert given == [["--config-file", "a.yaml"]]


def test_oracle_is_a_key() -> None:
    cfg = load_config("demo/alignzeg.yaml")
    name = cfg.DATASETS.TEST[0]
    assert type(Trainer.build_evaluator(cfg, name)) is ZeroShotSemSegEvaluator
    cfg.MODEL.ALIGNZEG.TEST.ORACLE = True
    assert type(Trainer.build_evaluator(cfg, name)) is OracleEvaluator


import_systems()


@pytest.mark.parametrize("system", all_systems(), ids=lambda system: system.name)
@pytest.mark.parametrize("kind", ["labels", "scores", "json"])
def test_every_system_saves_its_predictions(system: System, kind: str, tmp_path: Path) -> None:
    cfg = system.default_config()
    cfg.OUTPUT_DIR, cfg.TEST.SAVE_PREDICTIONS = str(tmp_path), kind
    name = {"segmentation": "small_world_val", "multilabel": "small_world_labels"}[system.task]
    evaluator = Trainer.build_evaluator(cfg, name)
    names = MetadataCatalog.get(name).class_split.names
    for record in DatasetCatalog.get(name):
        output = {"sem_seg": torch.rand(len(names), 64, 64), "scores": torch.rand(len(names))}
        evaluator.process([record], [output])
    evaluator.evaluate()
    files = {file.name for file in (tmp_path / "predictions" / name).rglob("*") if file.is_file()}
    images = [str(record["image_id"]) for record in DatasetCatalog.get(name)]
    expected = {
        ("segmentation", "labels"): {f"{image}.png" for image in images} | {"classes.txt"},
        ("segmentation", "scores"): {f"{image}.npy" for image in images} | {"classes.txt"},
        ("segmentation", "json"): {"sem_seg_predictions.json", "classes.txt"},
        ("multilabel", "labels"): {"labels.csv"},
        ("multilabel", "scores"): {"scores.npy", "images.txt", "classes.txt"},
        ("multilabel", "json"): {"predictions.json"},
    }
    assert files == expected[system.task, kind]


def test_scores_that_no_output_holds_are_refused_at_the_start() -> None:
    cfg = load_config("demo/alignzeg.yaml", ["TEST.SAVE_PREDICTIONS", "scores", "MODEL.ALIGNZEG.TEST.OUTPUT", "labels"])
    with pytest.raises(ValueError, match="needs scores: set MODEL.ALIGNZEG.TEST.OUTPUT scores"):
        Trainer.build_evaluator(cfg, "small_world_val")


def arguments(output_dir: Path, *flags: str, **options: str) -> list[str]:
    settings = {
        "OUTPUT_DIR": str(output_dir),
        "DATASETS.TRAIN": "('small_world',)",
        "DATASETS.TEST": "()",
        "DATALOADER.NUM_WORKERS": "0",
        **{key.replace("__", "."): value for key, value in options.items()},
    }
    return ["--config-file", "demo/alignzeg.yaml", *flags, *(word for pair in settings.items() for word in pair)]


# ---- resuming ----


def train(output_dir: Path, *flags: str, stop_after: int | None = None) -> list[float]:
    """Train AlignZeg with a random CLIP for four iterations, a checkpoint after each two; its losses, unsmoothed."""
    losses: list[float] = []

    class Recorder(Trainer):
        def after_step(self) -> None:
            super().after_step()
            losses.append(self.storage.history("total_loss").latest())
            if self.iter == stop_after:
                raise InterruptedError

    options = {
        "MODEL__ALIGNZEG__CLIP__PRETRAINED": "",
        "MODEL__ALIGNZEG__CLIP__TEMPLATES": "single",
        "SEED": "7",
        "SOLVER__MAX_ITER": "4",
        "SOLVER__CHECKPOINT_PERIOD": "2",
        "SOLVER__IMS_PER_BATCH": "2",
    }
    launch.run(verb.parser().parse(arguments(output_dir, *flags, **options)), Recorder)
    return losses


@pytest.mark.slow
def test_alignzeg_resumes_with_the_losses_of_an_uninterrupted_run(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    assert len(whole) == 4
    with pytest.raises(InterruptedError):
        train(tmp_path / "stopped", stop_after=2)
    assert train(tmp_path / "stopped", "--resume") == whole[2:]
    weights = [torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"] for name in ("whole", "stopped")]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


# ---- evaluation only ----


def evaluate(output_dir: Path, weights: Path, **options: str) -> dict[str, Any]:
    """The results of ``--eval-only`` on a few images."""
    given = {"MODEL__WEIGHTS": str(weights), "DATASETS__TEST": "('small_world_val',)", **options}
    results: Results = launch.run(verb.parser().parse(arguments(output_dir, "--eval-only", **given)))
    assert json.loads((output_dir / "results.json").read_text()) == results
    return results["small_world_val"]


def test_a_checkpoint_with_pbc_is_evaluated_without(alignzeg_checkpoint: Path, tmp_path: Path) -> None:
    without = evaluate(tmp_path / "without", alignzeg_checkpoint, MODEL__ALIGNZEG__PBC__POSTPROCESSOR="NoCorrection")
    off = evaluate(tmp_path / "off", alignzeg_checkpoint, MODEL__ALIGNZEG__PBC__GAMMA="1.0")
    assert without["num_images"] == off["num_images"] == 6
    for metric in ("pAcc", "mIoU_seen", "mIoU_unseen"):
        assert without[metric] == pytest.approx(off[metric], abs=0.5)  # a tie at a pixel may fall either way


def test_the_number_of_images_at_once_changes_no_result(alignzeg_checkpoint: Path, tmp_path: Path) -> None:
    one, many = (evaluate(tmp_path / count, alignzeg_checkpoint, TEST__IMS_PER_BATCH=count) for count in ("1", "4"))
    assert one["num_images"] == many["num_images"] == 6
    assert one["pAcc"] == pytest.approx(many["pAcc"], abs=0.05)


def test_the_oracle_is_evaluated_by_its_key(alignzeg_checkpoint: Path, tmp_path: Path) -> None:
    oracle = evaluate(tmp_path / "oracle", alignzeg_checkpoint, MODEL__ALIGNZEG__TEST__ORACLE="True")
    assert oracle["protocol"] == "GZS3 (oracle)"
