"""What a person sees of a training while it runs: a line of the log, and a page of Weights & Biases."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage

logger = logging.getLogger(__name__)

_WINDOW = 20  # iterations over which losses and times are taken together


def readable(seconds: float) -> str:
    """A time as people say it: "2 d 3 h", "1 h 5 min", "2 min 10 s", "8 s"."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


class ProgressLine(EventWriter):
    """Logs how far a training is, how long it will take, how fast it runs, and its losses.

    Args:
        max_iter: iterations of the whole training.
        batch_size: images of an iteration, all processes together.
    """

    def __init__(self, max_iter: int, batch_size: int) -> None:
        self._max_iter, self._batch_size = max_iter, batch_size

    def write(self) -> None:
        storage: EventStorage = get_event_storage()
        done = storage.iter + 1
        if done > self._max_iter:
            return  # called once more behind the last iteration
        histories = storage.histories()
        parts = [f"iteration {done} of {self._max_iter}"]
        if "time" in histories:  # not in the first iterations, which do not count
            seconds = histories["time"].median(1000)
            left = seconds * (self._max_iter - done)
            storage.put_scalar("eta_seconds", left, smoothing_hint=False)
            storage.put_scalar("images_per_second", self._batch_size / seconds, smoothing_hint=False)
            parts.append(f"{readable(left)} left, {self._batch_size / seconds:.3g} images/s")
            if "data_time" in histories:
                waiting = histories["data_time"].avg(min(_WINDOW, done)) / seconds
                parts.append(f"{100 * min(1.0, waiting):.0f} % of it waiting for data")
        losses = {name: history.median(_WINDOW) for name, history in histories.items() if "loss" in name}
        parts.append("  ".join(f"{name} {value:.4g}" for name, value in losses.items()))
        if "lr" in histories:
            parts.append(f"lr {histories['lr'].latest():.3g}")
        held = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        if held:  # not in a training on the CPU
            parts.append(f"{held / 2**30:.1f} GB at most")
        logger.info("%s", "; ".join(part for part in parts if part))


class WandbWriter(EventWriter):
    """Sends what the event storage has to Weights & Biases; ``WANDB_MODE=offline`` keeps it in OUTPUT_DIR.

    Args:
        project: the project's name.
        folder: OUTPUT_DIR.
        config: settings that the page shows.

    Raises:
        ModuleNotFoundError: the package wandb is not installed.
    """

    def __init__(self, project: str, folder: str, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "SOLVER.WANDB_PROJECT needs the package wandb: pip install 'alignzeg-epsilon-d2[wandb]', or set it to ''"
            ) from error
        self._run: Any = wandb.init(project=project, dir=folder, name=Path(folder).name, config=config, resume="allow")
        self._last = -1

    def write(self) -> None:
        storage = get_event_storage()
        newest: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in storage.latest().items():
            if iteration > self._last:
                newest.setdefault(iteration, {})[name] = value
        for iteration in sorted(newest):
            self._run.log(newest[iteration], step=iteration)
            self._last = iteration

    def close(self) -> None:
        self._run.finish()
