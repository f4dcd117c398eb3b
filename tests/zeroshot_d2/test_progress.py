"""What a person sees of a training."""

from __future__ import annotations

import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from detectron2.utils.events import EventStorage
from toy_runs import train

from zeroshot_d2.progress import ProgressLine, WandbWriter, readable


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (8.4, "8 s"), (130, "2 min 10 s"), (3600, "1 h"), (3900, "1 h 5 min"), (183600, "2 d 3 h"), (-1, "0 s")],
)
def test_times_as_people_say_them(seconds: float, text: str) -> None:
    assert readable(seconds) == text


def test_the_line(caplog: pytest.LogCaptureFixture) -> None:
    with EventStorage(99) as storage, caplog.at_level(logging.INFO):
        storage.put_scalars(time=0.5, data_time=0.05, total_loss=3.0, loss_ce=2.0, lr=1e-3)
        ProgressLine(600, 16).write()
    line = caplog.messages[-1]
    for part in (
        "iteration 100 of 600",
        "4 min 10 s left",
        "32 images/s",
        "10 % of it waiting for data",
        "loss_ce 2",
        "lr 0.001",
    ):
        assert part in line


@pytest.mark.parametrize(("held", "shown"), [(3 * 2**30, True), (0, False)])
def test_the_line_says_what_the_card_held_where_the_training_is_on_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, held: int, shown: bool
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: held)
    with EventStorage(99), caplog.at_level(logging.INFO):
        ProgressLine(600, 16).write()
    assert ("3.0 GB at most" in caplog.messages[-1]) == shown == ("GB" in caplog.messages[-1])


def test_a_training_logs_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        train(tmp_path, "SOLVER.MAX_ITER", 20, "DATASETS.TEST", "()")
    assert any("iteration 20 of 20" in line and "images/s" in line for line in caplog.messages)


class Run:
    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = False

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


def test_weights_and_biases_gets_each_number_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, given = Run(), {}

    def init(**arguments: Any) -> Run:
        given.update(arguments)
        return run

    module = types.ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    train(tmp_path / "run", "SOLVER.WANDB_PROJECT", "toys", "SOLVER.MAX_ITER", 45)
    assert given["project"] == "toys" and given["name"] == "run" and given["config"]["SOLVER"]["MAX_ITER"] == 45
    assert run.finished
    steps = [step for step, _ in run.logged]
    assert steps == sorted(set(steps)) and all("total_loss" in values for _, values in run.logged[:-1])
    assert any("score" in name for _, values in run.logged for name in values)


def test_offline_it_writes_into_the_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(tmp_path / "run", "SOLVER.WANDB_PROJECT", "toys")
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_without_the_package_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install '.+\[wandb\]'"):
        WandbWriter("toys", str(tmp_path), {})
