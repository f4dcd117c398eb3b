"""What a resumed run may change, in the trainer with the toy system."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import toy_cfg

from zeroshot_d2 import ClassSplit
from zeroshot_d2.resume import RunState, check_resumed
from zeroshot_d2.trainer import Trainer

CONFIG = "SEED: 3\nSOLVER:\n  BASE_LR: 0.1\n  MAX_ITER: 10\nMODEL:\n  TOY:\n    TEST:\n      K: 1\n"


def begin(folder: Path, *options: Any, resume: bool = False) -> None:
    """A run of six iterations."""
    trainer = Trainer(toy_cfg(folder, "SOLVER.MAX_ITER", 6, *options))
    trainer.resume_or_load(resume=resume)
    trainer.train()


def resumed(folder: Path, *options: Any, force: bool = False) -> Trainer:
    trainer = Trainer(toy_cfg(folder, *options))
    trainer.resume_or_load(resume=True, force=force)
    return trainer


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (("SEED", 4), "SEED was 3, is 4"),
        (("SOLVER.IMS_PER_BATCH", 2), "SOLVER.IMS_PER_BATCH was 4, is 2"),
        (("SOLVER.BASE_LR", 0.5), "SOLVER.BASE_LR was 0.05, is 0.5"),
        (("SOLVER.OPTIMIZER", "SGD"), "SOLVER.OPTIMIZER was 'ADAMW', is 'SGD'"),
        (("DATASETS.TRAIN", ("toy_val",)), r"DATASETS.TRAIN was \['toy_train'\], is \['toy_val'\]"),
    ],
)
def test_another_course_is_refused_and_nothing_is_written(tmp_path, options, shown):
    begin(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=rf"{shown}.*--force-resume"):
        resumed(tmp_path, *options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_harmless_settings_are_said(tmp_path, caplog):
    begin(tmp_path)
    with caplog.at_level(logging.INFO, logger="zeroshot_d2"):
        trainer = resumed(tmp_path, "SOLVER.MAX_ITER", 12, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 5)
    assert trainer.start_iter == 6
    assert "TEST.EVAL_PERIOD was 0, is 5" in caplog.text and "SOLVER.MAX_ITER was 6, is 12" in caplog.text


def test_by_force_the_new_rates_count(tmp_path, caplog):
    begin(tmp_path, "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", ())
    options = ("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", (), "SOLVER.BASE_LR", 0.5)
    trainer = resumed(tmp_path, *options, "SOLVER.WEIGHT_DECAY", 0.25, force=True)
    assert "resumed by force" in caplog.text
    group = trainer.optimizer.param_groups[0]
    assert group["lr"] == 0.5 and group["weight_decay"] == 0.25
    assert trainer.optimizer.state  # the moments go on
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] == 0.5


def test_by_force_another_optimiser_starts_anew(tmp_path, caplog):
    begin(tmp_path)
    trainer = resumed(tmp_path, "SOLVER.OPTIMIZER", "SGD", "SOLVER.MAX_ITER", 12, force=True)
    assert "its state starts anew" in caplog.text
    trainer.train()
    assert isinstance(trainer.optimizer, torch.optim.SGD) and trainer.iter == 12


def test_keys_that_one_side_lacks_do_not_count():
    saved = RunState(CONFIG)
    assert not check_resumed(saved, RunState(CONFIG + "NEW: 1\n"))
    assert not check_resumed(RunState(CONFIG + "OLD: 1\n"), saved)
    assert not check_resumed(saved, RunState(CONFIG.replace("K: 1", "K: 5")))  # how a system tests is harmless


def test_other_classes_of_a_training_set_are_refused():
    cats = RunState(CONFIG, {"pets": ClassSplit(["cat", "dog"])})
    assert not check_resumed(cats, RunState(CONFIG, {"pets": ClassSplit(["cat", "dog"])}))
    for names, shown in ((["cat", "dog", "cow"], "such as 'cow'"), (["dog", "cat"], "in order, prompts or unseen names")):
        with pytest.raises(ValueError, match=f"the classes of 'pets' differ \\({shown}"):
            check_resumed(cats, RunState(CONFIG, {"pets": ClassSplit(names)}))


def test_the_state_goes_through_a_checkpoint():
    state = RunState(CONFIG, {"pets": ClassSplit(["cat", "dog"], unseen=["dog"])})
    assert RunState.from_dict(state.to_dict()) == state
    assert state.settings == {"SEED": 3, "SOLVER.BASE_LR": 0.1, "SOLVER.MAX_ITER": 10, "MODEL.TOY.TEST.K": 1}


def test_a_run_killed_before_its_final_checkpoint_gets_one(tmp_path):
    """The last periodic checkpoint is written just before the final one."""
    options = ("SOLVER.CHECKPOINT_PERIOD", 3)
    begin(tmp_path, *options)
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    begin(tmp_path, *options, resume=True)
    again = torch.load(tmp_path / "model_final.pth", weights_only=True)
    torch.testing.assert_close(again["model"], final["model"], rtol=0, atol=0)
    assert again["iteration"] == final["iteration"] == 5
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
