"""What a case of the corpus is, and what the modules of the corpus share."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.modeling import build_model
from PIL import Image

from zeroshot_d2.__main__ import main
from zeroshot_d2.checkpoint import Checkpointer, ModelRecord
from zeroshot_d2.cli import load_config
from zeroshot_d2.demo_world import render


@dataclass(frozen=True)
class Case:
    """One input.

    Args:
        kind: the row of the table.
        name: says what is wrong with it; unique within the kind.
        run: makes the input in an empty folder, the current one, gives it to the project and returns what came of it.
        names: what a refusal must mention, such as the file or the key; None where the input must be read.
        reads: whether what ``run`` returned is the right reading; None where the input must be refused.
        warns: what the log must mention where it is read.
        canary: whether the input would run code or open a file outside; see :mod:`benchmarks.drills.fuzz`.
    """

    kind: str
    name: str
    run: Callable[[Path], Any]
    names: tuple[str, ...] | None = None
    reads: Callable[[Any], bool] | None = None
    warns: tuple[str, ...] = ()
    canary: bool = False


class CommandRefused(ValueError):
    """A command ended with a status that is not 0; its message is what the command said."""


def command(*words: object) -> str:
    """Run a verb of ``python -m zeroshot_d2`` in this process; what it printed.

    Raises:
        CommandRefused: the exit status is not 0.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(word) for word in words])
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
    if status:
        said = [line for line in err.getvalue().splitlines() if line.strip()]
        if any(line.startswith("usage:") for line in said):  # which stands before or behind the message
            said = [line for line in said if "error:" in line]
        progress = ("it/s]", "s/it]", "?it", "image/s]", "%|")
        said = [line for line in said if line != "(--traceback shows where)" and not any(mark in line for mark in progress)]
        raise CommandRefused("\n".join(said) or f"exit status {status}: {out.getvalue()[-300:]}")
    return out.getvalue()


# ------------------------------------------------------------------------------------------------------- inputs
def photo_array(index: int = 0) -> np.ndarray:
    """A photo of the demo world, (64, 64, 3) uint8."""
    return render(7, index).image


def save_photo(path: Path, index: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo_array(index)).save(path, **options)
    return path


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def encoded(array: np.ndarray, file_format: str, **options: Any) -> bytes:
    """An image file in memory."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, file_format, **options)
    return stream.getvalue()


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
WEB_PAGE = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>403</body></html>\n"


def not_a_file() -> dict[str, bytes]:
    """What a download may leave behind, whatever was asked for."""
    return {
        "empty": b"",
        "a web page": WEB_PAGE.encode(),
        "a pointer of Git LFS": LFS_POINTER.encode(),
        "zeros": bytes(4096),
        "text": b"not what it says\n" * 20,
    }


def damaged(whole: bytes, rng: random.Random, cuts: int = 3, flips: int = 3) -> Iterator[tuple[str, bytes]]:
    """Cut-off and altered copies of a file, with a name each."""
    for _ in range(cuts):
        end = rng.randrange(1, len(whole))
        yield f"cut off after {end} of {len(whole)} bytes", whole[:end]
    for _ in range(flips):
        changed = bytearray(whole)
        places = sorted(rng.randrange(len(whole)) for _ in range(max(1, len(whole) // 100)))
        for place in places:
            changed[place] ^= rng.randrange(1, 256)
        yield f"bytes changed from {places[0]} on", bytes(changed)


@functools.cache
def scratch() -> Path:
    """A folder that lives as long as the process, for what many cases need and none changes."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-shared-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def finished_run(system: str = "alignzeg") -> Path:
    """A run's folder with config.yaml and model_final.pth, its weights random; cases must not change it."""
    cfg = load_config(f"demo/{system}.yaml")
    model = build_model(cfg)
    folder = scratch() / system
    Checkpointer(model, str(folder), record=ModelRecord.for_training(cfg, model)).save("model_final", iteration=0)
    write(folder / "config.yaml", cfg.dump())
    return folder
