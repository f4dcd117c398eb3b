"""Bad input, counted: some 1,100 faulty files, folders, keys and command lines, each given where people give it.

    python -m benchmarks.drills fuzz
    python -m benchmarks.drills fuzz --kinds configs vocabularies --show unclear

Two processes work through the corpus (``benchmarks/drills/corpus``), so that an input that ends a process or never ends
is counted and the others still run. Outcomes:

    clear     refused, or read with a warning, in at most two lines that name the file or key and say what to do
    unclear   refused without a name, without a way out, at length, or with a traceback
    wrong     ran to the end with a result that nobody wants
    crash     ended the process
    hang      took more than --limit seconds
    valid     read, and the reading is right

Cases of the kind "hostile" also have a canary: they count as wrong where code in the input ran, or where a file outside the
folder was opened. The exit status is 0 where nothing is wrong, crashes or hangs and at least 95 % of the refusals are clear.
"""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing as mp
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from . import common
from .corpus import KINDS, all_cases
from .corpus.case import Case

OUTCOMES = ("clear", "unclear", "wrong", "crash", "hang", "valid")
CANARY = "canary"
"""In the name of every file that hostile input would make, and of every file outside that it would open."""

_MEMORY = 24 * 2**30  # of address space; torch and its libraries map some 10 GB
_LONGEST = 600  # characters of a message
_ADVICE = re.compile(  # what a message that says what to do has in it
    r"(?i)\b(must|should|give|take|use|set|write|save|fetch|prepare|correct|remove|choose|unpack|resolve|rename|convert|make|"
    r"scale|raise|train|register|did you mean|there are|looked for|compare|download|export|are required|needs|list some|"
    r"expected|keep one|ends with|only|lower|pass|leave|is it the right|name (a|one|it|the)|say `|run `)\b|"
    r"`python -m|--help|--import"
)


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    outcome: str
    said: str
    seconds: float


# ------------------------------------------------------------------------------------------------------- judging
def is_clear(message: str, names: Sequence[str]) -> str:
    """What a message lacks; "" where it is clear."""
    missing = [name for name in names if name not in message]
    if missing:
        return f"does not name {missing[0]!r}"
    if "Traceback" in message:
        return "shows a traceback"
    if len(message.strip().splitlines()) > 2 or len(message) > _LONGEST:
        return f"has {len(message.strip().splitlines())} lines, {len(message)} characters"
    return "" if _ADVICE.search(message) else "does not say what to do"


def judge(case: Case, folder: Path, opened: Sequence[str]) -> tuple[str, str]:
    """(outcome, what was said) of a case that ran in ``folder``."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    watched = [logger for name in list(logging.root.manager.loggerDict) if not (logger := logging.getLogger(name)).propagate]
    for logger in watched:
        logger.addHandler(handler)
    try:
        outcome, said = _run(case, folder, log)
    finally:
        for logger in (logging.getLogger(), *watched):
            logger.removeHandler(handler)
    if case.canary:
        touched = [str(path) for path in folder.rglob(f"*{CANARY}-ran*")] + [
            path for path in opened if f"{CANARY}-outside" in path
        ]
        if touched:
            return "wrong", f"reached {touched[0]}; {said}"
    return outcome, said


def _run(case: Case, folder: Path, log: io.StringIO) -> tuple[str, str]:
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            result = case.run(folder)
    except (ValueError, OSError) as error:
        message = f"{error}"
        if case.names is None:
            return "wrong", f"refused: {message}"
        lacking = is_clear(message, case.names)
        return ("unclear", f"{lacking}: {type(error).__name__}: {message}") if lacking else ("clear", message)
    except Exception:
        return "unclear", traceback.format_exc(limit=-3)
    if case.reads is None or not case.reads(result):
        return "wrong", f"gave {str(result)[:300]}; log: {log.getvalue()[-300:]}"
    if case.warns:
        missing = [name for name in case.warns if name not in log.getvalue()]
        return (
            ("wrong", f"no warning about {missing[0]!r}: {log.getvalue()[-300:]}") if missing else ("clear", log.getvalue())
        )
    return "valid", ""


# ------------------------------------------------------------------------------------------------------- processes
Corpus = Callable[[int], list[Case]]
"""Makes the cases of a seed, the same in every process."""


def _work(corpus_of: Corpus, seed: int, places: Connection) -> None:
    """A worker: takes numbers of cases, sends (outcome, what was said)."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    corpus = corpus_of(seed)
    opened: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        path, mode, flags = arguments if event == "open" else (None, None, 0)
        if path is not None and (mode or "r").startswith("r") and flags & os.O_ACCMODE == os.O_RDONLY:
            opened.append(str(path))

    sys.addaudithook(watch)
    places.send(("ready", ""))
    while (number := places.recv()) is not None:
        opened.clear()
        with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as name, contextlib.chdir(name):
            os.environ["ZEROSHOT_D2_CACHE"] = str(Path(name).parent / f"fuzz-cache-{os.getpid()}")
            os.environ["DETECTRON2_DATASETS"] = str(Path(name) / "datasets")
            places.send(judge(corpus[number], Path(name), opened))
    shutil.rmtree(Path(tempfile.gettempdir()) / f"fuzz-cache-{os.getpid()}", ignore_errors=True)


class _Worker:
    """A process that works through cases; started anew after one that it did not survive."""

    def __init__(self, corpus_of: Corpus, seed: int) -> None:
        self._corpus_of, self._seed = corpus_of, seed
        self.number: int | None = None
        self._start()

    def _start(self) -> None:
        self.connection, other = mp.Pipe()
        self._process = mp.get_context("spawn").Process(target=_work, args=(self._corpus_of, self._seed, other), daemon=True)
        self._process.start()
        other.close()
        self.ready = False

    def give(self, number: int) -> None:
        self.number, self.began = number, time.monotonic()
        self.connection.send(number)

    def replace(self) -> int | None:
        """End the process and start another; the exit code of the first."""
        self._process.kill()
        self._process.join()
        code = self._process.exitcode
        self._start()
        return code

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def run_all(
    cases: Sequence[tuple[int, Case]],
    seed: int,
    *,
    workers: int,
    limit: float,
    seconds: float,
    corpus_of: Corpus = all_cases,
) -> Iterator[tuple[Case, Outcome]]:
    """Run the numbered cases; those that were not begun within ``seconds`` are left out."""
    deadline = common.Deadline(seconds)
    waiting, by_number = [number for number, _ in reversed(cases)], dict(cases)
    pool = [_Worker(corpus_of, seed) for _ in range(min(workers, len(waiting)))]
    try:
        while any(worker.number is not None or not worker.ready for worker in pool) or (waiting and not deadline.over()):
            ready = wait([worker.connection for worker in pool], timeout=0.5)
            for worker in pool:
                if worker.number is not None and worker.connection not in ready:
                    took = time.monotonic() - worker.began
                    if took > limit:
                        yield by_number[worker.number], Outcome("hang", f"did not end within {limit:g} s", took)
                        worker.replace()
                        worker.number = None
                    continue
                if worker.connection not in ready:
                    continue
                try:
                    outcome, said = worker.connection.recv()
                except EOFError:
                    if worker.number is None:
                        raise RuntimeError("a worker of the drill does not start") from None
                    case, took = by_number[worker.number], time.monotonic() - worker.began
                    yield case, Outcome("crash", f"ended the process with exit code {worker.replace()}", took)
                    worker.number = None
                    continue
                if worker.number is not None:
                    yield by_number[worker.number], Outcome(outcome, said, time.monotonic() - worker.began)
                worker.number, worker.ready = None, True
                if waiting and not deadline.over():
                    worker.give(waiting.pop())
            if all(worker.ready and worker.number is None for worker in pool):
                break
    finally:
        for worker in pool:
            worker.end()


# ------------------------------------------------------------------------------------------------------- command
def main(argv: Sequence[str]) -> int:
    """Run the drill; 0 where the aims are reached."""
    options = common.parser("fuzz", __doc__)
    options.set_defaults(seconds=850)
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="default: all")
    options.add_argument("--only", default="", help="only cases with this in their name")
    options.add_argument("--every", type=int, default=1, help="only every so many-th case")
    options.add_argument("--workers", type=int, default=2, help="processes")
    options.add_argument("--limit", type=float, default=60, help="seconds for one case")
    options.add_argument(
        "--show", nargs="*", choices=OUTCOMES, default=["unclear", "wrong", "crash", "hang"], help="say which"
    )
    args = options.parse_args(argv)
    corpus = list(enumerate(all_cases(args.seed)))
    chosen = [(number, case) for number, case in corpus if case.kind in args.kinds and args.only in case.name][:: args.every]
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in args.kinds}
    details = []
    for case, found in run_all(chosen, args.seed, workers=args.workers, limit=args.limit, seconds=args.seconds):
        counts[case.kind][found.outcome] += 1
        details.append({"kind": case.kind, "name": case.name, **vars(found)})
        if found.outcome in args.show:
            print(f"{found.outcome}: {case.kind}: {case.name}: {found.said[-700:]}\n")
    total = sum(counts.values(), Counter())
    rows = [
        [kind.replace("_", " "), sum(count.values()), *(count[outcome] for outcome in OUTCOMES)]
        for kind, count in ((*counts.items(), ("all", total)))
    ]
    refused = total["clear"] + total["unclear"]
    share = 100 * total["clear"] / refused if refused else 100.0
    common.report(args.output, ["kind", "inputs", *OUTCOMES], rows, clear_percent=share, cases=details)
    print(f"\nclear: {share:.1f} % of {refused} refusals; {len(chosen) - len(details)} cases were not begun")
    reached = not (total["wrong"] or total["crash"] or total["hang"]) and share >= 95 and len(details) == len(chosen)
    return 0 if reached else 1
