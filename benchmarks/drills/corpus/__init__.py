"""The bad inputs of the drill "fuzz", by kind: each makes its files in a folder of its own and gives them to the project."""

from __future__ import annotations

import importlib
import random

from .case import Case

KINDS: tuple[str, ...] = (
    "images",
    "label_images",
    "releases",
    "label_columns",
    "vocabularies",
    "word_vectors",
    "configs",
    "config_values",
    "commands",
    "checkpoints",
    "caches",
    "results",
    "hostile",
)
"""The modules of this package, in the order of the table."""


def all_cases(seed: int) -> list[Case]:
    """The corpus; ``seed`` decides where files are cut and which of their bytes are damaged."""
    rng = random.Random(seed)
    return [
        case for kind in KINDS for case in importlib.import_module(f"{__name__}.{kind}").cases(random.Random(rng.random()))
    ]
