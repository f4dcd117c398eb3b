"""The trainer in one process, with the toy system: resuming, evaluation, optimiser, schedule, refusals."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from timm.optim import RMSpropTF
from torch import nn
from toy_runs import assert_same_weights, toy_cfg, train
from toy_system import NUM_TRAIN, NUM_VAL, ToyEvaluator

from zeroshot_d2.config import add_trainer_config
from zeroshot_d2.solver import build_lr_scheduler, build_optimizer, epochs_to_iterations, parameter_groups
from zeroshot_d2.trainer import Trainer, distribute, with_seed


def losses(output_dir: Path, rank: int = 0) -> dict[int, float]:
    """Iteration -> loss as process ``rank`` wrote it; where an iteration was run twice, the later one."""
    lines = (output_dir / f"losses_{rank}.txt").read_text().splitlines()
    return {int(iteration): float(loss) for iteration, loss in map(str.split, lines)}


class Interrupt(HookBase):
    def after_step(self) -> None:
        if self.trainer.iter == 7:
            raise InterruptedError


# ---- training ----


def test_the_seed_decides_the_run(tmp_path: Path) -> None:
    first, again, other = tmp_path / "first", tmp_path / "again", tmp_path / "other"
    assert_same_weights(train(first).model, train(again).model)
    assert losses(first) == losses(again)
    train(other, "SEED", 4)
    assert losses(first) != losses(other)
    assert sorted(losses(first)) == list(range(12))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(tmp_path: Path, num_workers: int) -> None:
    whole = train(tmp_path / "whole")
    options = ("DATALOADER.NUM_WORKERS", num_workers)
    stopped = Trainer(toy_cfg(tmp_path / "stopped", *options))
    stopped.register_hooks([Interrupt()])
    with pytest.raises(InterruptedError):
        stopped.train()
    resumed = train(tmp_path / "stopped", *options)
    assert resumed.start_iter == 5  # the checkpoint after iteration 4, since the run stopped after iteration 7
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert_same_weights(whole.model, resumed.model)


def test_evaluation_during_training_changes_nothing(tmp_path: Path) -> None:
    assert_same_weights(train(tmp_path / "a").model, train(tmp_path / "b", "TEST.EVAL_PERIOD", 3).model)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


@pytest.mark.parametrize("failing", [5, 12])
def test_nothing_is_evaluated_after_a_step_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Also not where it was the last one: other processes, which may be elsewhere, would be waited for."""
    trainer = Trainer(toy_cfg(tmp_path))
    trainer.resume_or_load(resume=False)
    evaluations: list[int] = []
    monkeypatch.setattr(Trainer, "test", lambda *args: evaluations.append(1) or {})

    def full(name: str, **kwargs: Any) -> None:
        if trainer.iter + 1 == failing:
            raise OSError("no space left")

    monkeypatch.setattr(trainer.checkpointer, "save", full)
    with pytest.raises(OSError, match="no space left"):
        trainer.train()
    assert not evaluations


def test_a_run_without_a_seed_draws_one(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path, "SEED", -1)
    seeds = {with_seed(cfg).SEED for _ in range(5)}
    assert len(seeds) == 5 and min(seeds) >= 0
    assert cfg.SEED == -1
    trainer = Trainer(cfg)
    assert trainer.cfg.SEED >= 0


def test_a_program_draws_what_it_would_have_drawn_without_the_training(tmp_path: Path) -> None:
    """A random search whose trials are trainings would else repeat itself from the second trial on."""

    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), torch.rand(1).item()  # noqa: NPY002

    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    expected = [drawn() for _ in range(4)]
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    found = [drawn()]
    for number in range(3):
        trainer = Trainer(toy_cfg(tmp_path / str(number), "SOLVER.MAX_ITER", 2))
        trainer.resume_or_load(resume=False)
        trainer.train()
        found.append(drawn())
    assert found == expected


def test_epochs(tmp_path: Path) -> None:
    trainer = train(tmp_path, "SOLVER.MAX_EPOCHS", 3)
    assert len(losses(tmp_path)) == 8  # 3 epochs of 10 images in batches of 4, rounded up
    assert trainer.max_iter == 8
    cfg = toy_cfg(tmp_path, "SOLVER.MAX_EPOCHS", 4, "SOLVER.STEPS_EPOCHS", [2, 3])
    cfg.freeze()
    in_iterations = epochs_to_iterations(cfg, NUM_TRAIN)
    assert in_iterations.SOLVER.MAX_ITER == 10
    assert in_iterations.SOLVER.STEPS == (5, 8)
    assert in_iterations.is_frozen()
    with pytest.raises(ValueError, match="MAX_EPOCHS -1"):
        epochs_to_iterations(toy_cfg(tmp_path, "SOLVER.MAX_EPOCHS", -1), NUM_TRAIN)


@pytest.mark.parametrize(("num_images", "steps"), [(1, ()), (2, (1,)), (4, (2, 3)), (8, (4, 6)), (20, (10, 15))])
def test_steps_of_tiny_sets_are_distinct_and_below_the_end(num_images, steps, caplog):
    """Four epochs, steps after the second and the third, four images at once."""
    cfg = solver_cfg("SOLVER.MAX_EPOCHS", 4, "SOLVER.STEPS_EPOCHS", [2, 3], "SOLVER.IMS_PER_BATCH", 4)
    tiny = epochs_to_iterations(cfg, num_images)
    assert num_images == tiny.SOLVER.MAX_ITER and steps == tiny.SOLVER.STEPS
    assert ("too few" in caplog.text) == (len(steps) < 2)
    build_lr_scheduler(tiny, build_optimizer(tiny, nn.Linear(1, 1)))


def test_mixed_precision_is_off_on_the_cpu_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="zeroshot_d2"):
        Trainer(toy_cfg(tmp_path, "SOLVER.AMP.ENABLED", True))
    assert "float16 is for CUDA devices" in caplog.text


def test_unreadable_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"cannot read toy_broken/[27]\.jpg"):
        train(tmp_path / "strict", "DATASETS.TRAIN", ("toy_broken",))
    options = ("DATASETS.TRAIN", ("toy_broken",), "INPUT.SKIP_UNREADABLE", True)
    with caplog.at_level(logging.WARNING):
        trainer = train(tmp_path / "skipping", *options)
    assert set(trainer.data_loader.skipped) == {"toy_broken/2.jpg", "toy_broken/7.jpg"}
    assert f"{sum(trainer.data_loader.skipped.values())} samples replaced 2 unreadable files" in caplog.text


# ---- evaluation ----


@pytest.mark.parametrize("ims_per_batch", [1, 2, 5])
def test_results_do_not_depend_on_the_batch_size(tmp_path: Path, ims_per_batch: int) -> None:
    cfg = toy_cfg(tmp_path, "TEST.IMS_PER_BATCH", ims_per_batch)
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    results = Trainer.test(cfg, model)
    with torch.no_grad():
        expected = sum(model.linear(torch.linspace(0, 1, 4) + 0.1 * image).item() for image in range(NUM_VAL))
    assert results["toy_val"]["images"] == list(range(NUM_VAL))
    assert results["toy_val"]["score"] == pytest.approx(expected, rel=1e-6)
    assert json.loads((tmp_path / "results.json").read_text()) == results


def test_several_test_sets(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path, "DATASETS.TEST", ("toy_val", "toy_train"))
    results = Trainer.test(cfg, Trainer.build_model(cfg))
    assert {name: len(metrics["images"]) for name, metrics in results.items()} == {"toy_val": 5, "toy_train": 10}
    assert json.loads((tmp_path / "results.json").read_text()) == results


def test_training_ends_with_results_and_their_numbers_in_the_event_storage(tmp_path: Path) -> None:
    trainer = train(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["toy_val"]["protocol"] == "ZS3" and results["toy_val"]["absent"] is None
    assert trainer.storage.latest()["toy_val/score"][0] == pytest.approx(results["toy_val"]["score"])
    assert "toy_val/protocol" not in trainer.storage.latest()


def test_evaluation_skips_no_image(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path, "DATASETS.TEST", ("toy_broken",), "INPUT.SKIP_UNREADABLE", True)
    with pytest.raises(ValueError, match=r"toy_broken/2\.jpg: evaluation skips no image"):
        Trainer.test(cfg, Trainer.build_model(cfg))


def test_evaluators_given_by_the_caller(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path)
    evaluator = ToyEvaluator(cfg, "toy_val")
    Trainer.test(cfg, Trainer.build_model(cfg), evaluators=evaluator)
    assert len(evaluator.seen) == NUM_VAL
    with pytest.raises(ValueError, match=r"2 evaluator\(s\)"):
        Trainer.test(cfg, Trainer.build_model(cfg), evaluators=[evaluator, evaluator])


# ---- refusals ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("DATASETS.TRAIN", ("toy_trian",)), r"DATASETS.TRAIN: no data set 'toy_trian' is registered"),
        (("MODEL.META_ARCHITECTURE", "Tyo"), "Tyo"),
        (("DATALOADER.ASPECT_RATIO_GROUPING", True), "ASPECT_RATIO_GROUPING True"),
        (("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"), "RepeatFactorTrainingSampler"),
        (("SOLVER.OPTIMIZER", "ADAMX"), "SOLVER.OPTIMIZER must be one of 'ADAMW', .*, got 'ADAMX'"),
        (("SOLVER.IMS_PER_BATCH", 0), "IMS_PER_BATCH must be a whole number from 1, got 0"),
    ],
)
def test_bad_options(tmp_path: Path, options: tuple[Any, ...], message: str) -> None:
    with pytest.raises((ValueError, KeyError), match=message):
        Trainer(toy_cfg(tmp_path, *options))


def test_unknown_test_sets_and_evaluators(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path, "DATASETS.TEST", ("toy_vla",))
    model = Trainer.build_model(cfg)
    with pytest.raises(ValueError, match=r"DATASETS.TEST: no data set 'toy_vla' is registered"):
        Trainer.test(cfg, model)
    with pytest.raises(ValueError, match=r"DATASETS.TEST is empty"):
        Trainer.test(toy_cfg(tmp_path, "DATASETS.TEST", ()), model)
    DatasetCatalog.register("toy_without_evaluator", lambda: [{"image_id": 0}])
    with pytest.raises(
        ValueError, match=r"DATASETS.TEST: the data set 'toy_without_evaluator' is of type None, Toy is for multilabel"
    ):
        Trainer.test(toy_cfg(tmp_path, "DATASETS.TEST", ("toy_without_evaluator",)), model)


def test_a_single_process_is_not_wrapped() -> None:
    model = nn.Linear(2, 2)
    assert distribute(model) is model


# ---- solver ----


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.queries = nn.Embedding(2, 3)
        self.pos_embed = nn.Parameter(torch.zeros(3))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def solver_cfg(*options: Any) -> CfgNode:
    cfg = get_cfg()
    add_trainer_config(cfg)
    cfg.merge_from_list(["SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.WARMUP_ITERS", 0, *options])
    return cfg


def test_weight_decay_of_each_parameter() -> None:
    net = Net()
    options = ("SOLVER.WEIGHT_DECAY_NORM", 0.2, "SOLVER.WEIGHT_DECAY_EMBED", 0.3)
    groups = parameter_groups(solver_cfg(*options), net)
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    names = {name: decay.get(id(parameter)) for name, parameter in net.named_parameters()}
    assert names == {
        "pos_embed": 0.3,
        "linear.weight": 0.1,
        "linear.bias": 0.1,
        "norm.weight": 0.2,
        "norm.bias": 0.2,
        "queries.weight": 0.3,
        "frozen.weight": None,
        "frozen.bias": None,
    }
    assert sum(len(group["params"]) for group in groups) == 6


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ADAMW", torch.optim.AdamW), ("adam", torch.optim.Adam), ("SGD", torch.optim.SGD), ("RMSPROP", RMSpropTF)],
)
def test_optimizers(name: str, expected: type) -> None:
    optimizer = build_optimizer(solver_cfg("SOLVER.OPTIMIZER", name), Net())
    assert type(optimizer) is expected
    assert optimizer.param_groups[0]["lr"] == 0.001


def test_rmsprop_is_tensorflows() -> None:
    """A first step of gradient 2: the mean square starts at 1, and RMSPROP_EPS is below the root."""
    model = nn.Linear(1, 1, bias=False)
    options = ("SOLVER.RMSPROP_DECAY", 0.9, "SOLVER.RMSPROP_EPS", 0.5, "SOLVER.WEIGHT_DECAY", 0.0, "SOLVER.BASE_LR", 0.01)
    optimizer = build_optimizer(solver_cfg("SOLVER.OPTIMIZER", "RMSPROP", *options), model)
    before = model.weight.item()
    model.weight.grad = torch.tensor([[2.0]])
    optimizer.step()
    assert before - model.weight.item() == pytest.approx(0.01 * 2 / (0.9 * 1 + 0.1 * 4 + 0.5) ** 0.5, rel=1e-4)


def test_a_model_without_parameters_to_train() -> None:
    with pytest.raises(ValueError, match="Linear has no parameter"):
        build_optimizer(solver_cfg(), nn.Linear(2, 2).requires_grad_(False))


@pytest.mark.parametrize(("clip_type", "expected"), [("full_model", 0.01), ("norm", 0.01 * 2**0.5)])
def test_gradient_clipping(clip_type: str, expected: float) -> None:
    """By the norm over all parameters, or by that of each of the two."""
    options = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip_type)
    cfg = solver_cfg(*options, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.01, "SOLVER.OPTIMIZER", "SGD")
    model = nn.Linear(3, 3)
    optimizer = build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 5.0)
    optimizer.step()
    norms = torch.stack([parameter.grad.norm() for parameter in model.parameters()])
    torch.testing.assert_close(norms.norm(), torch.tensor(expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize("ending", [0.0, 0.2])
def test_poly_schedule(ending: float) -> None:
    cfg = solver_cfg("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.MAX_ITER", 20, "SOLVER.BASE_LR", 0.5)
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = ending
    optimizer = build_optimizer(cfg, nn.Linear(1, 1))
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.5 * max((1 - i / 20) ** 0.9, ending) for i in range(20)])
    assert optimizer.param_groups[0]["lr"] == 0.5 * ending


def test_poly_schedule_can_be_made_longer_when_resumed() -> None:
    options = ("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.BASE_LR", 0.5)

    def build(max_iter: int) -> torch.optim.lr_scheduler.LRScheduler:
        cfg = solver_cfg(*options, "SOLVER.MAX_ITER", max_iter)
        return build_lr_scheduler(cfg, build_optimizer(cfg, nn.Linear(1, 1)))

    short, long = build(10), build(20)
    for _ in range(5):
        short.optimizer.step()
        short.step()
    long.load_state_dict(short.state_dict())
    long.optimizer.step()
    long.step()
    assert long.get_last_lr()[0] == pytest.approx(0.5 * (1 - 6 / 20) ** 0.9)


def test_other_schedules_are_detectron2s() -> None:
    cfg = solver_cfg("SOLVER.MAX_ITER", 4, "SOLVER.STEPS", (2,), "SOLVER.GAMMA", 0.5, "SOLVER.BASE_LR", 1.0)
    optimizer = build_optimizer(cfg, nn.Linear(1, 1))
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1.0, 1.0, 0.5, 0.5])


def test_trainer_config_can_be_added_twice() -> None:
    cfg = solver_cfg("SOLVER.OPTIMIZER", "SGD")
    add_trainer_config(cfg)
    assert cfg.SOLVER.OPTIMIZER == "SGD"
