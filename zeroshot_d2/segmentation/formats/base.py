"""What all formats share."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from ...class_split import ClassSplit
from ...pictures.colors import Color
from ..predictor import Segmentation

Entry = Mapping[str, Any]
"""What the file of all images needs of one: ``file_name``, ``width`` and ``height``, and what :meth:`Format.image` gave."""


@dataclass(frozen=True)
class Settings:
    """What a format is made with.

    Args:
        folder: where its files go.
        vocabulary: the K classes.
        colors: one for each.
        model: name of the system.
        args: the options of the command line.
    """

    folder: Path
    vocabulary: ClassSplit
    colors: Sequence[Color]
    model: str
    args: argparse.Namespace


class Format(ABC):
    """One way to write segmentations: files of each image, and files of all.

    Attributes:
        options: names of the command line's options that the format reads.
        file_of_each: where a file of each image goes below the folder, ``{stem}`` being the image's path without its
            ending; None where there is none.
    """

    options: ClassVar[tuple[str, ...]] = ()
    file_of_each: ClassVar[str | None] = None

    def __init__(self, settings: Settings) -> None:
        """
        Raises:
            ValueError: the format cannot hold this vocabulary.
        """
        self.settings = settings
        self.folder = settings.folder
        self.vocabulary = settings.vocabulary

    @staticmethod  # noqa: B027  (some have none)
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """The format's own options; their default must be None."""

    def path_of(self, file_name: str) -> Path | None:
        """The file of one image."""
        return None if self.file_of_each is None else self.folder / self.file_of_each.format(stem=stem_of(file_name))

    @abstractmethod
    def image(self, file_name: str, found: Segmentation) -> dict[str, Any]:
        """Write the file of an image and return what the files of all need, for JSON."""

    @abstractmethod
    def collect(self, entries: Callable[[], Iterator[Entry]]) -> None:
        """Write the files of all images; ``entries`` gives them in the order of the inputs, each time it is called."""


def stem_of(file_name: str) -> str:
    """A path with "/" without the ending of the file."""
    return PurePosixPath(file_name).with_suffix("").as_posix()


def rounded(score: float) -> float:
    """A score as it is written to files."""
    return round(score, 6)
