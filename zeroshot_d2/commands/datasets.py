"""List the registered data sets, download a release, or prepare one.

    python -m zeroshot_d2 datasets list
    python -m zeroshot_d2 datasets download voc2012 --dry-run
    python -m zeroshot_d2 datasets prepare nus_wide --help

datasets/README.md shows where each release is expected and which of them have to be prepared.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate

from ..cli import Parser, positive
from ..datasets import preparation
from ..datasets.download import Unavailable, is_done, kept_at, obtain
from ..datasets.releases import RELEASES, Part, RemoteFile
from ..storage import datasets_root
from ..vocabulary import is_registered
from . import check

PROG = "python -m zeroshot_d2 datasets"

_DOWNLOAD = """Download releases from their official addresses, unpack, prepare and check them.

    python -m zeroshot_d2 datasets download voc2012 coco_stuff_164k --dry-run
    python -m zeroshot_d2 datasets download open_images_v4 --parts validation test --delete-archives

Everything lies below $DETECTRON2_DATASETS. An interrupted download is resumed when the command is repeated, and what is
there is not fetched again. The exit status is 1 where something has to be had by hand, which is then said, or where a data
set has faults.
"""


def preparations() -> list[str]:
    """The names that ``prepare`` takes."""
    shared = {"jobs"}
    return sorted(module.name for module in pkgutil.iter_modules(preparation.__path__) if module.name not in shared)


def prepare(name: str, arguments: Sequence[str]) -> None:
    """Run a preparation with its command-line arguments."""
    importlib.import_module(f"{preparation.__name__}.{name}").main(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the command-line arguments ``argv``; 1 where a download has left something to do.

    Raises:
        OSError, ValueError: as the preparation, or the download.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    known = preparations()
    if words[:1] == ["prepare"] and len(words) > 1 and words[1] in known:
        prepare(words[1], words[2:])
        return 0
    if words[:1] == ["download"]:
        return download(words[1:])
    parser = Parser(PROG, __doc__, takes_keys=False)
    parser.add_argument(
        "action", choices=("list", "download", "prepare"), help="show all names; fetch releases; make what one needs"
    )
    parser.add_argument("name", nargs="?", help=f"the release to prepare: {', '.join(known)}")
    args = parser.parse(words)
    if args.action != "list":
        names = known if args.action == "prepare" else list(RELEASES)
        given = "" if args.name is None or args.name in names else f"there is no preparation {args.name!r}; "
        parser.fail(f"{given}say `{args.action} NAME` first, with a NAME among {', '.join(names)}")
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


# ------------------------------------------------------------------------------------------------------- downloads
def download(argv: Sequence[str]) -> int:
    """``datasets download`` with the command-line arguments ``argv``; 1 where something is left to do.

    Raises:
        OSError: a file cannot be written, for example because the disk is full.
        ValueError: a file is not what is published, or the disk has not enough room.
    """
    parser = Parser(f"{PROG} download", _DOWNLOAD, takes_keys=False)
    parser.add_argument("names", nargs="+", choices=tuple(RELEASES), metavar="NAME", help=", ".join(RELEASES))
    parser.add_argument("--parts", nargs="+", help="only these parts of a release; --dry-run names them")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be fetched, from where and how much")
    parser.add_argument("--delete-archives", action="store_true", help="remove each archive once it is unpacked")
    parser.add_argument("--no-check", action="store_true", help="do not read the data sets afterwards")
    parser.add_argument("--limit", type=positive, help="read only so many images of each data set when checking it")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="processes that prepare and check")
    args = parser.parse(argv)
    chosen = _chosen(args.names, args.parts, parser.fail)
    if args.dry_run:
        print(table_of_files(chosen))
        return 0
    _check_room(chosen, args.delete_archives)
    options = ["--workers", str(args.workers), *(["--limit", str(args.limit)] if args.limit else [])]
    left = 0
    for (name, part_name), part in chosen.items():
        problems = list(_obtain_all(name, part, args.delete_archives))
        if problems:
            print(f"{name}, part {part_name}: to be done by hand, then repeat the command")
            print("".join(f"  - {problem}\n" for problem in problems), end="")
            left += 1
            continue
        if part.preparation:
            prepare(part.preparation[0], part.preparation[1:])
        for dataset in () if args.no_check else part.checks:
            left += check.main([dataset, *options])
    return 1 if left else 0


_Chosen = Mapping[tuple[str, str], Part]  # by the names of release and part


def _chosen(names: Sequence[str], parts: Sequence[str] | None, fail: Callable[[str], Any]) -> _Chosen:
    """The parts that a command line names."""
    known = {(name, part): content for name in names for part, content in RELEASES[name].parts.items()}
    there = {part for _, part in known}
    for part in parts or ():
        if part not in there:
            fail(f"there is no part {part!r} of {', '.join(names)}; choose among {', '.join(sorted(there))}")
    return {key: part for key, part in known.items() if parts is None or key[1] in parts}


def _files(chosen: _Chosen) -> dict[RemoteFile, str]:
    """{file: its release}; a file that several parts need is there once."""
    return {file: name for (name, _), part in chosen.items() for file in part.files}


def _obtain_all(release: str, part: Part, delete_archives: bool) -> Iterable[str]:
    """Fetch the files of a part; what cannot be had, and what to do about it."""
    for file in part.files:
        try:
            obtain(file, release, keep_archive=not delete_archives)
        except Unavailable as error:
            yield str(error)
    for path, what_to_do in part.needs.items():
        if not (datasets_root() / path).exists():
            yield f"{datasets_root() / path} is missing: {what_to_do}"


def _check_room(chosen: _Chosen, delete_archives: bool) -> None:
    """Raise ValueError where the disk has less room than the files need, packed and unpacked."""
    to_fetch = {file: kept_at(file, name) for file, name in _files(chosen).items() if not is_done(file, name)}
    packed = {file: 0 if path.is_file() else file.size or file.about for file, path in to_fetch.items()}
    unpacked = sum(file.size or file.about for file in to_fetch if file.is_archive)  # photos do not get smaller by packing
    needed = unpacked + (max(packed.values(), default=0) if delete_archives else sum(packed.values()))
    root = datasets_root().absolute()
    folder = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        hint = "" if delete_archives else " --delete-archives halves that;"
        raise ValueError(
            f"this needs about {_gigabytes(needed)} in {root}, which has {_gigabytes(free)} left:{hint} --parts fetches "
            "less, $DETECTRON2_DATASETS names another disk"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"


def table_of_files(chosen: _Chosen) -> str:
    """A table per part: its files, how large they are, what they are compared with, and what has to be done by hand."""
    lines = []
    for (release, part_name), part in chosen.items():
        lines += [f"{release}, part {part_name} (see {RELEASES[release].page})"]
        rows = []
        for file in part.files:
            roughly = f"about {_gigabytes(file.about)}" if file.about else "not published"
            size = _gigabytes(file.size) if file.size else roughly
            kinds = [*(["size"] if file.size else []), *([file.checksum.partition(":")[0]] if file.checksum else [])]
            compared = f"{' and '.join(kinds)} of {file.checksum_from}" if kinds else "the size that is announced"
            state = "is there" if is_done(file, release) else "to be fetched"
            rows.append([file.url, size, compared, file.place, state])
        if rows:
            lines.append(tabulate(rows, headers=["from", "size", "compared with", "to", ""], tablefmt="github"))
        for path, what_to_do in part.needs.items():
            lines.append(f"{path}: " + ("is there" if (datasets_root() / path).exists() else f"by hand: {what_to_do}"))
        lines.append("")
    return "\n".join(lines)
