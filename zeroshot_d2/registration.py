"""Names in Detectron2's catalogues: one way to register a data set, whatever its labels."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

logger = logging.getLogger(__name__)

DatasetDict = dict[str, Any]

_registered: dict[str, tuple[Callable[[], Any], Mapping[str, Any]]] = {}  # {name: (load, arguments)}


def register_dataset(
    name: str,
    load: Callable[[], Any],
    metadata: Mapping[str, Any],
    arguments: Mapping[str, Any],
    *,
    replace: bool = False,
) -> None:
    """Register a data set and its metadata together.

    Registering the same again, as by a notebook's cell run twice, changes nothing.

    Args:
        name: the data set.
        load: returns its dataset dicts.
        metadata: for MetadataCatalog.
        arguments: what the user gave; decides whether a second registration is the same.
        replace: let a registration under a used name take the place of the first.

    Raises:
        ValueError: the name belongs to another data set.
    """
    if name in DatasetCatalog.list() and not replace:
        known, known_arguments = _registered.get(name, (None, {}))
        if known is DatasetCatalog[name] and _same(known_arguments, arguments):
            _complete(name, metadata)
            return
        raise ValueError(
            f"a data set {name!r} is already registered, with other arguments: take another name, or pass replace=True"
        )
    for catalog in (DatasetCatalog, MetadataCatalog):  # the metadata may be there without the data set
        catalog.pop(name, None)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)
    _registered[name] = load, dict(arguments)


def _complete(name: str, metadata: Mapping[str, Any]) -> None:
    """Give back to a registered data set what was removed from MetadataCatalog."""
    there = MetadataCatalog.get(name).as_dict()
    MetadataCatalog.get(name).set(**{key: value for key, value in metadata.items() if key not in there})


def _same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return first.keys() == second.keys() and all(_comparable(first[key]) == _comparable(second[key]) for key in first)


def _comparable(value: Any) -> Any:
    """What ``==`` may compare. A function that a cell defines anew is another object of the same name and code."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _comparable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in value]
    if isinstance(value, functools.partial):
        return _comparable((value.func, value.args, value.keywords))
    code = getattr(value, "__code__", None)
    if code is None:
        return value
    names = (value.__module__, value.__qualname__, code.co_code, code.co_names)
    closure = [cell.cell_contents for cell in value.__closure__ or ()]
    values = (code.co_consts, value.__defaults__, value.__kwdefaults__, closure)
    return names, _comparable(values), getattr(value, "__self__", None)


def warn_about_count(name: str, found: int, expected: int | None) -> None:
    """Log both counts if a data set is not whole."""
    if expected is not None and found != expected:
        logger.warning(
            "%s: found %d images, the whole release has %d; results will not be comparable", name, found, expected
        )
