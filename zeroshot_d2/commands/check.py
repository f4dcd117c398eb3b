"""Look data sets over.

python -m zeroshot_d2.datasets list
python -m zeroshot_d2.datasets check NAME [--limit N] [--workers N] [--output FOLDER] [--import FILE]
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate

from .. import demo_world
from .check import check, contact_sheet


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 if the data set has faults."""
    parser = argparse.ArgumentParser(prog="python -m zeroshot_d2.datasets", description="Look data sets over.")
    parser.add_argument("--import", dest="script", help="a script that registers data sets of your own; run first")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names, protocols and numbers of classes of the registered data sets")
    look = commands.add_parser(
        "check",
        help="read a data set: counts, damaged files, strange label values, class frequencies, a contact sheet",
    )
    look.add_argument("name")
    look.add_argument("--limit", type=int, help="read only so many images, evenly spaced")
    look.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    look.add_argument("--output", type=Path, help="folder of classes.csv, faults.txt, sheet.png (output/check/NAME)")
    look.add_argument("--import", dest="script", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    demo_world.register_builtin()
    if parsed.script is not None:
        runpy.run_path(parsed.script)
    if parsed.command == "list":
        print(_table_of_names())
        return 0
    try:
        report = check(parsed.name, parsed.limit, parsed.workers)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    folder = parsed.output or Path("output") / "check" / parsed.name
    report.save(folder)
    contact_sheet(parsed.name, folder / "sheet.png")
    print(report.text())
    print(f"written: {folder}/classes.csv, faults.txt, sheet.png")
    return 1 if report.problems else 0


def _table_of_names() -> str:
    rows = []
    for name in DatasetCatalog.list():
        meta = MetadataCatalog.get(name)
        if hasattr(meta, "class_split"):
            split = meta.class_split
            rows.append([name, meta.protocol, len(split), len(split.unseen)])
    return tabulate(rows, headers=["data set", "protocol", "classes", "unseen"], tablefmt="github")


if __name__ == "__main__":
    sys.exit(main())
