"""Trains and predicts for long, and looks whether memory and open files grow.

    python -m benchmarks.drills soak [--iterations 2000] [--predictions 2000] [--seconds 3600]

The demo's AlignZeg trains with an evaluation every tenth of the way, then its predictor takes photos of mixed sizes. Growth
compares the largest value after the first tenth with the largest one in the second half of that tenth.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from detectron2.engine import HookBase
from tqdm import tqdm

from alignzeg_d2.predictor import AlignZegPredictor
from zeroshot_d2.cli import load_config
from zeroshot_d2.trainer import Trainer

from . import common, trainings

AIM = 3.0  # percent
MOMENTARY = 2  # files that may be open at some moment and not at another; a leak in 2,000 steps is more


class Watch(HookBase):
    """Memory (bytes resident) and open files of this process, once per step."""

    def __init__(self) -> None:
        self.memory: list[int] = []
        self.files: list[int] = []

    def look(self) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE"))
        self.files.append(sum(1 for _ in _open_files()))

    def after_step(self) -> None:
        self.look()

    def row(self) -> list[object]:
        """Steps, memory at the tenth and its growth, open files at the tenth and their growth."""
        tenth = max(1, len(self.memory) // 10)
        memory, later = max(self.memory[tenth // 2 : tenth] or self.memory[:1]), max(self.memory[tenth:])
        files, files_later = max(self.files[tenth // 2 : tenth] or self.files[:1]), max(self.files[tenth:])
        growth = 100 * (later - memory) / memory
        return [len(self.memory), f"{memory / 2**20:.0f} MB", f"{growth:+.1f} %", files, f"{files_later - files:+d}"]


def _open_files() -> Iterator[str]:
    """What this process has open, without the batches on their way from a worker, whose number varies from step to step."""
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing itself
            path = os.readlink(f"/proc/self/fd/{number}")
            if not path.startswith("/dev/shm/torch_"):
                yield path


def main(argv: Sequence[str] | None = None) -> int:
    options = common.parser("soak", __doc__)
    options.add_argument("--iterations", type=int, default=2000)
    options.add_argument("--predictions", type=int, default=2000)
    args = options.parse_args(argv)
    deadline, rng = common.Deadline(args.seconds), random.Random(args.seed)
    shutil.rmtree(args.output, ignore_errors=True)
    trainings.prepare(args.output)

    cfg = load_config(
        "demo/alignzeg.yaml",
        [
            *("SOLVER.MAX_ITER", str(args.iterations), "TEST.EVAL_PERIOD", str(max(1, args.iterations // 10))),
            *("SOLVER.CHECKPOINT_PERIOD", str(max(1, args.iterations // 10)), "SOLVER.CHECKPOINT_KEEP", "2"),
            *("DATASETS.TEST", "('drill_val',)", "SEED", str(args.seed), "OUTPUT_DIR", str(args.output / "run")),
        ],
    )
    Path(cfg.OUTPUT_DIR).mkdir(parents=True)
    training, prediction = Watch(), Watch()
    trainer = Trainer(cfg)
    trainer.register_hooks([training])
    trainer.train()

    del trainer
    cfg.MODEL.WEIGHTS = str(args.output / "run/model_final.pth")
    predictor = AlignZegPredictor(cfg)
    generator = np.random.default_rng(args.seed)
    for _ in tqdm(range(args.predictions), desc="predictions", unit="photo"):
        if deadline.over():
            break
        size = rng.choice((32, 48, 64, 96, 128)), rng.choice((32, 48, 64, 96, 128))
        predictor(generator.integers(0, 256, (*size, 3), dtype=np.uint8))
        prediction.look()
    rows = [["training", *training.row()], ["prediction", *prediction.row()]]
    common.report(args.output, ["", "steps", "memory at a tenth", "growth after", "open files", "growth"], rows)
    grown = [row[0] for row in rows if float(str(row[3]).split()[0]) > AIM or int(str(row[5])) > MOMENTARY]
    return 1 if grown else 0
