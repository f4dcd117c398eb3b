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
    shared = {"jobs", "json_stream"}
    return sorted(module.name for module in pkgutil.iter_modules(preparation.__path__) if module.name not in shared)


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the command-line arguments ``argv``.

    Raises:
        FileNotFoundError, ValueError: as the preparation.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["prepare"] and len(words) > 1 and words[1] in preparations():
        importlib.import_module(f"{preparation.__name__}.{words[1]}").main(words[2:])
        return 0
    parser = Parser(PROG, __doc__, takes_keys=False)
    actions = parser.add_subparsers(dest="action", required=True, parser_class=_Plain)
    actions.add_parser("list", help="names, protocols and numbers of classes of the registered data sets")
    prepare = actions.add_parser("prepare", help="make what a release needs; NAME --help says what it reads and writes")
    prepare.add_argument("name", choices=preparations())
    parser.parse(words)
    print(table_of_names())
    return 0


class _Plain(Parser):
    def __init__(self, prog: str, **options: object) -> None:
        super().__init__(prog, None, takes_keys=False)


def table_of_names() -> str:
    """A row per registered data set."""
    rows = []
    for name in filter(is_registered, DatasetCatalog.list()):
        meta = MetadataCatalog.get(name)
        rows.append([name, meta.protocol, len(meta.class_split), len(meta.class_split.unseen)])
    return tabulate(rows, headers=["data set", "protocol", "classes", "unseen"], tablefmt="github")
