"""Files of results that figures are drawn from."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .case import Case, command, finished_run, not_a_file, write

KIND = "results"


def _iou(name: str, content: Any, words: tuple[str, ...]) -> Case:
    """``results.json`` for the bars of IoU per class."""

    def run(folder: Path) -> str:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        write(folder / "results.json", data)
        return command("figures", "per-class-iou", "--results", "results.json", "--output", "iou.png")

    return Case(KIND, f"per-class-iou: {name}", run, words, None)


def _sweep(name: str, spoil: Callable[[Path], Any], words: tuple[str, ...], key: str = "MODEL.EPSILON.NUM_GROUPS") -> Case:
    """A folder with config.yaml and results.json for the sweep of a key."""

    def run(folder: Path) -> str:
        write(folder / "run/config.yaml", (finished_run("epsilon") / "config.yaml").read_bytes())
        write(folder / "run/results.json", json.dumps({"data": {"ZSL_mAP": 50.0, "GZSL_mAP": 60.0}}))
        spoil(folder / "run")
        return command("figures", "sweep", "--results", "run", "--key", key, "--output", "sweep.png")

    return Case(KIND, f"sweep: {name}", run, words, None)


def cases(rng: random.Random) -> list[Case]:
    data = "demo_world_val"
    return [
        *(_iou(what, content, ("results.json",)) for what, content in not_a_file().items()),
        _iou("a list", [1, 2], ("results.json",)),
        _iou("a number", 3, ("results.json",)),
        _iou("no data set", {}, ("results.json",)),
        _iou("a data set that is not registered", {"absent": {"IoU": {}}}, ("results.json", "absent")),
        _iou("no IoU", {data: {"mIoU": 3.0}}, ("results.json", "IoU")),
        _iou("numbers that are a list", {data: [1]}, ("results.json", data)),
        _iou("IoU that is a number", {data: {"IoU": 3.0}}, ("results.json", "IoU")),
        _iou("IoU of other classes", {data: {"IoU": {"cat": 3.0}}}, ("results.json",)),
        _iou("IoU of texts", {data: {"IoU": {"water": "high"}}}, ("results.json",)),
        _sweep("a key that is none", lambda run: None, ("MODEL.EPSILON.GROUPS",), "MODEL.EPSILON.GROUPS"),
        _sweep("no config", lambda run: (run / "config.yaml").unlink(), ("config.yaml",)),
        _sweep("an empty config", lambda run: write(run / "config.yaml", ""), ("config.yaml",)),
        _sweep("a config that is a list", lambda run: write(run / "config.yaml", "- a\n"), ("config.yaml",)),
        _sweep("a config that is no YAML", lambda run: write(run / "config.yaml", "{"), ("config.yaml",)),
        _sweep("no results", lambda run: (run / "results.json").unlink(), ("results.json",)),
        _sweep("empty results", lambda run: write(run / "results.json", "{}"), ("results.json",)),
        _sweep(
            "results without the numbers",
            lambda run: write(run / "results.json", '{"data": {}}'),
            ("results.json", "ZSL_mAP"),
        ),
        _sweep("results that are a list", lambda run: write(run / "results.json", "[1]"), ("results.json",)),
        _sweep(
            "numbers that are texts",
            lambda run: write(run / "results.json", '{"data": {"ZSL_mAP": "a", "GZSL_mAP": "b"}}'),
            ("results.json",),
        ),
    ]
