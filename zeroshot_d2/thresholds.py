"""Thresholds of predictions: a number, or the file that `calibrate` writes; and what a task brings to choose them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from .class_split import ClassSplit, comparable
from .storage import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .predictor import Predictor

THRESHOLDS_FILE = "thresholds.json"


@dataclass(frozen=True)
class Thresholds:
    """Of the scores of classes.

    Args:
        threshold: of every class that has none of its own.
        of_class: {class name: its own}.
    """

    threshold: float
    of_class: dict[str, float] = field(default_factory=dict)

    def for_vocabulary(self, vocabulary: ClassSplit) -> npt.NDArray[np.float64]:
        """(K,), by the classes' names, whose case and spelling with spaces or underscores do not matter."""
        own = {comparable(name): value for name, value in self.of_class.items()}
        return np.array([own.get(comparable(name), self.threshold) for name in vocabulary.names])


def thresholds(text: str) -> Thresholds:
    """An argparse type: a number, or the path of a thresholds.json."""
    try:
        value = float(text)
    except ValueError:
        if not Path(text).is_file():
            raise argparse.ArgumentTypeError(
                f"must be a number, or a {THRESHOLDS_FILE} that `calibrate` wrote, and there is no file {text!r}"
            ) from None
        try:
            return read_thresholds(Path(text))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text}")
    return Thresholds(value)


def read_thresholds(path: Path) -> Thresholds:
    """What `calibrate` has written.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it holds something else.
    """
    content = read_json(path, "thresholds")
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a {THRESHOLDS_FILE}: let `calibrate` write one")
    of_class: Any = content.get("of_class", {})
    values = [content.get("threshold"), *(of_class.values() if isinstance(of_class, dict) else [None])]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values):
        raise ValueError(
            f'{path} must hold a finite number "threshold", and perhaps "of_class" with one for each of some classes: let '
            "`calibrate` write it"
        )
    return Thresholds(float(content["threshold"]), {str(name): float(value) for name, value in of_class.items()})


# ------------------------------------------------------------------------------------------------------- choosing
@dataclass(frozen=True)
class Calibration:
    """What a task finds out.

    Args:
        content: of thresholds.json, beside the data set and the number of images.
        figure: what a threshold does.
        lines: for the screen.
    """

    content: dict[str, Any]
    figure: Figure
    lines: Sequence[str]


class Calibrator(Protocol):
    """The "calibrator" part of a task."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """The task's own arguments."""

    @staticmethod
    def calibrate(predictor: Predictor[Any], records: Sequence[dict[str, Any]], args: argparse.Namespace) -> Calibration:
        """Look at labelled images, with the predictor's vocabulary, which is that of their data set."""
        ...
