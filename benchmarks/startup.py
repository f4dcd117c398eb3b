"""How long commands take before they do their work: ``python -m benchmarks.startup``.

Each case is a process of its own, beside one that imports detectron2, open_clip, timm and cv2 and ends:

* the list of verbs, and the help of one;
* ``predict`` on one photo with an empty cache of label embeddings, as the first time ever with a vocabulary;
* the same when the cache has them, as every time after;
* the same with two photos: what it takes longer is the second photo.

Cases alternate. Seconds are medians over the rounds; only ratios within one run mean anything. Without ``--model`` the demo
world's AlignZeg is trained for two iterations first.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from benchmarks.own_process import ROOT
from zeroshot_d2.cli import Parser, positive
from zeroshot_d2.demo_world import render
from zeroshot_d2.images import write_image

IMPORTS = "imports alone"
SECOND_PHOTO = "second photo"
_PROJECT = ("-m", "zeroshot_d2")


@dataclass(frozen=True)
class Seconds:
    """Of a process: CPU time, user's and system's, and wall time."""

    cpu: float
    wall: float

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.cpu - other.cpu, self.wall - other.wall)


def run(words: Sequence[str], environment: Mapping[str, str]) -> Seconds:
    """Run Python with these words; what the process took.

    Raises:
        RuntimeError: it failed; what it said is part of the message.
    """
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *words], cwd=ROOT, stdout=said, stderr=said, env={**os.environ, **environment}
        )
        _, status, usage = os.wait4(process.pid, 0)  # the times of this process alone
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}: {said.read()[-2000:]}")
    return Seconds(usage.ru_utime + usage.ru_stime, wall)


def cases(model: Path, folder: Path) -> dict[str, tuple[str, ...]]:
    """The words of each case; photos and results are in ``folder``."""
    photos = [folder / "photos" / f"{index}.png" for index in range(2)]
    for index, photo in enumerate(photos):
        write_image(photo, render(seed=7, index=index).image)
    predict = (*_PROJECT, "predict", "--model", str(model), "--output", str(folder / "results"), "--input")
    return {
        IMPORTS: ("-c", "import detectron2.data, detectron2.engine, detectron2.modeling, open_clip, timm, cv2"),
        "--help": (*_PROJECT, "--help"),
        "predict --help": (*_PROJECT, "predict", "--help"),
        "first photo ever": (*predict, str(photos[0])),
        "first photo": (*predict, str(photos[0])),
        "two photos": (*predict, *map(str, photos)),
    }


def measure(model: Path, folder: Path, rounds: int) -> dict[str, list[Seconds]]:
    """{case: what it took in each round}."""
    words, cache = cases(model, folder), folder / "cache"
    measured: dict[str, list[Seconds]] = {name: [] for name in [*words, SECOND_PHOTO]}
    for _ in range(rounds):
        for name in words:
            if name == "first photo ever":
                shutil.rmtree(cache, ignore_errors=True)
            measured[name].append(run(words[name], {"ZEROSHOT_D2_CACHE": str(cache), "OMP_NUM_THREADS": "1"}))
        measured[SECOND_PHOTO].append(measured["two photos"][-1] - measured["first photo"][-1])
    return measured


def table(measured: Mapping[str, Sequence[Seconds]]) -> str:
    """Medians over the rounds, and the CPU time beside that of the imports in the same round."""
    rows = []
    for name, runs in measured.items():
        ratios = [taken.cpu / imports.cpu for taken, imports in zip(runs, measured[IMPORTS], strict=True)]
        beyond = [(taken - imports).cpu for taken, imports in zip(runs, measured[IMPORTS], strict=True)]
        rows.append(
            [
                name,
                f"{statistics.median(taken.cpu for taken in runs):.2f}",
                f"{statistics.median(taken.wall for taken in runs):.2f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                "" if name in (IMPORTS, SECOND_PHOTO) else f"{statistics.median(beyond):.2f}",
            ]
        )
    headers = ["", "CPU s", "wall s", "CPU, times the imports", "CPU s beyond the imports"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = Parser("python -m benchmarks.startup", __doc__, takes_keys=False)
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a finished run, or a model that was saved")
    parser.add_argument("--rounds", type=positive, default=5)
    args = parser.parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = args.model
        if model is None:
            model = folder / "model"
            keys = ("SOLVER.MAX_ITER", "2", "DATASETS.TEST", "('demo_world_val',)", "OUTPUT_DIR", str(model))
            run((*_PROJECT, "train", "--config-file", "demo/alignzeg.yaml", *keys), {"OMP_NUM_THREADS": "1"})
        print(table(measure(model.resolve(), folder, args.rounds)))


if __name__ == "__main__":
    main()
