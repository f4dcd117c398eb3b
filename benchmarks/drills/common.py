"""What the drills share: their options, and a table of what was found."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from zeroshot_d2.storage import write_json


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options of every drill."""
    options = argparse.ArgumentParser(
        f"python -m benchmarks.drills {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seed", type=int, default=1, help="of every random choice")
    options.add_argument("--seconds", type=float, default=1800, help="no new case begins after this time")
    options.add_argument("--output", type=Path, default=Path("output/drills") / name, help="folder of the runs and results")
    return options


class Deadline:
    """Says when the time of a drill is over."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def over(self) -> bool:
        return time.monotonic() >= self._end


def report(output: Path, headings: Sequence[str], rows: Sequence[Sequence[object]], **details: object) -> None:
    """Print a Markdown table and write it, with ``details``, to ``results.json`` in the folder ``output``."""
    print(tabulate(rows, headers=headings, tablefmt="github"))
    write_json(output / "results.json", {"table": [dict(zip(headings, row, strict=True)) for row in rows], **details})
