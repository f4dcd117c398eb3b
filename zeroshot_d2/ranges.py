"""Which values config keys may have: declared beside the keys, checked before anything is built.

::

    declare("MODEL.MINE", {"NUM_QUERIES": whole(1), "DROPOUT": number(0, below=1), "FORM": choice("paper", "sdl")})

:func:`check_ranges` is asked wherever a config enters: by ``load_config``, which every command calls, and by models, mappers
and trainer when they are built, for configs that Python code has made or changed. What two keys say together, or a key and
the weights, is checked by the part that reads both.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from fvcore.common.registry import Registry


@dataclass(frozen=True)
class Range:
    """The values that a key may have.

    Args:
        words: how a message names them: "a whole number from 1".
        holds: whether a value is one of them.
    """

    words: Callable[[], str]
    holds: Callable[[Any], bool]


def whole(least: int, most: int | None = None) -> Range:
    """Whole numbers from ``least``, to ``most`` where it is given."""
    words = f"a whole number from {least}" + ("" if most is None else f" to {most}")
    return Range(
        lambda: words,
        lambda value: (
            isinstance(value, int) and not isinstance(value, bool) and least <= value <= (math.inf if most is None else most)
        ),
    )


def number(
    least: float | None = None, most: float | None = None, *, above: float | None = None, below: float | None = None
) -> Range:
    """Finite numbers: at least, at most, above, below."""
    bounds = {"at least": least, "at most": most, "above": above, "below": below}
    given = [f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None]

    def holds(value: Any) -> bool:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and (least is None or value >= least)
            and (most is None or value <= most)
            and (above is None or value > above)
            and (below is None or value < below)
        )

    return Range(lambda: "a number " + " and ".join(given) if given else "a finite number", holds)


def choice(*values: Any) -> Range:
    """One of some values."""
    return Range(lambda: "one of " + ", ".join(map(repr, values)), lambda value: value in values)


def registered(registry: Registry) -> Range:
    """A name in a registry of Detectron2's kind, to which ``--import`` may add."""
    return Range(lambda: "one of " + ", ".join(sorted(name for name, _ in registry)), lambda value: value in registry)


def text() -> Range:
    """A text that is not empty."""
    return Range(lambda: "a text", lambda value: isinstance(value, str) and bool(value.strip()))


def folder() -> Range:
    """A folder that is there, or that can be made: neither it nor what it is in is a file."""

    def holds(value: Any) -> bool:
        if not isinstance(value, str) or not value.strip():
            return False
        parts = (Path(value), *Path(value).parents)
        return not any(len(os.fsencode(part.name)) > 255 or os.path.isfile(part) for part in parts)

    return Range(lambda: "a folder, no file", holds)


def device() -> Range:
    """A device of torch, such as "cpu", "cuda:1" or "mps", whether or not this machine has it."""
    return Range(lambda: "a device such as cpu, cuda, cuda:1 or mps", _is_device)


def _is_device(value: Any) -> bool:
    try:
        return isinstance(value, str) and torch.device(value).type != "meta"
    except RuntimeError:
        return False


def optional(kind: Range) -> Range:
    """None, or a value of another range."""
    return Range(lambda: f"None or {kind.words()}", lambda value: value is None or kind.holds(value))


def each(kind: Range, *, count: int | None = None, least: int = 0, distinct: bool = False) -> Range:
    """A list or tuple of such values: ``count`` of them, or at least ``least``; ``distinct``: none of them twice."""
    how_many = f"{count} values" if count is not None else f"a list of at least {least}" if least else "a list"

    def holds(value: Any) -> bool:
        return (
            isinstance(value, Sequence)
            and not isinstance(value, str)
            and (len(value) >= least if count is None else len(value) == count)
            and all(map(kind.holds, value))
            and (not distinct or len(set(value)) == len(value))
        )

    return Range(lambda: f"{how_many}, each {kind.words()}{' and none twice' if distinct else ''}", holds)


_declared: dict[str, Range] = {}


def declare(section: str, ranges: Mapping[str, Range]) -> None:
    """Make the ranges of the keys below ``section`` known; a later declaration of a key replaces an earlier one."""
    _declared.update({f"{section}.{key}" if section else key: values for key, values in ranges.items()})


def check_ranges(cfg: CfgNode) -> None:
    """Compare the keys of a config with what is declared about them.

    Raises:
        ValueError: a value is out of its range; key and value are named.
    """
    for key, values in _declared.items():
        node: Any = cfg
        for part in key.split("."):
            node = node.get(part, _ABSENT) if isinstance(node, CfgNode) else _ABSENT
        if node is not _ABSENT and not values.holds(node):
            shown = repr(node)
            shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
            raise ValueError(f"{key} must be {values.words()}, got {shown}")


_ABSENT = object()


def check_multiple(name: str, value: int, of: str, divisor: int) -> None:
    """Raise ValueError where ``value``, of the key ``name``, is no multiple of ``divisor``, which ``of`` describes."""
    if value % divisor:
        raise ValueError(f"{name} {value} must be a multiple of {of} {divisor}")


@contextmanager
def about(section: str, **keys: Any) -> Iterator[None]:
    """Name the ``keys`` of a section, with their values, in front of what the block raises about them."""
    try:
        yield
    except (ValueError, OSError) as error:
        named = ", ".join(f"{section}.{key} {value!r}" for key, value in keys.items())
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{named}: {error}") from error
