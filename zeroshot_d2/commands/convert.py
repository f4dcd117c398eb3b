"""Make label images from the files of an annotation tool: LabelMe, COCO or CVAT.

    python -m zeroshot_d2 convert labelme annotations/ --output my_data
    python -m zeroshot_d2 convert coco instances.json --output my_data --classes classes.txt
    python -m zeroshot_d2 convert cvat-images annotations.xml --output my_data --background floor
    python -m zeroshot_d2 convert cvat-masks unpacked/ --output my_data

writes my_data/labels/NAME.png for every image (the index of a class; 255, or 65535 for more than 255 classes, where nothing
is drawn) and my_data/classes.txt. Label images that are there are kept: an interrupted run continues. docs/custom_data.md
shows how to register the result.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..cli import Parser, folder, positive
from ..datasets.annotations import READERS, convert
from ..storage import read_lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the command-line arguments ``argv``.

    Raises:
        FileNotFoundError, ValueError: the annotations are missing, damaged, or not of the named tool.
    """
    parser = Parser("python -m zeroshot_d2 convert", __doc__, takes_keys=False)
    parser.add_argument("tool", choices=tuple(READERS), help="whose files they are")
    parser.add_argument("annotations", type=Path, metavar="PATH", help="of the file, or of the folder for labelme and cvat")
    parser.add_argument("--output", type=folder, required=True, help="folder of the label images")
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="the classes, one a line, in the order of their values; shapes of others are left out. Default: all, in the "
        "tool's order; LabelMe has none, they are sorted",
    )
    parser.add_argument("--background", metavar="NAME", help="a class for the pixels where nothing is drawn")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="processes; default: one per core")
    args = parser.parse(argv)
    annotations = READERS[args.tool](args.annotations)
    classes = None if args.classes is None else read_lines(args.classes, "class list", comments=False)
    done = convert(annotations, args.output, classes, background=args.background, workers=args.workers)
    print(
        f"{done.written} label images written, {done.skipped} were there; {len(done.names)} classes: {', '.join(done.names)}"
    )
    if done.empty:
        print(f"{done.empty} of them have no class in any pixel")
    for what, counts in (("have no area", annotations.left_out), ("are of other classes", done.other_classes)):
        if counts:
            kinds = ", ".join(f"{count} {name!r}" for name, count in counts.most_common(10))
            print(f"{counts.total()} shapes {what} and are left out: {kinds}")
    print(f"results in {args.output}")
    return 0
