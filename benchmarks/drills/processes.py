"""Trainings in several processes: whether they agree, how quickly they start, and what happens when one of them fails.

    python -m benchmarks.drills processes [--cases agree start ...] [--repeats 3] [--seconds 1800]

Needs Linux: processes and their memory are found in /proc.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tqdm import tqdm

from zeroshot_d2.checkpoint import read_checkpoint
from zeroshot_d2.provenance import without_run
from zeroshot_d2.storage import read_json

from . import common
from .probed_run import FAULT, STEPS

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 300.0  # seconds that a run may take
SOON = 20.0  # seconds within which all processes have to be gone after a failure
AGREEMENT = 1e-4  # relative, of the total loss
START_LIMIT, MEMORY_LIMIT = 4.0, 120.0  # seconds and MB

ALIGNZEG = ("--config-file", "demo/alignzeg.yaml")
EPSILON = ("--config-file", "demo/epsilon.yaml", "SOLVER.MAX_EPOCHS", "0", "MODEL.EPSILON.GPA.DROPOUT", "0.0")
TRAINING = ("DATASETS.TEST", "()", "SOLVER.IMS_PER_BATCH", "4", "DATALOADER.NUM_WORKERS", "1")
ENDLESS = ("SOLVER.MAX_ITER", "100000")

Row = tuple[str, str, str, bool]  # case, figure, aim, whether it is reached


@dataclass(frozen=True)
class Drill:
    """What the cases share.

    Args:
        folder: of the runs.
        seed: of the runs.
        iterations: of the runs that are compared.
        few: iterations of the others.
        repeats: of what is timed.
    """

    folder: Path
    seed: int
    iterations: int
    few: int
    repeats: int

    def run(self, name: str, words: Sequence[str], **others: Any) -> Run:
        """A run of that name, see :class:`Run`; KEY VALUE pairs in ``words`` come last."""
        return Run(self.folder / name, [*words, *(() if "SEED" in words else ("SEED", str(self.seed)))], **others)


class Run:
    """A training in processes that can be found again, whoever their parent is by then."""

    _numbers = count()

    def __init__(self, output: Path, words: Sequence[str], *, launcher: Sequence[str] = (), **variables: str) -> None:
        """
        Args:
            output: OUTPUT_DIR, which may hold an earlier run.
            words: of ``train``.
            launcher: what stands between ``python`` and the module, such as torchrun's.
            variables: of the environment.
        """
        self.output = output
        output.mkdir(parents=True, exist_ok=True)
        self.log = output.parent / f"{output.name}_{next(self._numbers)}.log"
        self._mark = f"DRILL_RUN={uuid.uuid4()}"
        name, value = self._mark.split("=")
        options, keys = _split(words)
        command = [*launcher, "-m", "benchmarks.drills.probed_run", *options, *TRAINING, *keys, "OUTPUT_DIR", str(output)]
        self.start = time.time()
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", name: value, **variables},
            )

    def pids(self) -> list[int]:
        """All of its processes that are alive."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                try:
                    alive = self._mark.encode() in (folder / "environ").read_bytes().split(b"\0")
                except OSError:  # gone by now, or another user's
                    continue
                if alive:
                    found.append(int(folder.name))
        return found

    def wait(self) -> int:
        """The exit status."""
        return self.process.wait(LIMIT)

    def gone(self) -> float:
        """When the last of its processes had ended.

        Raises:
            TimeoutError: some are left; they are killed.
        """
        end = time.time() + LIMIT
        while self.pids():
            if time.time() > end:
                left = self.pids()
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                raise TimeoutError(f"{len(left)} processes of {self.output} are left after {LIMIT:.0f} s")
            time.sleep(0.05)
        return time.time()

    def steps(self) -> list[tuple[int, float, float]]:
        """(iteration, time, total loss) of each step so far."""
        path = self.output / STEPS
        lines = path.read_text().splitlines() if path.is_file() else []
        return [(int(words[0]), float(words[1]), float(words[2])) for words in map(str.split, lines)]

    def until_step(self, iteration: int) -> None:
        """Wait until this iteration has ended."""
        while len(self.steps()) <= iteration:
            if self.process.poll() is not None:
                raise RuntimeError(f"the run has ended early:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def fault_time(self) -> float:
        """When its fault happened."""
        return float((self.output / FAULT).read_text())

    def last_line(self) -> str:
        """What it said last."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip(" =")]
        return lines[-1] if lines else ""


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options with their values, and KEY VALUE pairs, from any order of the two."""
    options: list[str] = []
    keys: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            keys += [word, rest.pop(0)]
            continue
        options.append(word)
        if word != "--eval-only":
            options.append(rest.pop(0))
    return options, keys


def _processes(number: int) -> tuple[str, str]:
    return "--num-gpus", str(number)


def _torchrun(number: int, *options: str) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number), *options]


# --------------------------------------------------------------------------------------------------------- cases
def agree(drill: Drill) -> Iterator[Row]:
    """1, 2 and 4 processes have the same losses, with everything on that is random."""
    for name, words in (("AlignZeg", ALIGNZEG), ("Epsilon", EPSILON)):
        losses = {}
        for number in (1, 2, 4):
            run = drill.run(
                f"agree_{name}_{number}", [*_processes(number), *words, "SOLVER.MAX_ITER", str(drill.iterations)]
            )
            _check(run)
            losses[number] = [loss for _, _, loss in run.steps()]
        for number in (2, 4):
            pairs = zip(losses[1], losses[number], strict=True)
            apart = max(abs(one - several) / abs(one) for one, several in pairs)
            what = f"{name}: {number} processes against 1, total loss over {drill.iterations} iterations"
            yield what, f"{apart:.1e} apart", f"{AGREEMENT:.0e}", apart <= AGREEMENT


def start(drill: Drill) -> Iterator[Row]:
    """Time to the end of the first iteration, and memory of a loader worker, with 1 and 2 processes."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    memory: dict[int, list[float]] = {1: [], 2: []}
    for repeat in range(drill.repeats):
        for number in (1, 2):
            words = [*ALIGNZEG, *_processes(number), *ENDLESS, "DATALOADER.NUM_WORKERS", "2"]
            run = drill.run(f"start_{number}_{repeat}", words)
            run.until_step(drill.few)
            workers = [pid for pid in run.pids() if Path(f"/proc/{pid}/comm").read_text().startswith("pt_data")]
            assert len(workers) == 2 * number, f"{len(workers)} workers"
            memory[number] += map(_proportional_megabytes, workers)
            seconds[number].append(run.steps()[0][1] - run.start)
            run.process.kill()
            run.gone()
    medians = {number: statistics.median(values) for number, values in seconds.items()}
    aim = f"{START_LIMIT:.0f} s more than with 1"
    yield "seconds to the first iteration, 1 process", f"{medians[1]:.1f} s", "", True
    later = medians[2] - medians[1]
    yield "seconds to the first iteration, 2 processes", f"{medians[2]:.1f} s", aim, later <= START_LIMIT
    for number in (1, 2):
        share = statistics.median(memory[number])
        what = f"memory of a loader worker (PSS), {number} process(es) of 2 workers"
        # With one process fewer share what is imported; the aim is for several.
        yield what, f"{share:.0f} MB", f"{MEMORY_LIMIT:.0f} MB" if number > 1 else "", number == 1 or share <= MEMORY_LIMIT


def _proportional_megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no Pss")


def error(drill: Drill) -> Iterator[Row]:
    """An error in one process ends all, and is what is said last."""
    for launcher, number, rank in (("our launcher", 2, 0), ("our launcher", 4, 3), ("torchrun", 2, 1)):
        run = _faulty(drill, "error", launcher, number, rank)
        status, after = run.wait(), run.gone() - run.fault_time()
        said = f"the drill's fault in process {rank}, iteration {drill.few}"
        end = run.log.read_text().rstrip().splitlines()[-12:]  # torchrun draws a frame around it
        shown = any(said in line for line in (end if launcher == "torchrun" else end[-2:]))
        figure = f"{after:.1f} s, {'first error last' if shown else f'last line {run.last_line()!r}'}"
        what = f"error in process {rank} of {number}, {launcher}"
        yield what, figure, f"{SOON:.0f} s, first error last", shown and after <= SOON and status != 0


def killed(drill: Drill) -> Iterator[Row]:
    """A process that is killed ends all."""
    for launcher, rank in (("our launcher", 0), ("our launcher", 1), ("torchrun", 1)):
        run = _faulty(drill, "kill", launcher, 2, rank)
        status, after = run.wait(), run.gone() - run.fault_time()
        named = "SIGKILL" in run.log.read_text()
        what = f"process {rank} of 2 is killed, {launcher}"
        figure = f"{after:.1f} s, {'named' if named else 'not named'}"
        yield what, figure, f"{SOON:.0f} s, named", named and after <= SOON and status != 0


def _faulty(drill: Drill, kind: str, launcher: str, number: int, rank: int) -> Run:
    by_torchrun = launcher == "torchrun"
    words = [*ALIGNZEG, *(() if by_torchrun else _processes(number)), *ENDLESS]
    return drill.run(
        f"{kind}_{launcher.split()[-1]}_{rank}",
        words,
        launcher=_torchrun(number) if by_torchrun else (),
        DRILL_FAULT=f"{kind} {rank} {drill.few}",
    )


def launcher(drill: Drill) -> Iterator[Row]:
    """Killing the launcher, or asking it to stop, leaves no process behind."""
    for name, number in (("SIGKILL", signal.SIGKILL), ("SIGTERM", signal.SIGTERM)):
        run = drill.run(f"launcher_{name}", [*ALIGNZEG, *_processes(2), *ENDLESS])
        run.until_step(drill.few)
        before, now = len(run.pids()), time.time()
        run.process.send_signal(number)
        status = run.wait()
        after = run.gone() - now
        right = after <= SOON and (name == "SIGKILL" or status == 128 + number)
        kept = "" if name == "SIGKILL" else f", exit status {status}"
        yield f"{name} to the launcher of 2 processes ({before} in all)", f"{after:.1f} s{kept}", f"{SOON:.0f} s", right


def few(drill: Drill) -> Iterator[Row]:
    """More processes than images: the same results."""
    for name, words, data in (("AlignZeg", ALIGNZEG, "drill_few_segmentation"), ("Epsilon", EPSILON, "drill_few_tags")):
        found = []
        for number in (1, 4):
            evaluation = ["--eval-only", "--import", "benchmarks.drills.few_images", *_processes(number)]
            keys = ["MODEL.WEIGHTS", "", "DATASETS.TEST", f"('{data}',)"]
            run = drill.run(f"few_{name}_{number}", [*evaluation, *words, *keys])
            _check(run)
            found.append(without_run(read_json(run.output / "results.json")))
        same = found[0] == found[1]
        yield f"{name}: evaluation of 3 images in 4 processes", "as in 1" if same else "differs from 1", "as in 1", same


def restart(drill: Drill) -> Iterator[Row]:
    """torchrun starts a run anew after a kill: it goes on from its last checkpoint, and from no older run's."""
    few = drill.few
    words = [*ALIGNZEG, "SOLVER.MAX_ITER", str(3 * few), "SOLVER.CHECKPOINT_PERIOD", str(few)]
    whole = drill.run("restart_whole", words, launcher=_torchrun(2))
    _check(whole)
    older = drill.run("restart", [*words, "SEED", str(drill.seed + 1)], launcher=_torchrun(2))
    _check(older)  # its checkpoints lie in the folder
    (older.output / STEPS).unlink()
    fault = f"kill 1 {2 * few + 1}"
    run = drill.run("restart", words, launcher=_torchrun(2, "--max-restarts", "1"), DRILL_FAULT=fault)
    _check(run)
    done = [iteration for iteration, _, _ in run.steps()]
    right = done == [*range(2 * few + 1), *range(2 * few, 3 * few)]
    weights = [read_checkpoint(path / "model_final.pth")["model"] for path in (whole.output, run.output)]
    same = all(bool((weights[0][name] == weights[1][name]).all()) for name in weights[0])
    figure = f"{'goes on' if right else f'iterations {done}'}, {'same bits' if same else 'other weights'}"
    yield "torchrun --max-restarts 1, a worker is killed", figure, "goes on, same bits", right and same


def twice(drill: Drill) -> Iterator[Row]:
    """Two runs at the same time: side by side, or in one folder, where the second is refused."""
    words = [*ALIGNZEG, *_processes(2), "SOLVER.MAX_ITER", str(drill.few)]
    runs = [drill.run(f"twice_{i}", words) for i in range(2)]
    ended = [run.wait() for run in runs]
    yield "two runs of 2 processes at once", f"exit status {ended[0]} and {ended[1]}", "0 and 0", ended == [0, 0]
    first = drill.run("twice_same", [*ALIGNZEG, *_processes(2), *ENDLESS])
    first.until_step(0)
    second = drill.run("twice_same", words)
    status = second.wait()
    refused = status != 0 and "another run" in second.log.read_text()
    on = first.process.poll() is None
    first.process.terminate()
    first.gone()
    figure = f"{'refused' if refused else f'exit status {status}'}, the first {'goes on' if on else 'ended'}"
    yield "a second run in the same OUTPUT_DIR", figure, "refused, the first goes on", refused and on


def _check(run: Run) -> None:
    if run.wait():
        raise RuntimeError(f"{run.log} ended with {run.process.returncode}:\n{run.log.read_text()[-3000:]}")


CASES: dict[str, Callable[[Drill], Iterator[Row]]] = {
    case.__name__: case for case in (agree, start, error, killed, launcher, few, restart, twice)
}


def main(argv: Sequence[str] | None = None) -> int:
    options = common.parser("processes", __doc__)
    options.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options.add_argument("--iterations", type=int, default=20, help="of the runs that are compared; others take a fifth")
    options.add_argument("--repeats", type=int, default=3, help="of what is timed; the table has the medians")
    args = options.parse_args(argv)
    deadline = common.Deadline(args.seconds)
    folder = args.output / str(int(time.time()))  # where no earlier drill has left its runs
    drill = Drill(folder, args.seed, args.iterations, max(1, args.iterations // 5), args.repeats)
    rows: list[Row] = []
    left_out = []
    for name in tqdm(args.cases, desc="cases"):
        if deadline.over():
            left_out.append(name)
        else:
            rows += CASES[name](drill)
    table = [(case, figure, aim, "yes" if right else "NO") for case, figure, aim, right in rows]
    common.report(args.output, ("case", "found", "aim", "reached"), table, left_out=left_out)
    return 0 if all(row[-1] for row in rows) and not left_out else 1
