"""Whether a model can learn one batch by heart: a check of a minute before a training of days."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from detectron2.config import CfgNode
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from .best_model import frozen_by_name
from .startup import check_training
from .stopping import check_finite
from .trainer import Trainer, with_seed
from .training_stream import seed_iteration

logger = logging.getLogger(__name__)

FALLS_TO = 0.5
"""The loss must fall below this share of what it was."""

Losses = Mapping[str, float]


def overfit_one_batch(cfg: CfgNode, iterations: int, trainer_class: type[Trainer] = Trainer) -> tuple[Losses, Losses]:
    """Train on the first batch of a run again and again, at SOLVER.BASE_LR throughout; nothing is written.

    Args:
        cfg: of the run; MODEL.WEIGHTS are not loaded.
        iterations: how often.
        trainer_class: builds model, optimiser and loader.

    Returns:
        the losses of the first iteration and the means over the last tenth.

    Raises:
        ValueError: as a training's start.
        FloatingPointError: a loss is not finite.
    """
    check_training(cfg)
    cfg = with_seed(cfg)
    seed_iteration(cfg.SEED, 0)
    model = trainer_class.build_model(cfg)
    frozen_by_name(model, cfg.SOLVER.FREEZE)
    model.train()
    optimizer = trainer_class.build_optimizer(cfg, model)
    loader = trainer_class.build_train_loader(cfg)
    batch = next(iter(loader))
    history: list[dict[str, float]] = []
    for iteration in tqdm(range(iterations), desc="one batch", unit="step"):
        seed_iteration(cfg.SEED, iteration)
        losses: dict[str, Tensor] = model(batch)
        check_finite(losses, iteration, loader.images)
        history.append({name: float(value.detach()) for name, value in losses.items()})
        optimizer.zero_grad()
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    last = history[-max(1, iterations // 10) :]
    return history[0], {name: sum(values[name] for values in last) / len(last) for name in history[0]}


def verdict(first: Losses, last: Losses) -> tuple[bool, str]:
    """Whether the batch was learnt, and a table that says so."""
    before, after = sum(first.values()), sum(last.values())
    rows = [[name, f"{first[name]:.4g}", f"{last[name]:.4g}"] for name in first]
    rows.append(["all", f"{before:.4g}", f"{after:.4g}"])
    table = tabulate(rows, headers=["loss", "first", "last"], tablefmt="github", disable_numparse=True)
    if after < FALLS_TO * before:
        return True, f"{table}\nthe batch is learnt: the loss fell to {100 * after / before:.0f} % of what it was"
    return False, (
        f"{table}\nthe batch is NOT learnt: the loss fell to {100 * after / before:.0f} % of what it was, not below "
        f"{100 * FALLS_TO:.0f} %. Look at images and labels (`python -m zeroshot_d2 check`), SOLVER.BASE_LR and "
        "SOLVER.FREEZE, or give more steps"
    )
