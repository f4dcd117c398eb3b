"""Where numbers come from: what a rerun needs to know, and what may explain that it differs."""

from __future__ import annotations

import functools
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from . import __version__


def run_facts(cfg: CfgNode) -> dict[str, Any]:
    """What ``results.json`` says of a run.

    Returns:
        {"version", "commit": of the project or None outside of a clone, "command", "seed", "processes", "threads": of each,
        "device", "cpu", "torch"}.
    """
    return {
        "version": __version__,
        "commit": _commit(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": cfg.SEED,
        "processes": comm.get_world_size(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cfg.MODEL.DEVICE.startswith("cuda") else cfg.MODEL.DEVICE,
        "cpu": _cpu(),
        "torch": torch.__version__,
    }


def without_run(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What a rerun must give again: results by data set, less their :func:`run_facts`."""
    return {name: {key: value for key, value in numbers.items() if key != "run"} for name, numbers in results.items()}


@functools.cache
def _commit() -> str | None:
    """Of the clone that this file lies in, with "+" where files were changed; None where there is none."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True, timeout=60).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.strip() + ("+" if changes else "")


@functools.cache
def _cpu() -> str:
    """The processor's name and what torch uses of it."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
