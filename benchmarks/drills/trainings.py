"""Short trainings that the drills interrupt, in processes that are forked: what takes seconds to import is imported once."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from zeroshot_d2.__main__ import main as zeroshot_d2
from zeroshot_d2.checkpoint import read_checkpoint
from zeroshot_d2.cli import import_systems
from zeroshot_d2.storage import write_text

ROOT = Path(__file__).resolve().parents[2]

SETS = """
from zeroshot_d2.demo_world import register_demo_world

register_demo_world("drill_train", seed=31, num_images=24, vocabulary="seen")
register_demo_world("drill_val", seed=32, num_images=12)
"""

SETTINGS = (
    *("DATASETS.TRAIN", "('drill_train',)", "DATASETS.TEST", "('drill_val',)", "DATALOADER.NUM_WORKERS", "1"),
    *("SOLVER.MAX_ITER", "8", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.IMS_PER_BATCH", "2", "TEST.EVAL_PERIOD", "4"),
    *("TEST.IMS_PER_BATCH", "4", "SEED", "5"),
)


def prepare(folder: Path) -> Path:
    """The file that registers the drills' data sets; imported here, so that forked processes have it."""
    path = folder / "drill_sets.py"
    write_text(path, SETS)
    import_systems([str(path)])
    torch.set_num_threads(1)
    return path


def arguments(sets: Path, output: Path, *words: str) -> list[str]:
    """The words behind ``train`` of a short training."""
    return ["--config-file", "demo/alignzeg.yaml", "--import", str(sets), *words, *SETTINGS, "OUTPUT_DIR", str(output)]


class Child:
    """A process that runs a command of the project, or any function."""

    def __init__(self, words: Sequence[str], log: Path, before: Callable[[], None] | None = None) -> None:
        """
        Args:
            words: of ``python -m zeroshot_d2``.
            log: gets what it prints.
            before: is called in the process ahead of the command.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        self._status: int | None = None
        self.log = log
        self.pid = os.fork()
        if self.pid == 0:
            _become(words, log, before)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def wait(self, seconds: float) -> int | None:
        """The exit status, or None where it still runs after that time."""
        end = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        return self.poll()

    def kill(self) -> None:
        """End it as a power cut would, without its knowing."""
        if self.poll() is None:
            os.kill(self.pid, 9)
            self.wait(10)


def _become(words: Sequence[str], log: Path, before: Callable[[], None] | None) -> None:
    """What the forked process does; it never returns."""
    status = 1
    try:
        with log.open("w") as stream:
            for descriptor in (1, 2):
                os.dup2(stream.fileno(), descriptor)
        os.setpgid(0, 0)
        if before is not None:
            before()
        status = zeroshot_d2(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # as the interpreter: print it and end with 1
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def spawned(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """The same as a process of its own, for runs in several processes."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "zeroshot_d2", *words],
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def fingerprint(output: Path) -> str:
    """A hash of the weights, the optimiser's state and the results that a run ended with.

    Raises:
        FileNotFoundError, ValueError: one of them is not there or damaged.
    """
    content = read_checkpoint(output / "model_final.pth")
    digest = hashlib.sha256((output / "results.json").read_bytes())
    for name, value in sorted(_leaves({"model": content["model"], "trainer": content["trainer"]})):
        digest.update(name.encode())
        digest.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else json.dumps(value).encode())
    return digest.hexdigest()


def damage_of_weights(file: Path) -> str:
    """What is wrong with a file of weights alone; "" for nothing."""
    try:
        read_checkpoint(file)
    except ValueError as error:
        return str(error)
    return ""


def _leaves(node: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(node, dict):
        return [leaf for key, value in node.items() for leaf in _leaves(value, f"{path}/{key}")]
    if isinstance(node, (list, tuple)):
        return [leaf for index, value in enumerate(node) for leaf in _leaves(value, f"{path}/{index}")]
    return [(path, node)]
