"""What a task's referee is: it scores saved predictions, whoever's method made them."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .class_split import ClassSplit, comparable
from .storage import read_lines

Numbers = Mapping[str, Any]


class Scored(ABC):
    """The numbers of one method.

    Args:
        results: {protocol: what the task's evaluator reports}.
        num_images: N.
    """

    per_class_unit: str
    """What a class's number is."""

    def __init__(self, results: Mapping[str, Numbers], num_images: int) -> None:
        self.results, self.num_images = results, num_images

    @abstractmethod
    def table(self, title: str) -> str:
        """The results as a text table."""

    @abstractmethod
    def headlines(self, name: str) -> dict[str, float]:
        """The numbers of a protocol that methods are compared by, in percent."""

    @abstractmethod
    def per_class(self, name: str) -> Mapping[str, float | None]:
        """{class: its number in percent} of a protocol; None where the data set cannot tell."""

    @abstractmethod
    def resampled(self, name: str, weights: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float64]]:
        """The headlines of R samples of the images.

        Args:
            name: the protocol.
            weights: (R, N) how often each image counts.

        Returns:
            {headline: (R,)}, NaN where a sample cannot tell.
        """


class Referee(Protocol):
    """The "referee" part of a task."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """The task's own arguments, beside ``--vocabulary`` and ``--classes``."""

    def __init__(self, dataset_name: str, args: argparse.Namespace) -> None: ...

    def score(self, path: Path, *, keep_images: bool) -> Scored:
        """The numbers of the predictions at ``path``.

        Args:
            path: a file or folder.
            keep_images: keep what :meth:`Scored.resampled` needs of each image.

        Raises:
            FileNotFoundError: there is nothing at ``path``.
            ValueError: images are missing or additional, or a prediction is no prediction of its image.
        """
        ...


def check_images(found: Sequence[str], wanted: Collection[str], path: Path) -> None:
    """Raise ValueError unless there is a prediction for every image, and none for others."""
    problems = []
    for what, images in (
        ("have no prediction of", sorted(set(wanted) - set(found))),
        ("have predictions that belong to no image of the data set:", sorted(set(found) - set(wanted))),
        ("predict more than once", sorted({name for name in found if found.count(name) > 1} if _twice(found) else ())),
    ):
        if images:
            shown = ", ".join(images[:5]) + (", ..." if len(images) > 5 else "")
            problems.append(f"{what} {len(images)} of {len(wanted)} image(s) ({shown})")
    if problems:
        raise ValueError(f"the predictions {path} " + "; they ".join(problems) + ". Nothing is scored: give all images once")


def _twice(names: Sequence[str]) -> bool:
    return len(set(names)) != len(names)


def named_classes(
    file: Path | None, own: Sequence[str] | None, split: ClassSplit, dataset_name: str
) -> npt.NDArray[np.int64]:
    """The index in ``split`` of each class of the predictions, (K,).

    Args:
        file: ``--classes``, the predictions' classes in their order, one a line.
        own: what the predictions say themselves. Where neither is given, the classes are those of ``split``.
        split: the vocabulary.
        dataset_name: for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the classes of ``split`` are not named once each.
    """
    if file is not None:
        names: Sequence[str] = read_lines(file, "class list", comments=False)
    elif own is not None:
        names = own
    else:
        return np.arange(len(split))
    source = "the predictions" if file is None else f"--classes {file}"
    index: dict[str, int] = {}
    for texts in (split.names, split.released, split.prompts):
        for k, text in enumerate(texts):
            index.setdefault(comparable(text), k)
    unknown = [name for name in names if comparable(name) not in index]
    if unknown:
        raise ValueError(
            f"{source}: {unknown[:5]} are not among the {len(split)} classes of the vocabulary of {dataset_name!r}"
        )
    order = np.array([index[comparable(name)] for name in names])
    missing = [split.names[k] for k in sorted(set(range(len(split))) - set(order.tolist()))]
    if missing or len(order) != len(split):
        raise ValueError(
            f"{source}: each of the {len(split)} classes must be named once; there are {len(names)} names, without "
            f"{missing[:5] or 'missing ones'}"
        )
    return order
