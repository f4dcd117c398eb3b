"""Processes end together and say what went wrong first; loader workers are forked from a clean copy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from zeroshot_d2 import processes

pytestmark = pytest.mark.slow

PROGRAM = str(Path(__file__).parent / "processes_program.py")
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[str, float]]:
    done = subprocess.run([sys.executable, PROGRAM, "outcomes"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("function", "what"),
    [
        ("error_in_one", "ValueError: from process 1"),
        ("two_errors", "OSError: from process 0"),
        ("killed", "ChildProcessError: process 0 of 2 was ended by SIGKILL"),
        ("status", "SystemExit: 7"),
        ("told_to_stop", "SystemExit: 143"),
        ("fine", "none"),
    ],
)
def test_what_went_wrong_first_ends_all(outcomes: dict[str, tuple[str, float]], function: str, what: str) -> None:
    said, seconds = outcomes[function]
    assert said.startswith(what)
    assert seconds < 30  # of the 60 that the others sleep


def test_an_error_that_cannot_be_pickled_comes_with_its_traceback(outcomes: dict[str, tuple[str, float]]) -> None:
    said, _ = outcomes["stubborn"]
    assert said.startswith("RuntimeError: process") and "raise Stubborn" in said and "as it is" in said


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, PROGRAM, name, str(tmp_path)]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@linux
def test_a_killed_launcher_leaves_no_process(tmp_path: Path, program: Callable[[str], subprocess.Popen[bytes]]) -> None:
    launcher = program("sleep")
    until(lambda: len(list(tmp_path.iterdir())) == 3)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert all(map(alive, pids))
    launcher.kill()
    until(lambda: not any(map(alive, pids)), seconds=20)


@linux
def test_workers_share_the_records_and_end_with_their_process(
    tmp_path: Path, program: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    process = program("loader")
    until((tmp_path / "said").is_file)
    said = json.loads((tmp_path / "said").read_text())
    numbers, pids, parents, shared = zip(*said["read"], strict=True)
    assert list(numbers) == list(range(100)) and all(shared)
    assert len(set(pids)) == 2 and said["pid"] not in {*pids, *parents}
    (server,) = set(parents)
    assert len(said["running"]) == 2 and all(map(alive, [*said["running"], server]))
    process.kill()
    until(lambda: not any(map(alive, [*said["running"], server])), seconds=20)


def test_a_loader_stays_as_it_is_where_no_server_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_serves_forks", False)
    loader = processes.use_served_forks(DataLoader([1, 2], num_workers=1))
    assert loader.multiprocessing_context is None and loader.worker_init_fn is None


@linux
def test_only_a_process_of_one_thread_and_without_gpus_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_serves_forks", False)
    monkeypatch.setattr(processes, "_native_threads", frozenset)
    monkeypatch.setattr(processes, "_THREADS_OF_IMPORTS", frozenset(["7", "8"]))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    assert processes._may_fork()
    for owner, name, value in (
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "is_initialized", lambda: True),
        (threading, "active_count", lambda: 2),
        (processes, "_native_threads", lambda: frozenset(["9"])),
        (processes, "_serves_forks", True),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(owner, name, value)
            assert not processes._may_fork()


@linux
def test_a_process_with_threads_leaves_pythons_fork_server_as_it_is() -> None:
    """A fork has none of OpenMP's threads and would wait for them for ever, in whatever the program starts later."""
    done = subprocess.run([sys.executable, PROGRAM, "forked late"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and json.loads(done.stdout) == 512**3, done.stderr


def test_this_process_is_not_killed_by_the_watch() -> None:
    processes.end_with_parent()  # it has no parent of multiprocessing's
    assert os.getpid() and "watch on the parent" not in [thread.name for thread in threading.enumerate()]
