"""Processes that start quickly, end together, and say what went wrong first."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import connection, forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader

GRACE = 3.0
"""Seconds that the others have to end by themselves when a process has failed."""


def _native_threads() -> frozenset[str]:
    """The identifiers of this process's threads on Linux, but for the first, whose identifier is the process's."""
    return frozenset(os.listdir("/proc/self/task") if sys.platform == "linux" else ()) - {str(os.getpid())}


# Those of the libraries that are imported: OpenBLAS ends its own before a fork. A later one may be OpenMP's or CUDA's, which
# a fork would lack.
_THREADS_OF_IMPORTS = _native_threads()
_serves_forks = False


def give_back_memory() -> None:
    """Have the C library give freed memory back to the system, which it keeps else, a part for each thread."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc has it, musl has not
    if trim is not None:
        trim(0)


# ------------------------------------------------------------------------------------------------- loader workers
def serve_forks() -> None:
    """Let the workers of :func:`use_served_forks` be forked from a copy of this process as it is now.

    The copy is Python's fork server, forked instead of started anew: what is imported is not imported again, and its memory
    is shared. Call it before there are threads, CUDA and process groups, none of which survive a fork: OpenMP waits for its
    threads for ever there. In a process that has some, as a notebook has after its first prediction, and elsewhere than on
    Linux nothing is done, and workers start as torch has it.
    """
    global _serves_forks
    if _serves_forks or not _survives_fork():
        return
    resource_tracker.ensure_running()
    forkserver.set_forkserver_preload([])  # everything is imported
    start, util.spawnv_passfds = util.spawnv_passfds, _fork_in_place
    try:
        forkserver.ensure_running()
    finally:
        util.spawnv_passfds = start
    _serves_forks = True


def _fork_in_place(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
    """Do in a fork what ``python -c code`` would do in a new process, with the same files open; the fork's process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in passfds:
                with contextlib.suppress(OSError):  # the descriptor of this list
                    os.close(int(name))
        gc.freeze()  # what is never collected is never written to, and stays shared
        exec(args[-1], {})
    finally:
        os._exit(0)


def use_served_forks(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The same loader, with workers that are forked from what :func:`serve_forks` left, if this process called it."""
    if loader.num_workers and _serves_forks:
        loader.multiprocessing_context = "forkserver"
        loader.worker_init_fn = partial(_begin_worker, loader.worker_init_fn)
    return loader


def _begin_worker(then: Callable[[int], None] | None, worker_id: int) -> None:
    end_with_parent()  # torch watches the parent too, but that is the fork server
    if then is not None:
        then(worker_id)


# ----------------------------------------------------------------------------------------------- training processes
@dataclass(frozen=True)
class _Failure:
    index: int
    error: Exception | None  # None where it cannot be pickled
    trace: str
    when: float = field(default_factory=time.monotonic)


def run_together(function: Callable[..., None], count: int, args: tuple[Any, ...] = ()) -> None:
    """Call ``function(index, *args)`` in ``count`` processes and wait for all of them.

    When one fails the others have :data:`GRACE` seconds, then they are killed. SIGTERM is passed on to all. They also end
    when this process ends, in whatever way.

    Raises:
        Exception: the first of any process, itself where it can be pickled.
        ChildProcessError: a process was killed.
        SystemExit: a process ended with another exit status than 0.
    """
    context = multiprocessing.get_context("fork" if _may_fork() else "spawn")
    processes: list[BaseProcess] = []
    reports: dict[Connection, int] = {}
    try:
        with _PassedOn(processes) as terminated:
            for index in range(count):
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_call, args=(index, function, args, sender))  # type: ignore[attr-defined]
                process.start()
                sender.close()
                processes.append(process)
                reports[receiver] = index
            if terminated.is_set():  # it came before all of them were there
                for process in processes:
                    process.terminate()
            failure = _first_failure(processes, reports)
            _end(processes, GRACE)
    except BaseException:  # such as KeyboardInterrupt
        _end(processes, GRACE)
        raise
    if terminated.is_set() and any(process.exitcode for process in processes):
        raise SystemExit(128 + signal.SIGTERM)
    if isinstance(failure, _Failure):
        where = f"process {failure.index} of {count}:\n{failure.trace}"
        raise RuntimeError(where) if failure.error is None else failure.error from _Elsewhere(where)
    if failure is not None:
        _raise_status(failure, processes[failure].exitcode or 0, count)


class _Elsewhere(Exception):
    """The traceback of another process, as the cause of its error here."""

    def __str__(self) -> str:
        return f"in {self.args[0]}"


def _survives_fork() -> bool:
    """Whether a fork of this process works as it does: threads and CUDA are not there in it."""
    return (
        sys.platform == "linux"
        and not torch.cuda.is_initialized()
        and threading.active_count() == 1
        and _native_threads() <= _THREADS_OF_IMPORTS
    )


def _may_fork() -> bool:
    """Whether training processes may be forks of this one, which saves each the imports; they need the GPUs."""
    return _survives_fork() and torch.cuda.device_count() == 0 and not _serves_forks  # a server has one parent


def _call(index: int, function: Callable[..., None], args: tuple[Any, ...], report: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork has its parent's
    serve_forks()
    end_with_parent()
    try:
        function(index, *args)
    except KeyboardInterrupt:  # which the parent has got too
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        report.send(_Failure(index, _portable(error), traceback.format_exc()))
        raise SystemExit(1) from None


def _portable(error: Exception) -> Exception | None:
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a class of somebody else's does
        return None
    return error if str(copy) == str(error) else None


def _first_failure(processes: Sequence[BaseProcess], reports: dict[Connection, int]) -> _Failure | int | None:
    """Wait until all have ended or one has failed: what it reported, or its index; None where all went well."""
    running = {process.sentinel: index for index, process in enumerate(processes)}
    listening = dict(reports)
    while running:
        ready = connection.wait([*listening, *running])
        ended = {running.pop(sentinel) for sentinel in [item for item in ready if item in running]}
        for index in ended:
            processes[index].join()
        killed = [index for index in ended if (processes[index].exitcode or 0) < 0]
        if killed:  # what the others report is the loss of its connections
            return killed[0]
        failures = []
        for report in [item for item in ready if item in listening]:
            del listening[report]
            with contextlib.suppress(EOFError):  # it has ended without a report
                failures.append(report.recv())
        if failures:
            return min(failures, key=lambda failure: failure.when)
        for index in ended:
            if processes[index].exitcode:
                return index
    return None


def _end(processes: Sequence[BaseProcess], seconds: float) -> None:
    """Wait for the processes, then kill those that are left."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        process.kill()
        process.join()


def _raise_status(index: int, status: int, count: int) -> None:
    if status > 0:
        raise SystemExit(status)
    name = signal.Signals(-status).name
    raise ChildProcessError(
        f"process {index} of {count} was ended by {name}, and the others with it"
        + ("; the machine may have run out of memory" if name == "SIGKILL" else "")
    )


class _PassedOn:
    """Within the block SIGTERM goes on to ``processes``; gives the event that it came."""

    def __init__(self, processes: Sequence[BaseProcess]) -> None:
        self._processes = processes
        self._came = threading.Event()
        self._previous: Any = None

    def __enter__(self) -> threading.Event:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._pass_on)
        return self._came

    def _pass_on(self, number: int, frame: object) -> None:
        self._came.set()
        for process in self._processes:
            process.terminate()

    def __exit__(self, *error: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._previous)


def end_with_parent() -> None:
    """Kill this process as soon as the one that started it through ``multiprocessing`` is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent,), name="watch on the parent", daemon=True).start()


def _watch(parent: BaseProcess) -> None:
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
