"""Prediction's inputs and results as files: what an input is called, and whether its results are whole.

Of every input there is a *record*: a JSON file that is written after all other files of its results, and that says which
input, model, settings and vocabulary they come from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from .storage import read_json, write_json

RUN_KEY = "run"
"""The key of a record under which the digest of :func:`run_digest` stands."""

# What results do not depend on: where the model and the results lie, how the work is done, what is in the vocabulary anyway.
_UNIMPORTANT_OPTIONS = {
    *("input", "output", "model", "config_file", "weights", "opts", "modules", "vocabulary", "unseen", "unseen_only"),
    *("format", "image_prefix", "batch_size", "max_pixels", "num_processes", "skip_finished"),
}


@dataclass(frozen=True)
class Source:
    """A photo or a video.

    Args:
        path: of the file.
        name: how its results begin; unique.
        file_name: what other programs know it by: its path, with "/", from the folder that holds all inputs.
    """

    path: Path
    name: str
    file_name: str


def sources_of(paths: Sequence[Path], reserved: Iterable[str] = ()) -> list[Source]:
    """The inputs with their names.

    Args:
        paths: of the files.
        reserved: names that results must not begin with.
    """
    absolute = [path.absolute() for path in paths]
    drives = {path.anchor for path in absolute}
    common = Path(os.path.commonpath([path.parent for path in absolute])) if len(drives) == 1 else None
    file_names = [path.relative_to(common or path.anchor).as_posix() for path in absolute]
    return [Source(*values) for values in zip(paths, output_names(paths, reserved), file_names, strict=True)]


def output_names(paths: Sequence[Path], reserved: Iterable[str] = ()) -> list[str]:
    """A name per input, unique also where letter case does not matter: the stem; where that is taken, the file name; then
    with a number."""
    taken = {name.lower() for name in reserved}
    names = []
    for path in paths:
        candidates = [path.stem, path.name, *(f"{path.name}_{i}" for i in range(2, len(paths) + 3))]
        name = next(candidate for candidate in candidates if candidate.lower() not in taken)
        taken.add(name.lower())
        names.append(name)
    return names


def run_digest(cfg: CfgNode, weights_sha256: str, vocabulary: Any, args: argparse.Namespace) -> str:
    """16 hexadecimal digits that tell apart what results depend on: weights, config, vocabulary, options."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = cfg.MODEL.WEIGHTS = cfg.MODEL.DEVICE = ""
    cfg.INPUT.MAX_PIXELS = cfg.TEST.IMS_PER_BATCH = 0
    options = {key: str(value) for key, value in vars(args).items() if key not in _UNIMPORTANT_OPTIONS}
    content = json.dumps([weights_sha256, cfg.dump(), vocabulary, options], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def write_record(record: Path, content: Mapping[str, Any], run: str) -> None:
    """Write the record of an input, when all other files of its results are whole.

    Args:
        record: the file.
        content: with the path of the input as "image" or "video".
        run: see :func:`run_digest`.
    """
    write_json(record, {**content, RUN_KEY: run})


def finished(record: Path, source: Source, run: str, files: Collection[Path] = ()) -> dict[str, Any] | None:
    """The content of an input's record, if its results are whole; else None.

    They are not if they come from another file, model, vocabulary or settings, or are older than the input.

    Args:
        record: the file.
        source: the input.
        run: see :func:`run_digest`.
        files: the other files of the results.
    """
    if not all(file.exists() for file in (record, source.path, *files)):
        return None
    if record.stat().st_mtime_ns < source.path.stat().st_mtime_ns:
        return None
    try:
        content = read_json(record)
    except ValueError:  # a file of somebody else's, which the results will replace
        return None
    if not isinstance(content, dict) or content.get(RUN_KEY) != run:
        return None
    return content if str(source.path) in (content.get("image"), content.get("video")) else None
