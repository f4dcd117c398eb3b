"""Steps in pieces and in mixed precision, beside one step in float32; what is frozen, averaged, best; and when to stop."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import hooks
from toy_runs import toy_cfg, train
from toy_system import ToyEvaluator

from zeroshot_d2.best_model import KeepBest, WeightAverage, frozen_by_name
from zeroshot_d2.checkpoint import newest_whole_checkpoint, read_checkpoint
from zeroshot_d2.config import add_trainer_config
from zeroshot_d2.trainer import Trainer
from zeroshot_d2.training_step import TrainingStep, _pieces


class Line(torch.nn.Module):
    """The mean of a loss over a batch, of numbers or of as many as its images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.sizes: list[int] = []

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        self.sizes.append(len(batch))
        x = torch.stack([sample["x"] for sample in batch])
        error = (x @ self.weight - 1).square()
        return {"loss_a": error.mean(), "loss_b": 0.5 * error.mean()}


class Loader:
    images = ("a.jpg",)

    def __init__(self, batch: list[dict[str, Any]]) -> None:
        self.batch = batch

    def __iter__(self) -> Any:
        while True:
            yield self.batch


def weights_after(steps: int, number: int = 7, **options: Any) -> tuple[torch.Tensor, dict[str, float], list[int]]:
    random = torch.Generator().manual_seed(0)
    batch = [{"x": torch.randn(3, generator=random)} for _ in range(number)]
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    step = TrainingStep(model, Loader(batch), optimizer, **options)  # type: ignore[arg-type]
    step.register_hooks([hooks.IterationTimer()])
    step.train(0, steps)
    return model.weight.detach(), {k: v.latest() for k, v in step.storage.histories().items() if "loss" in k}, model.sizes


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_pieces_of_a_batch_give_its_gradient(parts: int) -> None:
    whole, losses, _ = weights_after(3)
    pieces, same_losses, sizes = weights_after(3, parts=parts)
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-6)
    assert same_losses == pytest.approx(losses, rel=1e-5)
    assert len(sizes) == 3 * parts and sum(sizes) == 21 and max(sizes) - min(sizes) <= 1


def test_every_image_is_in_one_piece() -> None:
    assert [list(range(10))] == _pieces(list(range(10)), 1)  # type: ignore[arg-type, comparison-overlap]
    for parts in range(1, 11):
        assert sum(_pieces(list(range(10)), parts), []) == list(range(10))  # type: ignore[arg-type, comparison-overlap]


def test_bfloat16_is_near_float32() -> None:
    single, _, _ = weights_after(5)
    mixed, _, _ = weights_after(5, precision=torch.bfloat16)
    assert not torch.equal(single, mixed)
    torch.testing.assert_close(mixed, single, rtol=0.05, atol=0.05)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ACCUMULATION_STEPS 5 exceeds the 4 image\(s\)"):
        Trainer(toy_cfg(tmp_path, "SOLVER.ACCUMULATION_STEPS", 5))


def test_a_training_in_pieces_is_resumed(tmp_path: Path) -> None:
    options = (
        "SOLVER.ACCUMULATION_STEPS",
        2,
        "SOLVER.EMA_DECAY",
        0.9,
        "SOLVER.AMP.ENABLED",
        True,
        "SOLVER.AMP.DTYPE",
        "bfloat16",
    )
    whole = train(tmp_path / "whole", *options)
    train(tmp_path / "cut", *options, "SOLVER.MAX_ITER", 7)
    (tmp_path / "cut" / "model_final.pth").unlink()
    resumed = train(tmp_path / "cut", *options)
    assert resumed.start_iter == 5
    first, second = (read_checkpoint(tmp_path / name / "model_average.pth")["model"] for name in ("whole", "cut"))
    assert whole.scheduler.last_epoch == resumed.scheduler.last_epoch
    assert set(first) == set(second)


# ---- frozen ----


def test_frozen_parts_stay_as_they_were(tmp_path: Path) -> None:
    trainer = Trainer(toy_cfg(tmp_path, "SOLVER.FREEZE", ["linear.weight"]))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    assert torch.equal(before["linear.weight"], after["linear.weight"])
    assert not torch.equal(before["linear.bias"], after["linear.bias"])


def test_a_name_is_a_part_and_not_the_beginning_of_another() -> None:
    model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2), "encoder_norm": torch.nn.LayerNorm(2)})
    assert len(frozen_by_name(model, ["encoder"])) == 2
    assert [name for name, value in model.named_parameters() if value.requires_grad] == [
        "encoder_norm.weight",
        "encoder_norm.bias",
    ]
    with pytest.raises(ValueError, match="SOLVER.FREEZE 'enc' names no part that is trained: there are encoder_norm"):
        frozen_by_name(model, ["enc"])
    with pytest.raises(ValueError, match="leaves nothing to train"):
        frozen_by_name(model, ["encoder_norm"])


# ---- average ----


def test_the_average_by_hand() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        model.weight.fill_(0.0)
    average.before_train()
    expected = 0.0
    for step in range(20):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.after_step()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.average["weight"].item() == pytest.approx(expected, rel=1e-5)
    with average.in_place():
        assert model.weight.item() == pytest.approx(expected, rel=1e-5)
    assert model.weight.item() == 19


def test_the_average_is_evaluated_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[torch.Tensor] = []
    test = Trainer.test

    def spy(cfg: Any, model: torch.nn.Module, *args: Any) -> Any:
        weights.append(model.state_dict()["linear.weight"].clone())
        return test(cfg, model, *args)

    monkeypatch.setattr(Trainer, "test", staticmethod(spy))
    trainer = train(tmp_path, "SOLVER.EMA_DECAY", 0.9)
    average = read_checkpoint(tmp_path / "model_average.pth")["model"]["linear.weight"]
    last = read_checkpoint(tmp_path / "model_final.pth")["model"]["linear.weight"]
    assert torch.equal(weights[-1], average) and not torch.equal(average, last)
    assert torch.equal(trainer.model.state_dict()["linear.weight"], last)


# ---- the best ----


def scores(monkeypatch: pytest.MonkeyPatch, *values: float | None) -> None:
    """Evaluations have these scores."""
    remaining = iter(values)
    monkeypatch.setattr(ToyEvaluator, "evaluate", lambda self: {"toy": {"score": next(remaining), "text": "x"}})


BEST = ("TEST.BEST_METRIC", "score", "TEST.EVAL_PERIOD", 3)


def test_the_best_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores(monkeypatch, 1.0, 3.0, None, 2.0)
    train(tmp_path, *BEST, "SOLVER.CHECKPOINT_PERIOD", 3)
    best, second, last = (read_checkpoint(tmp_path / f"model_{name}.pth") for name in ("best", "0000005", "final"))
    assert torch.equal(best["model"]["linear.weight"], second["model"]["linear.weight"])
    assert not torch.equal(best["model"]["linear.weight"], last["model"]["linear.weight"])
    assert "iteration" not in best and newest_whole_checkpoint(tmp_path) == tmp_path / "model_final.pth"


def test_patience_ends_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    scores(monkeypatch, 5.0, 4.0, 3.0, 9.0)
    with caplog.at_level(logging.INFO):
        trainer = train(tmp_path, *BEST, "TEST.PATIENCE", 2)
    assert trainer.iter == 8
    final = read_checkpoint(tmp_path / "model_final.pth")
    assert final["iteration"] == 8
    assert "was not better than 5.00 (iteration 2) in 2 evaluations" in caplog.text
    assert "Exception during training" not in caplog.text


def test_a_resumed_run_remembers_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores(monkeypatch, 5.0, 1.0, 1.0, 4.0, 4.0)
    train(tmp_path, *BEST, "SOLVER.MAX_ITER", 6)
    kept = (tmp_path / "model_best.pth").read_bytes()
    resumed = train(tmp_path, *BEST)
    (best,) = (hook for hook in resumed._hooks if isinstance(hook, KeepBest))
    assert (best.best, best.iteration) == (5.0, 2)
    assert (tmp_path / "model_best.pth").read_bytes() == kept


def test_an_unknown_number_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores(monkeypatch, 5.0)
    with pytest.raises(ValueError, match="TEST.BEST_METRIC 'hIoU' is no number of 'toy_val'; it has score"):
        train(tmp_path, "TEST.BEST_METRIC", "hIoU")


def test_the_keys_have_ranges() -> None:
    from detectron2.config import get_cfg

    from zeroshot_d2.ranges import check_ranges

    for key, value in (
        ("SOLVER.ACCUMULATION_STEPS", 0),
        ("SOLVER.EMA_DECAY", 1.0),
        ("SOLVER.AMP.DTYPE", "half"),
        ("TEST.PATIENCE", -1),
    ):
        cfg = get_cfg()
        add_trainer_config(cfg)
        cfg.merge_from_list([key, value])
        with pytest.raises(ValueError, match=key):
            check_ranges(cfg)


def test_float16_without_a_gpu_says_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        trainer = Trainer(toy_cfg(tmp_path, "SOLVER.AMP.ENABLED", True))
    assert "SOLVER.AMP.DTYPE bfloat16 runs here" in caplog.text
    assert trainer._trainer.precision is None
