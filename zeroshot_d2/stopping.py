"""How a run ends early: at SIGTERM, a scheduler's notice, and at a loss that is not finite."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor

logger = logging.getLogger(__name__)


class Terminated(SystemExit):
    """SIGTERM came; the exit status is 143 (128 + 15), as the shell has it for a process that the signal ended."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class StopAtSignal(HookBase):
    """When SIGTERM comes, writes a checkpoint after the step that runs, and ends all processes with exit status 143.

    An evaluation that runs is given up at once. It belongs behind the hooks whose state a checkpoint holds, in a
    :class:`zeroshot_d2.trainer.Trainer`.
    """

    def __init__(self) -> None:
        self._asked = self._evaluating = False
        self._last = -1

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """In the block, which is the training with its last evaluation, SIGTERM is heard; only the main thread can do so."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _on_signal(self, number: int, frame: Any) -> None:
        self._asked = True
        if self._evaluating:
            raise Terminated

    def after_step(self) -> None:
        self._last = self.trainer.iter
        if _any_process(self._asked):
            self._end()

    def _end(self) -> None:
        if comm.is_main_process():
            self.trainer.save_checkpoint(self._last)
            logger.warning("SIGTERM: stopped after iteration %d; --resume goes on from there", self._last)
        raise Terminated

    @contextlib.contextmanager
    def around_evaluation(self) -> Iterator[None]:
        """The block is left at once when SIGTERM comes, with a checkpoint of the last iteration."""
        self._evaluating = True
        try:
            if self._asked:
                raise Terminated
            yield
        except Terminated:
            self._evaluating = False
            if self._last >= 0:
                self._end()
            raise
        finally:
            self._evaluating = False


def _any_process(asked: bool) -> bool:
    if comm.get_world_size() == 1:
        return asked
    device = "cuda" if dist.get_backend() == dist.Backend.NCCL else "cpu"
    flag = torch.tensor(int(asked), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def check_finite(losses: Mapping[str, Tensor], iteration: int, images: Sequence[str]) -> None:
    """Raise FloatingPointError where a loss of this process is NaN or infinite: it names iteration, losses and images."""
    values = {name: float(value.detach()) for name, value in losses.items()}
    if all(math.isfinite(value) for value in values.values()):
        return
    shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    raise FloatingPointError(
        f"the loss is not finite in iteration {iteration} ({shown}); the images are {', '.join(images)}. The weights of the "
        "last checkpoint are not touched by it: look at these images and labels, or lower SOLVER.BASE_LR"
    )
