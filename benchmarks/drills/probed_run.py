"""``python -m benchmarks.drills.probed_run`` trains as ``python -m zeroshot_d2 train`` does, and is watched by the drills.

The main process writes the time and the total loss of each iteration to ``OUTPUT_DIR/steps.txt``. The environment variable
``DRILL_FAULT``, "error RANK ITERATION" or "kill RANK ITERATION", lets a process fail there, once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm

from zeroshot_d2.commands.train import parser
from zeroshot_d2.launch import launch, run
from zeroshot_d2.trainer import Trainer

STEPS, FAULT = "steps.txt", "fault.txt"


class Probe(HookBase):
    """Writes down each step."""

    def after_step(self) -> None:
        if comm.is_main_process():
            loss = self.trainer.storage.history("total_loss").latest()
            with Path(self.trainer.cfg.OUTPUT_DIR, STEPS).open("a") as file:
                file.write(f"{self.trainer.iter} {time.time()!r} {loss!r}\n")


class Fault(HookBase):
    """Fails before a step of one process, unless a file says that it has failed already."""

    def __init__(self, kind: str, rank: int, iteration: int) -> None:
        self._kind, self._rank, self._iteration = kind, rank, iteration

    def before_step(self) -> None:
        done = Path(self.trainer.cfg.OUTPUT_DIR, FAULT)
        if comm.get_rank() != self._rank or self.trainer.iter != self._iteration or done.exists():
            return
        done.write_text(f"{time.time()!r}\n")
        if self._kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError(f"the drill's fault in process {self._rank}, iteration {self._iteration}")


class ProbedTrainer(Trainer):
    """The trainer with these hooks."""

    def build_hooks(self) -> list[HookBase]:
        added: list[HookBase] = [Probe()]
        if "DRILL_FAULT" in os.environ:
            kind, rank, iteration = os.environ["DRILL_FAULT"].split()
            added.append(Fault(kind, int(rank), int(iteration)))
        return [*super().build_hooks(), *added]


def process(args: argparse.Namespace) -> None:
    run(args, ProbedTrainer)


def main(argv: Sequence[str] | None = None) -> int:
    launch(process, parser().parse(argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
