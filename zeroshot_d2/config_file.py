"""Config files: plain YAML and the files that it builds upon; nothing in them is run, and nothing is fetched.

Detectron2's reader falls back to one that runs Python code named by tags, takes the last of two values of a key, and opens
addresses as ``_BASE_``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from .storage import PathLike, read_text

BESIDE = "folder:"
"""How the value of a key begins that names a file in the folder of its config, wherever that lies."""

_BASE = "_BASE_"
_KEY = re.compile(r"[A-Za-z_]\w*")
_MOST_VALUES = 100_000  # of a config there are some 500; a few aliases can stand for more than fit in memory


class _PlainLoader(yaml.SafeLoader):
    """YAML of mappings, lists and values alone: no tags, and no key twice, of which others take the last value."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not isinstance(key, str) or not _KEY.fullmatch(key):
                raise yaml.MarkedYAMLError(problem=f"{key!r} is no key", problem_mark=key_node.start_mark)
            if key in keys:
                raise yaml.MarkedYAMLError(problem=f"the key {key} stands there twice", problem_mark=key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: PathLike, what: str = "config") -> dict[str, Any]:
    """The content of a YAML file whose top level is a mapping; an empty file is one without keys.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file; file, line and reason are named.
    """
    text = read_text(path, what)
    name = f"the {what} {os.fspath(path)}"
    try:
        content = yaml.load(text, _PlainLoader)
    except yaml.constructor.ConstructorError as error:
        raise ValueError(
            f"{name} is no plain YAML{_line(error)}; tags that run Python code are refused, as all others are: write plain "
            f"values ({error.problem})"
        ) from error
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{name} is no plain YAML{_line(error)}: {error.problem}; correct it") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date that does not exist
        raise ValueError(f"{name} is no plain YAML: {' '.join(str(error).split())}; correct it") from error
    if content is None:
        return {}
    if _is_larger_than(content, _MOST_VALUES):
        raise ValueError(f"{name} stands for more than {_MOST_VALUES:,} values: write it without aliases")
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds {type(content).__name__} values, not KEY: value lines: is it the right file?")
    return content


def _is_larger_than(content: Any, limit: int) -> bool:
    """Whether there are more values than that in nested lists and mappings, aliases counted as often as they are used."""
    waiting, count = [content], 0
    while waiting and count <= limit:
        value = waiting.pop()
        count += 1
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return count > limit


def _line(error: yaml.MarkedYAMLError) -> str:
    return "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"


def read_config(path: PathLike, _above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a config file laid over that of its ``_BASE_``, a path relative to its folder, or a list of them.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_yaml`, for each of the files; a ``_BASE_`` is an address, does not
            exist or leads back to the file.
    """
    file = Path(path)
    above = (*_above, file.resolve())
    content = read_yaml(file)
    bases = content.pop(_BASE, [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or "://" in base:
            raise ValueError(f"the config {file} has {_BASE} {base!r}: give the path of a file on this machine")
        base_file = file.parent / Path(base).expanduser()
        if base_file.resolve() in above:
            raise ValueError(
                f"the config {file} cannot be read: its {_BASE} leads back to it by {base!r}: remove one of them"
            )
        if not base_file.is_file():
            raise ValueError(f"the config {file} cannot be read: its {_BASE} {base_file} does not exist, correct the path")
        _lay_over(read_config(base_file, above), merged, file)
    _lay_over(content, merged, file)
    return merged


def _lay_over(upper: Mapping[str, Any], lower: dict[str, Any], file: Path, section: str = "") -> None:
    for key, value in upper.items():
        if isinstance(value, dict) and isinstance(lower.get(key, {}), dict):
            _lay_over(value, lower.setdefault(key, {}), file, f"{section}{key}.")
        elif isinstance(lower.get(key), dict):
            raise ValueError(f"the config {file}: {section}{key} is a section, got {value!r}")
        else:
            lower[key] = value


def merge(cfg: CfgNode, content: Mapping[str, Any]) -> None:
    """Set the keys of ``cfg`` to what :func:`read_config` returned; errors as yacs raises them."""
    cfg.merge_from_other_cfg(CfgNode(dict(content)))


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a config, or of what its file holds, with their sections ("SOLVER.BASE_LR"), and their values."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def path_beside(config: PathLike, key: str, value: str) -> Path:
    """The file that a value such as ``folder:word_vectors.npz`` names.

    Args:
        config: the file that has it.
        key: whose value it is.
        value: beginning with :data:`BESIDE`.

    Raises:
        FileNotFoundError: it is not there; the key under which its path can be given is named.
        ValueError: it is no name of a file, but leads elsewhere.
    """
    folder, name = Path(config).parent, value.removeprefix(BESIDE)
    if not name or name in (".", "..") or re.search(r"[/\\:]", name):
        raise ValueError(
            f"the config {os.fspath(config)}: {key} {value!r} names no file in the config's own folder: correct it"
        )
    if not (folder / name).is_file():
        raise FileNotFoundError(
            f"the model in {folder} needs the file {name}, which is not part of it: give its path as `{key} PATH` "
            f"(README.md in that folder says which file it is)"
        )
    return folder / name
