"""Entries of the cache of label embeddings: each must be computed anew, with a word about it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zeroshot_d2.label_embeddings import Embedded, cached_embeddings
from zeroshot_d2.storage import cache_directory

from .case import Case, damaged, not_a_file, write

KIND = "caches"
PROMPTS = ("cat", "dog")
VECTORS = torch.eye(2)


def _case(name: str, spoil: Callable[[Path], Any], warns: tuple[str, ...] = ("damaged",)) -> Case:
    def run(folder: Path) -> torch.Tensor:
        arguments: dict[str, Any] = {"source": str(folder), "prompts": PROMPTS, "templates": ("a {}",)}
        before = set(cache_directory().glob("*"))
        cached_embeddings(lambda: Embedded(VECTORS), **arguments)
        (entry,) = set(cache_directory().glob("*")) - before
        spoil(entry)
        return cached_embeddings(lambda: Embedded(VECTORS), **arguments).vectors

    return Case(KIND, name, run, None, lambda vectors: torch.equal(vectors, VECTORS), warns)


def _changed(name: str, warns: tuple[str, ...] = ("damaged",), **arrays: Any) -> Case:
    def spoil(entry: Path) -> None:
        with np.load(entry) as stored:
            content = {**stored, **arrays}
        np.savez(entry, **{key: array for key, array in content.items() if array is not None})

    return _case(name, spoil, warns)


def cases(rng: random.Random) -> list[Case]:
    seeds = [rng.random() for _ in range(6)]

    def broken(entry: Path, seed: float, number: int) -> None:
        write(entry, list(damaged(entry.read_bytes(), random.Random(seed), 3, 3))[number][1])

    def replaced_by_folder(entry: Path) -> None:
        entry.unlink()
        entry.mkdir()

    return [
        *(_case(what, lambda entry, content=content: write(entry, content)) for what, content in not_a_file().items()),
        *(
            _case(f"{'cut off' if number < 3 else 'altered'}, {number}", lambda entry, s=seed, n=number: broken(entry, s, n))
            for number, seed in enumerate(seeds)
        ),
        _changed("no vectors", embeddings=None),
        _changed("no key", key=None),
        _changed("of other prompts", (), key=np.array("other")),
        _changed("too few vectors", embeddings=np.ones((1, 2), np.float32)),
        _changed("vectors of 64 bits", embeddings=np.ones((2, 2))),
        _changed("vectors of NaN", embeddings=np.full((2, 2), np.nan, np.float32)),
        _changed("one vector", embeddings=np.ones(2, np.float32)),
        _changed("vectors as objects", embeddings=np.array([[1, "a"], [2, "b"]], dtype=object)),
        _changed("no note", note=None),
        _case("a folder", replaced_by_folder, ("cannot be written",)),
    ]
