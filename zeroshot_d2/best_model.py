"""Which of a training's weights are kept beside the last ones: the best, and an average over the last iterations."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from .checkpoint import BEST, Checkpointer

logger = logging.getLogger(__name__)


class KeepBest(HookBase):
    """Writes ``model_best.pth`` whenever an evaluation is the best so far, and says when to stop.

    Args:
        checkpointer: writes the file.
        dataset: whose results are compared, the first of DATASETS.TEST.
        metric: a number among them; the highest is the best.
        patience: after how many evaluations without a better one the training stops; 0: never.
    """

    def __init__(self, checkpointer: Checkpointer, dataset: str, metric: str, patience: int) -> None:
        self._checkpointer, self.dataset, self.metric, self.patience = checkpointer, dataset, metric, patience
        self.best: float | None = None
        self.iteration = -1
        self.worse = 0  # evaluations since then

    def look(self, results: Mapping[str, Mapping[str, Any]], iteration: int) -> bool:
        """Take the results of an evaluation, on the main process; whether the training should stop.

        Raises:
            ValueError: the results have no such number.
        """
        numbers = results[self.dataset]
        value = numbers.get(self.metric)
        if self.metric not in numbers or not (value is None or isinstance(value, int | float)):
            known = [key for key, number in numbers.items() if isinstance(number, int | float)]
            raise ValueError(f"TEST.BEST_METRIC {self.metric!r} is no number of {self.dataset!r}; it has {', '.join(known)}")
        if value is not None and math.isfinite(value) and (self.best is None or value > self.best):
            self.best, self.iteration, self.worse = float(value), iteration, 0
            self._checkpointer.save_weights(BEST)
            logger.info("%s %.2f is the best so far: %s.pth", self.metric, value, BEST)
            return False
        self.worse += 1
        if self.patience and self.worse >= self.patience:
            logger.info(
                "%s was not better than %.2f (iteration %d) in %d evaluations: the training stops (TEST.PATIENCE)",
                *(self.metric, -math.inf if self.best is None else self.best, self.iteration, self.worse),
            )
            return True
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "iteration": self.iteration, "worse": self.worse}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.iteration, self.worse = state["best"], state["iteration"], state["worse"]


class WeightAverage(HookBase):
    """An exponential moving average of the trained weights, with which the model is evaluated.

    After iteration t the average is d * average + (1 - d) * weights, with d the decay, or (1 + t) / (10 + t) where that is
    less, so that a short training is not an average of its start.

    Args:
        model: its trained parameters are averaged; buffers are constants.
        decay: in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._trained = {
            name.removeprefix("module."): value for name, value in model.named_parameters() if value.requires_grad
        }
        self.average = {name: value.detach().clone() for name, value in self._trained.items()}
        self._steps = 0

    @torch.no_grad()
    def before_train(self) -> None:
        if self._steps == 0:  # the weights may have been loaded since
            for name, value in self._trained.items():
                self.average[name].copy_(value)

    @torch.no_grad()
    def after_step(self) -> None:
        decay = min(self.decay, (1 + self._steps) / (10 + self._steps))
        self._steps += 1
        for name, value in self._trained.items():
            self.average[name].lerp_(value.detach(), 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average inside the block, and its own weights behind it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, value in self._trained.items():
            own = value.detach().clone()
            value.copy_(self.average[name])
            self.average[name].copy_(own)

    def state_dict(self) -> dict[str, Any]:
        return {"average": dict(self.average), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state["average"].items():
            self.average[name].copy_(value)
        self._steps = state["steps"]


def should_stop(stop: bool) -> bool:
    """What the main process decided, on all processes."""
    return bool(comm.all_gather(stop)[0])


def frozen_by_name(model: nn.Module, names: tuple[str, ...] | list[str]) -> list[Tensor]:
    """Freeze the parameters whose names begin with one of ``names``; "pixel_decoder" is pixel_decoder.norm.weight too.

    Returns:
        the parameters.

    Raises:
        ValueError: a name fits none that is trained, or nothing is left to train.
    """
    frozen: list[Tensor] = []
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for start in names:
        fitting = [value for name, value in trained.items() if name == start or name.startswith(f"{start}.")]
        if not fitting:
            parts = sorted({name.partition(".")[0] for name in trained})
            raise ValueError(f"SOLVER.FREEZE {start!r} names no part that is trained: there are {', '.join(parts)}")
        frozen += fitting
    for value in frozen:
        value.requires_grad_(False)
    if names and not any(value.requires_grad for value in trained.values()):
        raise ValueError(f"SOLVER.FREEZE {list(names)} leaves nothing to train: name fewer parts")
    return frozen
