"""What test_processes.py starts: a program of one thread, as the command line is, that starts processes of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from zeroshot_d2.processes import run_together, serve_forks, use_served_forks


class Stubborn(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("as it is")
        self.hook = lambda: None


def error_in_one(index: int) -> None:
    if index == 1:
        raise ValueError("from process 1")
    time.sleep(60)


def two_errors(index: int) -> None:
    time.sleep(0.5 * index)
    raise OSError(f"from process {index}")


def killed(index: int) -> None:
    if index == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def status(index: int) -> None:
    sys.exit(7)


def stubborn(index: int) -> None:
    raise Stubborn


def told_to_stop(index: int) -> None:
    if index == 0:
        os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)


def fine(index: int) -> None:
    time.sleep(0.1 * index)


def outcomes() -> None:
    """{function: what happened, and in how many seconds}."""
    found: dict[str, Any] = {}
    functions: list[Callable[[int], None]] = [error_in_one, two_errors, killed, status, stubborn, told_to_stop, fine]
    for function in functions:
        start = time.monotonic()
        try:
            run_together(function, 2)
            what = "none"
        except BaseException as error:
            what = f"{type(error).__name__}: {error}"
        found[function.__name__] = what, time.monotonic() - start
    print(json.dumps(found))


def sleep_beside(index: int, folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)


class Records(Dataset[Any]):
    """Numbers in a tensor, and the process that reads them."""

    def __init__(self) -> None:
        self.numbers = torch.arange(100)

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[int, int, int, bool]:
        return int(self.numbers[index]), os.getpid(), os.getppid(), self.numbers.is_shared()


def loader(folder: str) -> None:
    """Write down what workers say of themselves, then wait to be killed."""
    serve_forks()
    items = use_served_forks(DataLoader(Records(), num_workers=2, batch_size=None, prefetch_factor=2))
    read = list(items)
    iterator = iter(items)
    running = [next(iterator)[1] for _ in range(20)]
    said = {"pid": os.getpid(), "read": read, "running": sorted(set(running))}
    Path(folder, "part").write_text(json.dumps(said))
    Path(folder, "part").rename(Path(folder, "said"))
    time.sleep(600)


def product(size: int) -> float:
    """A number from more than one of OpenMP's threads, where there are more."""
    return float((torch.ones(size, size) @ torch.ones(size, size)).sum())


def forked_late() -> None:
    """Threads first, then a server; what a process that Python's fork server starts computes, or why not."""
    torch.set_num_threads(4)
    product(512)
    serve_forks()
    pool = multiprocessing.get_context("forkserver").Pool(1)
    print(json.dumps(pool.apply_async(product, (512,)).get(timeout=120)))
    pool.terminate()


if __name__ == "__main__":
    if sys.argv[1] == "outcomes":
        outcomes()
    elif sys.argv[1] == "forked late":
        forked_late()
    elif sys.argv[1] == "sleep":
        run_together(sleep_beside, 3, (sys.argv[2],))
    else:
        loader(sys.argv[2])
