"""Look a data set over: counts, damaged files, strange label values, class frequencies, a contact sheet.

    python -m zeroshot_d2 check voc2012_train_seen
    python -m zeroshot_d2 check camvid_train --import camvid.py --limit 100 --output output/check/camvid

The exit status is 1 where the data set has faults.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..cli import Parser, folder, positive
from ..datasets.check import check
from ..datasets.contact_sheet import contact_sheet


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the command-line arguments ``argv``; 1 if the data set has faults.

    Raises:
        FileNotFoundError: its folders are missing.
        ValueError: no such data set.
    """
    parser = Parser("python -m zeroshot_d2 check", __doc__, takes_keys=False)
    parser.add_argument("name", help="a registered data set")
    parser.add_argument("--limit", type=positive, help="read only so many images, evenly spaced")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=folder, help="folder of classes.csv, faults.txt, sheet.png (output/check/NAME)")
    args = parser.parse(argv)
    report = check(args.name, args.limit, args.workers)
    output = args.output or Path("output") / "check" / args.name
    report.save(output)
    contact_sheet(args.name, output / "sheet.png")
    print(report.text())
    print(f"written: {output}/classes.csv, faults.txt, sheet.png")
    return 1 if report.problems else 0
