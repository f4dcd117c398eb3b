"""SIGTERM and losses that are not finite, in the trainer with the toy system."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from toy_runs import assert_same_weights, toy_cfg, train

from zeroshot_d2.checkpoint import newest_whole_checkpoint
from zeroshot_d2.stopping import check_finite
from zeroshot_d2.trainer import Trainer


class Notice(HookBase):
    """Sends this process SIGTERM in an iteration, as a scheduler does."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            os.kill(os.getpid(), signal.SIGTERM)


def stopped(folder: Path, *hooks: HookBase, **changes: object) -> Trainer:
    trainer = Trainer(toy_cfg(folder, *[word for pair in changes.items() for word in pair]))
    trainer.register_hooks(list(hooks))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit:
        trainer.train()
    assert signal.getsignal(signal.SIGTERM) is before
    assert exit.value.code == 143
    return trainer


def test_sigterm_leaves_a_checkpoint_from_which_the_run_goes_on(tmp_path, caplog):
    whole = train(tmp_path / "whole")
    stopped(tmp_path / "stopped", Notice(7))
    assert "stopped after iteration 7" in caplog.text
    found = newest_whole_checkpoint(tmp_path / "stopped")
    assert found is not None and found.name == "model_0000007.pth"
    resumed = train(tmp_path / "stopped")
    assert resumed.start_iter == 8
    assert_same_weights(whole.model, resumed.model)


def test_sigterm_ends_an_evaluation_at_once(tmp_path, monkeypatch):
    def test(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the evaluation went on")

    monkeypatch.setattr(Trainer, "test", test)
    stopped(tmp_path / "during", **{"TEST.EVAL_PERIOD": 3})
    found = newest_whole_checkpoint(tmp_path / "during")
    assert found is not None and found.name == "model_0000002.pth"
    stopped(tmp_path / "after")
    found = newest_whole_checkpoint(tmp_path / "after")
    assert found is not None and found.name in ("model_0000011.pth", "model_final.pth")


def test_sigterm_in_the_last_step_does_not_start_the_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "test", lambda *args: pytest.fail("the evaluation started"))
    stopped(tmp_path, Notice(11))


class Poison(HookBase):
    """Makes a weight NaN before an iteration."""

    def before_step(self) -> None:
        if self.trainer.iter == 8:
            self.trainer.model.linear.weight.data.fill_(float("nan"))


def test_a_loss_that_is_nan_ends_the_run_and_names_its_images(tmp_path):
    trainer = Trainer(toy_cfg(tmp_path))
    trainer.register_hooks([Poison()])
    with pytest.raises(FloatingPointError, match=r"in iteration 8 \(loss_toy nan\); the images are toy_train/\d\.jpg, "):
        trainer.train()
    found = newest_whole_checkpoint(tmp_path)
    assert found is not None and found.name == "model_0000004.pth"
    weights = torch.load(found, weights_only=True)["model"]
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_losses_are_checked_one_by_one(value):
    check_finite({"a": torch.tensor(1.0), "b": torch.tensor(0.0)}, 3, ["x.jpg"])
    with pytest.raises(FloatingPointError, match=r"iteration 3 \(a 1, b -?(nan|inf)\); the images are x.jpg, y.jpg"):
        check_finite({"a": torch.tensor(1.0), "b": torch.tensor(value)}, 3, ["x.jpg", "y.jpg"])
