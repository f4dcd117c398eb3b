"""List the registered data sets, or prepare a release.

    python -m zeroshot_d2 datasets list
    python -m zeroshot_d2 datasets prepare nus_wide --help

datasets/README.md shows where each release is expected and which of them have to be prepared.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate

from ..cli import Parser
from ..datasets import preparation
from ..vocabulary import is_registered

PROG = "python -m zeroshot_d2 datasets"


def preparations() -> list[str]:
    """The names that ``prepare`` takes."""
    shared = {"jobs"}
    return sorted(module.name for module in pkgutil.iter_modules(preparation.__path__) if module.name not in shared)


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the command-line arguments ``argv``.

    Raises:
        FileNotFoundError, ValueError: as the preparation.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    known = preparations()
    if words[:1] == ["prepare"] and len(words) > 1 and words[1] in known:
        importlib.import_module(f"{preparation.__name__}.{words[1]}").main(words[2:])
        return 0
    parser = Parser(PROG, __doc__, takes_keys=False)
    parser.add_argument("action", choices=("list", "prepare"), help="show all names; or make what a release needs")
    parser.add_argument("name", nargs="?", help=f"the release to prepare: {', '.join(known)}")
    args = parser.parse(words)
    if args.action == "prepare":
        given = "" if args.name is None or args.name in known else f"there is no preparation {args.name!r}; "
        parser.fail(f"{given}say `prepare NAME` first, with a NAME among {', '.join(known)}")
    if args.name is not None:
        parser.fail(f"list takes no name, got {args.name!r}: remove it")
    print(table_of_names())
    return 0


def table_of_names() -> str:
    """A row per registered data set."""
    rows = []
    for name in filter(is_registered, DatasetCatalog.list()):
        meta = MetadataCatalog.get(name)
        rows.append([name, meta.protocol, len(meta.class_split), len(meta.class_split.unseen)])
    return tabulate(rows, headers=["data set", "protocol", "classes", "unseen"], tablefmt="github")
