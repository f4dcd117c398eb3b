"""Kills trainings at random moments, resumes them, and compares the end with that of an uninterrupted run, bit by bit.

    python -m benchmarks.drills kill [--kills 200] [--seed 1] [--seconds 1800]

A run is killed without notice (SIGKILL): at any moment; while a file is being written; during an evaluation; or, in two
processes, the launcher or one of the ranks. Every tenth kill hits the resumed run too.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from zeroshot_d2.checkpoint import damage_of
from zeroshot_d2.storage import UNFINISHED

from . import common, trainings

MOMENTS = ("at any moment", "while writing", "while evaluating")
LIMIT = 300.0  # seconds that a run may take
# One kill in so many hits a run in two processes, which take long to start.
TWO_PROCESSES_EVERY = 20


def kill_once(child: trainings.Child, output: Path, moment: str, rng: random.Random, duration: float) -> bool:
    """Kill the run at such a moment; False where it ended before."""
    if moment == "at any moment":
        child.wait(rng.uniform(0.02, 1) * duration)
    elif moment == "while writing":
        passed = rng.randrange(12)  # files that it may finish before
        known: set[str] = set()
        while child.poll() is None:
            new = {path.name for path in output.glob(f"{UNFINISHED}*")} - known if output.is_dir() else set()
            known |= new
            if new and len(known) > passed:
                time.sleep(rng.uniform(0, 0.01))
                break
            time.sleep(0.0002)
    else:
        evaluations = rng.choice((1, 2))
        while child.poll() is None and child.log.read_text(errors="replace").count("Start inference") < evaluations:
            time.sleep(0.005)
        child.wait(rng.uniform(0, 0.15))
    running = child.poll() is None
    child.kill()
    return running


def kill_two_processes(arguments: list[str], log: Path, rng: random.Random, duration: float) -> bool:
    """Kill the launcher, or one of its ranks, of a run in two processes; False where it ended before."""
    process = trainings.spawned(["train", *arguments, "--num-gpus", "2"], log)
    end = time.monotonic() + rng.uniform(0.3, 1) * duration
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    victims = [process.pid, *_ranks(process.pid)]
    running = process.poll() is None
    if running:
        os.kill(rng.choice(victims), signal.SIGKILL)
    process.wait(LIMIT)
    # What is left of the group would write into the folder of the resumed run; that it ends by itself is another drill's.
    end = time.monotonic() + 30
    while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in victims[1:]):
        time.sleep(0.05)
    return running


def _ranks(launcher: int) -> list[int]:
    tasks = Path(f"/proc/{launcher}/task/{launcher}/children")
    children = [int(word) for word in tasks.read_text().split()] if tasks.is_file() else []
    return [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def main(argv: Sequence[str] | None = None) -> int:
    options = common.parser("kill", __doc__)
    options.add_argument("--kills", type=int, default=200, help="how many runs are killed")
    options.add_argument("--one-process", action="store_true", help="leave out the runs in two processes")
    args = options.parse_args(argv)
    deadline, rng = common.Deadline(args.seconds), random.Random(args.seed)
    shutil.rmtree(args.output, ignore_errors=True)
    sets = trainings.prepare(args.output)

    reference = args.output / "reference"
    start = time.monotonic()
    if trainings.Child(["train", *trainings.arguments(sets, reference)], args.output / "reference.log").wait(LIMIT) != 0:
        raise RuntimeError(f"the run that is not interrupted failed, see {args.output / 'reference.log'}")
    duration, expected = time.monotonic() - start, {1: trainings.fingerprint(reference)}
    duration_of_two = 0.0
    if not args.one_process and args.kills >= TWO_PROCESSES_EVERY:
        start = time.monotonic()
        two = trainings.arguments(sets, args.output / "reference_2", "--num-gpus", "2")
        if trainings.spawned(["train", *two], args.output / "reference_2.log").wait(LIMIT) != 0:
            raise RuntimeError(f"the run in two processes failed, see {args.output / 'reference_2.log'}")
        duration_of_two, expected[2] = time.monotonic() - start, trainings.fingerprint(args.output / "reference_2")

    counts: dict[str, dict[str, int]] = {}
    failures = []
    for number in tqdm(range(args.kills), desc="kills", unit="kill"):
        if deadline.over():
            break
        output, log = args.output / f"run_{number}", args.output / f"run_{number}.log"
        processes = 2 if 2 in expected and number % TWO_PROCESSES_EVERY == TWO_PROCESSES_EVERY - 1 else 1
        moment = "launcher or rank of two" if processes == 2 else rng.choice(MOMENTS)
        two = ["--num-gpus", "2"] if processes == 2 else []
        arguments = trainings.arguments(sets, output, *two)
        if two:
            killed = kill_two_processes(arguments, log, rng, duration_of_two)
        else:
            killed = kill_once(trainings.Child(["train", *arguments], log), output, moment, rng, duration)
            if number % 10 == 9:
                again = trainings.Child(["train", *trainings.arguments(sets, output, "--resume")], log.with_suffix(".2.log"))
                kill_once(again, output, rng.choice(MOMENTS), rng, duration)
        problem = _damage(output)
        resumed = log.with_suffix(".resumed.log")
        arguments = trainings.arguments(sets, output, "--resume", *two)
        child = trainings.spawned(["train", *arguments], resumed) if two else trainings.Child(["train", *arguments], resumed)
        status = child.wait(LIMIT)
        if not problem and status != 0:
            problem = f"the resumed run ended with {status}"
        if not problem:
            try:
                same = trainings.fingerprint(output) == expected[processes]
                problem = "" if same else "the resumed run ended otherwise"
            except (OSError, ValueError) as error:
                problem = str(error)
        row = counts.setdefault(moment, {"runs": 0, "killed": 0, "bit-equal": 0})
        row["runs"] += 1
        row["killed"] += killed
        row["bit-equal"] += not problem
        if problem:
            failures.append({"run": number, "moment": moment, "problem": problem, "log": str(resumed)})
        else:
            shutil.rmtree(output)
    rows = [[moment, *row.values()] for moment, row in sorted(counts.items())]
    rows.append(["all", *(sum(row[key] for row in counts.values()) for key in ("runs", "killed", "bit-equal"))])
    common.report(args.output, ["killed", "runs", "before the end", "resumed to the same bits"], rows, failures=failures)
    for failure in failures:
        print(failure)
    return 1 if failures else 0


def _damage(output: Path) -> str:
    """What is not whole in the folder of a killed run; "" for nothing."""
    found = [damage_of(file) for file in output.glob("model_*.pth")]
    found += [trainings.damage_of_weights(file) for file in output.glob("model_*.safetensors")]
    return "; ".join(filter(None, found))
