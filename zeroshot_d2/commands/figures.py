"""What the figure commands of both systems share: which data set, which images, and where the picture goes."""

from __future__ import annotations

import argparse
import os
import runpy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from detectron2.data import DatasetCatalog, MetadataCatalog
from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")

T = TypeVar("T")


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 160) -> None:
    """Write a figure; the ending of ``path`` decides the format (.png, .pdf, .svg)."""
    figure.savefig(path, dpi=dpi, facecolor="white")


def add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    """``--output``, and ``--import`` for data sets of one's own."""
    parser.add_argument(
        "--output", type=Path, required=True, help="the picture, .png, .pdf or .svg; or a folder, which gets a .png"
    )
    parser.add_argument("--import", dest="script", help="a script that registers data sets of your own; run first")


def prepare_picture(args: argparse.Namespace, name: str) -> Path:
    """Run ``--import``, and make the folder of ``--output``; gives the path of the picture, NAME.png in a folder.

    Raises:
        FileNotFoundError: the script does not exist.
        ValueError: the ending is not one of :data:`FORMATS`.
    """
    if args.script is not None:
        runpy.run_path(args.script)
    output: Path = args.output
    if output.suffix.lower() not in FORMATS:
        if output.suffix and not output.is_dir():
            raise ValueError(f"--output {output} must end in {', '.join(FORMATS)}, or be a folder")
        output = output / f"{name}.png"
    output.parent.mkdir(parents=True, exist_ok=True)
    return output


def check_dataset(name: str, evaluator_type: str) -> None:
    """Raise ValueError where ``name`` is no registered data set of this type ("alignzeg_sem_seg", "epsilon_multilabel")."""

    def fits(other: str) -> bool:
        return MetadataCatalog.get(other).get("evaluator_type") == evaluator_type

    if name not in DatasetCatalog.list() or not fits(name):
        state = "has labels of another kind" if name in DatasetCatalog.list() else "is not registered"
        fitting = ", ".join(filter(fits, DatasetCatalog.list()))
        raise ValueError(f"the data set {name!r} {state}; choose one of {fitting}, or --import your own")


def first_wanted(items: Iterable[T], count: int, wanted: Callable[[T], bool]) -> list[T]:
    """The first ``count`` items that are wanted; where there are fewer, the first of the others fill the list up.

    Raises:
        ValueError: ``count`` is not positive.
    """
    if count < 1:
        raise ValueError(f"the number of images must be positive, got {count}")
    chosen: list[T] = []
    others: list[T] = []
    for item in items:
        (chosen if wanted(item) else others).append(item)
        if len(chosen) == count:
            break
    return [*chosen, *others][:count]
