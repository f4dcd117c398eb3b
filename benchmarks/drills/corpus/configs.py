"""Config files."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from zeroshot_d2.cli import load_config

from .case import Case, damaged, not_a_file, write

KIND = "configs"
SYSTEM = "MODEL: {META_ARCHITECTURE: AlignZeg}\n"


def _case(
    name: str,
    text: str | bytes | Callable[[Path], Any],
    words: tuple[str, ...] | None,
    reads: Callable[[CfgNode], bool] | None = None,
    **more: str,
) -> Case:
    """``more`` are further files of the folder, by their names without .yaml."""

    def run(folder: Path) -> CfgNode:
        for other, content in more.items():
            write(folder / f"{other}.yaml", content)
        text(folder / "run.yaml") if callable(text) else write(folder / "run.yaml", text)
        return load_config(folder / "run.yaml")

    return Case(KIND, name, run, words, reads)


def _opts(name: str, words: tuple[str, ...] | None, *opts: object, reads: Callable[[CfgNode], bool] | None = None) -> Case:
    return Case(KIND, f"overrides: {name}", lambda folder: load_config("demo/alignzeg.yaml", opts), words, reads)


def cases(rng: random.Random) -> list[Case]:
    bomb = "A: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
        f"{new}: &{new.lower()} [{', '.join([f'*{old.lower()}'] * 9)}]\n"
        for old, new in zip("ABCDEFGH", "BCDEFGHI", strict=True)
    )
    whole = (SYSTEM + "SOLVER:\n  MAX_ITER: 5\n  BASE_LR: 0.1\nDATASETS:\n  TRAIN: ('a',)\n").encode()
    found = [_case(f"{what} as .yaml", content, ("run.yaml",)) for what, content in not_a_file().items()]
    found += [
        # A text that is cut between two lines is still a config.
        _case(f"YAML {what}", content, (), lambda cfg: cfg.MODEL.META_ARCHITECTURE == "AlignZeg")
        for what, content in damaged(whole, rng, 6, 6)
    ]
    found += [
        _case("as it should be", whole, None, lambda cfg: cfg.SOLVER.MAX_ITER == 5),
        _case("a byte-order mark", b"\xef\xbb\xbf" + whole, None, lambda cfg: cfg.SOLVER.MAX_ITER == 5),
        _case("UTF-16", whole.decode().encode("utf-16"), None, lambda cfg: cfg.SOLVER.MAX_ITER == 5),
        _case("CR LF", whole.replace(b"\n", b"\r\n"), None, lambda cfg: cfg.SOLVER.MAX_ITER == 5),
        _case("Latin-1", SYSTEM.encode() + "OUTPUT_DIR: fl\xfcge\n".encode("latin-1"), ("run.yaml", "UTF-8")),
        _case("a list", "- a\n- b\n", ("run.yaml", "list")),
        _case("a number", "3\n", ("run.yaml",)),
        _case("two documents", SYSTEM + "---\n" + SYSTEM, ("run.yaml",)),
        _case("tabs for blanks", "MODEL:\n\tMETA_ARCHITECTURE: AlignZeg\n", ("run.yaml", "line 2")),
        _case("a bracket that stays open", SYSTEM + "DATASETS: {TRAIN: [a\n", ("run.yaml",)),
        _case("no system", "SOLVER: {MAX_ITER: 5}\n", ("run.yaml", "MODEL.META_ARCHITECTURE")),
        _case("a system that is none", "MODEL: {META_ARCHITECTURE: Mask2Former}\n", ("Mask2Former",)),
        _case("a system of Detectron2", "MODEL: {META_ARCHITECTURE: GeneralizedRCNN}\n", ("GeneralizedRCNN",)),
        _case("a key that is none", SYSTEM + "SOLVER: {BASE_LRR: 1.0}\n", ("run.yaml", "SOLVER.BASE_LRR", "SOLVER.BASE_LR")),
        _case("a key of the other system", SYSTEM.replace("}", ", EPSILON: {NUM_GROUPS: 4}}"), ("run.yaml", "EPSILON")),
        _case("a key twice", SYSTEM + "SOLVER:\n  MAX_ITER: 5\n  MAX_ITER: 7\n", ("run.yaml", "MAX_ITER")),
        _case("a section twice", SYSTEM + "SOLVER: {MAX_ITER: 5}\nSOLVER: {BASE_LR: 0.1}\n", ("run.yaml", "SOLVER")),
        _case("a section without content", SYSTEM + "SOLVER:\n", ("SOLVER",)),
        _case("a value where a section is", SYSTEM + "SOLVER: 3\n", ("run.yaml", "SOLVER")),
        _case("a section where a value is", SYSTEM + "SEED: {A: 1}\n", ("run.yaml", "SEED")),
        _case("a key without a value", SYSTEM + "SOLVER: {MAX_ITER: }\n", ("SOLVER.MAX_ITER",)),
        _case("a text where a number is", SYSTEM + "SOLVER: {MAX_ITER: many}\n", ("run.yaml", "SOLVER.MAX_ITER", "many")),
        _case("a fraction where a number is", SYSTEM + "SOLVER: {MAX_ITER: 1.5}\n", ("run.yaml", "SOLVER.MAX_ITER", "1.5")),
        _case("a whole number where a fraction is", SYSTEM + "SOLVER: {BASE_LR: 1}\n", ("run.yaml", "SOLVER.BASE_LR", "1")),
        _case("a number as key", SYSTEM + "3: 4\n", ("run.yaml", "3")),
        _case("a list as key", SYSTEM + "[a, b]: 4\n", ("run.yaml",)),
        _case("yes where a text is", SYSTEM + "OUTPUT_DIR: yes\n", ("run.yaml", "OUTPUT_DIR")),
        _case("a date where a text is", SYSTEM + "OUTPUT_DIR: 2024-02-30\n", ("run.yaml",)),
        _case("VERSION 1", SYSTEM + "VERSION: 1\n", ("run.yaml", "VERSION", "1")),
        _case("VERSION two", SYSTEM + "VERSION: two\n", ("run.yaml", "VERSION", "two")),
        _case("a _BASE_ that is absent", SYSTEM + "_BASE_: absent.yaml\n", ("run.yaml", "absent.yaml")),
        _case("a _BASE_ that is the file itself", SYSTEM + "_BASE_: run.yaml\n", ("run.yaml", "_BASE_")),
        _case("two _BASE_ in a circle", SYSTEM + "_BASE_: other.yaml\n", ("_BASE_",), other="_BASE_: run.yaml\n"),
        _case("a _BASE_ that is a number", SYSTEM + "_BASE_: 3\n", ("run.yaml", "_BASE_", "3")),
        _case("a _BASE_ that is a folder", SYSTEM + "_BASE_: .\n", ("run.yaml", "_BASE_")),
        _case("a _BASE_ that is no YAML", SYSTEM + "_BASE_: other.yaml\n", ("other.yaml",), other="{"),
        _case("a _BASE_ in a list", SYSTEM + "_BASE_: [other.yaml]\n", None, lambda cfg: cfg.SEED == 3, other="SEED: 3\n"),
        _case("an alias", SYSTEM + "SEED: &seed 3\nSOLVER: {MAX_ITER: *seed}\n", None, lambda cfg: cfg.SOLVER.MAX_ITER == 3),
        _case("aliases that stand for gigabytes", bomb + SYSTEM, ("run.yaml",)),
        _case("an alias of itself", SYSTEM + "A: &a [*a]\n", ("run.yaml",)),
        _case("5,000 brackets", SYSTEM + "A: " + "[" * 5000 + "]" * 5000, ("run.yaml",)),
        _case(
            "a value of 3,000 brackets",
            SYSTEM + f"OUTPUT_DIR: '{'(' * 3000}'\n",
            ("OUTPUT_DIR",),
            lambda cfg: True,
        ),
        _case("a number of 10,000 digits", SYSTEM + f"SEED: {'9' * 10000}\n", ("run.yaml",)),
        _case("a folder", Path.mkdir, ("run.yaml",)),
        _case("absent", lambda path: None, ("run.yaml",)),
        _opts("a value is missing", ("SOLVER.MAX_ITER",), "SOLVER.MAX_ITER"),
        _opts("a key that is none", ("SOLVER.MAX_ITERS", "SOLVER.MAX_ITER"), "SOLVER.MAX_ITERS", 3),
        _opts("a section", ("SOLVER",), "SOLVER", 3),
        _opts("a key below a value", ("SOLVER.MAX_ITER.X",), "SOLVER.MAX_ITER.X", 3),
        _opts("an empty key", (), "", 3),
        _opts("None", ("SOLVER.MAX_ITER",), "SOLVER.MAX_ITER", "None"),
        _opts("a mapping", ("SOLVER.MAX_ITER",), "SOLVER.MAX_ITER", "{'a': 1}"),
        _opts("_BASE_", ("_BASE_",), "_BASE_", "a.yaml"),
        _opts("a text where a list is", ("DATASETS.TEST", "demo_world_val"), "DATASETS.TEST", "demo_world_val"),
        _opts("a list as a text", None, "DATASETS.TEST", "('a', 'b')", reads=lambda cfg: cfg.DATASETS.TEST == ("a", "b")),
        _opts("3,000 brackets", ("OUTPUT_DIR",), "OUTPUT_DIR", "(" * 3000, reads=lambda cfg: True),
    ]
    return found
