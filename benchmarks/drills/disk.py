"""Lets commands meet a full disk at random moments: nothing half stands at a final name, nothing hangs, and each says why.

    python -m benchmarks.drills disk [--moments 40] [--seed 1] [--seconds 1200]

As root the disk is a small file system in memory (tmpfs), mounted for the command alone. Elsewhere a limit on the size of
files stands for it, which small files never meet.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from tqdm import tqdm

from zeroshot_d2.checkpoint import damage_of
from zeroshot_d2.demo_world import render
from zeroshot_d2.images import write_image
from zeroshot_d2.storage import UNFINISHED

from . import common, trainings

LIMIT = 300.0  # seconds that a command may take
HANG = 30.0  # seconds that it may go on after the disk is full
APPENDED = ("log.txt", "metrics.json", "events.out")
TEXTS = ("No space left", "File too large", "Disk quota")

_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 0x40000


def can_mount() -> bool:
    """Whether this process may mount a file system of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            mount_small_disk(Path("/tmp"), 1 << 20)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def mount_small_disk(folder: Path, size: int) -> None:
    """Mount a file system of ``size`` bytes on ``folder``, for this process and its children alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    for call in (
        lambda: libc.unshare(_CLONE_NEWNS),
        lambda: libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None),
        lambda: libc.mount(b"drill", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()),
    ):
        if call():
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def limit_file_size(size: int) -> None:
    """Let writing fail in files longer than ``size`` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def half_files(folder: Path) -> list[str]:
    """Files in ``folder`` that are not whole, and what was left of unfinished ones."""
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(APPENDED)):
        if file.name.startswith(UNFINISHED):
            found.append(f"{file.name} is left")
            continue
        try:
            problem = _READERS.get(file.suffix, _not_empty)(file)
        except Exception as error:  # whatever a reader says of half a file
            problem = f"{type(error).__name__}: {error}"
        if problem:
            found.append(f"{file.name}: {problem}")
    return found


def _not_empty(file: Path) -> str:
    return "" if file.stat().st_size or file.name == ".lock" else "is empty"


def _picture(file: Path) -> str:
    with Image.open(file) as picture:
        picture.load()
    return ""


def _onnx(file: Path) -> str:
    import onnx

    onnx.checker.check_model(onnx.load(str(file)))
    return ""


_READERS: dict[str, Callable[[Path], Any]] = {
    ".pth": damage_of,
    ".safetensors": trainings.damage_of_weights,
    ".json": lambda file: json.loads(file.read_text()) and "",
    ".yaml": lambda file: yaml.safe_load(file.read_text()) and "",
    ".png": _picture,
    ".onnx": _onnx,
}


@dataclass
class Outcome:
    """How a command ended: exit status (None: not in time), seconds, files that are not whole, {file: bytes} of all."""

    status: int | None
    seconds: float
    half: list[str]
    files: dict[str, int]


def run(words: Sequence[str], folder: Path, log: Path, limit: Callable[[], None]) -> Outcome:
    """Run a command whose output ``folder`` is the small disk, which lasts as long as the process that mounted it."""
    folder.mkdir(parents=True)
    findings = log.with_suffix(".found.json")
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        limit()
        start = time.monotonic()
        if "--num-gpus" in words:
            process = trainings.spawned(words, log)
            with contextlib.suppress(Exception):
                process.wait(LIMIT)
            status = process.poll()
        else:
            status = trainings.Child(words, log).wait(LIMIT)
        seconds, half = time.monotonic() - start, half_files(folder)
        sizes = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        with contextlib.suppress(OSError):
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        findings.write_text(json.dumps([status, seconds, half, sizes]))
        os._exit(0)
    os.waitpid(pid, 0)
    return Outcome(*json.loads(findings.read_text()))


def judge(outcome: Outcome, whole: Outcome, log: Path) -> str:
    """What is wrong with how a command met the full disk, compared with the same with room; "" for nothing."""
    late = outcome.seconds - whole.seconds
    if outcome.status is None or late > HANG:
        return f"it went on for {late:.0f} s longer than with room"
    if outcome.half:
        return "; ".join(outcome.half)
    missing = sorted(name for name in set(whole.files) - set(outcome.files) if not name.startswith(APPENDED))
    if outcome.status == 0 and missing:
        return f"it ended with 0 without {missing[0]}"
    if outcome.status != 0 and not any(text in log.read_text(errors="replace") for text in TEXTS):
        return "it did not say that the disk is full"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    options = common.parser("disk", __doc__)
    options.add_argument("--moments", type=int, default=40, help="how many commands meet a full disk")
    options.add_argument("--one-process", action="store_true", help="leave out trainings in two processes")
    args = options.parse_args(argv)
    deadline, rng = common.Deadline(args.seconds), random.Random(args.seed)
    shutil.rmtree(args.output, ignore_errors=True)
    sets = trainings.prepare(args.output)
    mounts = can_mount()

    model, photos = args.output / "model", args.output / "photos"
    if trainings.Child(["train", *trainings.arguments(sets, model)], args.output / "model.log").wait(LIMIT) != 0:
        raise RuntimeError(f"the training that meets no full disk failed, see {args.output / 'model.log'}")
    for index in range(8):
        write_image(photos / f"{index}.png", render(args.seed, index).image)
    commands: dict[str, Callable[[Path], list[str]]] = {
        "train": lambda output: ["train", *trainings.arguments(sets, output)],
        "train, two processes": lambda output: ["train", *trainings.arguments(sets, output, "--num-gpus", "2")],
        "predict": lambda output: ["predict", "--model", str(model), "--input", str(photos), "--output", str(output)],
        "export": lambda output: ["export", "--model", str(model), "--output", str(output / "model.onnx")],
    }
    if args.one_process:
        del commands["train, two processes"]
    shares = {"train": 8, "train, two processes": 1, "predict": 4, "export": 3}
    whole: dict[str, Outcome] = {}
    rows: dict[str, list[int]] = {}
    failures = []
    for number in tqdm(range(args.moments), desc="full disks", unit="moment"):
        if deadline.over():
            break
        kind = rng.choices(list(commands), [shares[name] for name in commands])[0]
        if kind not in whole:
            folder, log = args.output / f"whole_{len(whole)}", args.output / f"whole_{len(whole)}.log"
            whole[kind] = run(commands[kind](folder), folder, log, lambda: None)
            if whole[kind].status or whole[kind].half:
                raise RuntimeError(f"{kind} failed with room on the disk ({whole[kind]}), see {log}")
        written = whole[kind].files.values()
        room = int(rng.uniform(0.02, 0.95) * (sum(written) if mounts else max(written)))
        folder, log = args.output / f"full_{number}", args.output / f"full_{number}.log"
        limit = partial(mount_small_disk, folder, room) if mounts else partial(limit_file_size, room)
        outcome = run(commands[kind](folder), folder, log, limit)
        problem = judge(outcome, whole[kind], log)
        row = rows.setdefault(kind, [0, 0, 0])
        row[0] += 1
        row[1] += outcome.status != 0
        row[2] += not problem
        if problem:
            failures.append({"run": number, "command": kind, "room": room, "problem": problem, "log": str(log)})
        shutil.rmtree(folder, ignore_errors=True)
    table = [[kind, *row] for kind, row in sorted(rows.items())]
    table.append(["all", *(sum(row[i] for row in rows.values()) for i in range(3))])
    disk = "small file system" if mounts else "limit on the size of files"
    common.report(args.output, ["command", "runs", "met the full disk", "as it should"], table, disk=disk, failures=failures)
    for failure in failures:
        print(failure)
    return 1 if failures else 0
