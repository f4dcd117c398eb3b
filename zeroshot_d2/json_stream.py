"""JSON that does not fit in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from .storage import whole_file, wrong_content


def stream_json_arrays(
    path: str | os.PathLike[str], keys: Collection[str], chunk_chars: int = 1 << 20
) -> Iterator[tuple[str, Any]]:
    """Read the elements of arrays in a JSON object without holding the file: ``{"key": [element, ...], ...}``.

    Args:
        path: a JSON file whose top level is an object.
        keys: the arrays wanted; all other values are skipped.
        chunk_chars: how much is read at a time.

    Yields:
        (key, element), in the order of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a JSON file, is cut off, or lacks one of the arrays.
    """
    with _opened(path, chunk_chars) as reader:
        reader.expect("{")
        found = set()
        separator = "," if reader.peek() != "}" else "}"
        while separator == ",":
            key = reader.value()
            reader.expect(":")
            if reader.peek() == "[":
                found.add(key)
                for element in reader.array():
                    if key in keys:
                        yield key, element
            else:
                reader.value()
            separator = reader.one_of(",}")
    missing = sorted(set(keys) - found)
    if missing:
        raise ValueError(
            f"{os.fspath(path)} has no array {missing}; it has {sorted(map(str, found))}: is it the right file?"
        )


def stream_json_array(path: str | os.PathLike[str], chunk_chars: int = 1 << 20) -> Iterator[Any]:
    """The elements of a JSON file whose top level is an array, ``[element, ...]``, without holding the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a JSON file, or is cut off.
    """
    with _opened(path, chunk_chars) as reader:
        yield from reader.array()


@contextmanager
def _opened(path: str | os.PathLike[str], chunk_chars: int) -> Iterator[_JsonReader]:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)} does not exist: correct the path, or fetch the file")
    with open(path, "rb") as head:
        reason = wrong_content(head.read(64))
    if reason:
        raise ValueError(f"{os.fspath(path)} cannot be read: {reason}")
    with open(path, encoding="utf-8-sig") as file:
        yield _JsonReader(os.fspath(path), file.read, chunk_chars)


def fields(entry: Any, path: str | os.PathLike[str], **kinds: type) -> list[Any]:
    """The values of an element of such an array, each of its kind.

    Args:
        entry: what :func:`stream_json_arrays` gave.
        path: of the file.
        kinds: {key: str, int, ...}; ``object`` for any.

    Raises:
        ValueError: it is no object, lacks a key, or a value is of another kind.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"{os.fspath(path)} has the entry {entry!r}, which must be an object with {', '.join(kinds)}")
    for key, kind in kinds.items():
        if key not in entry:
            raise ValueError(f"{os.fspath(path)} has an entry without {key!r}, it has {sorted(entry)}: fetch the file again")
        value = entry[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"{os.fspath(path)} has an entry whose {key!r} must be {kind.__name__}, got {value!r}")
    return [entry[key] for key in kinds]


def write_json_arrays(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a JSON object whose arrays need not fit in memory.

    Args:
        path: the file; whole or absent.
        content: {key: value}; iterators become arrays, one element after the other.
    """
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        before = "{\n"
        for key, value in content.items():
            file.write(f"{before}{json.dumps(key)}: ")
            if isinstance(value, Iterator):
                _write_elements(file, value)
            else:
                file.write(_dumped(value))
            before = ",\n"
        file.write("\n}\n")


def write_json_array(path: str | os.PathLike[str], elements: Iterable[Any]) -> None:
    """Write a JSON array that need not fit in memory; the file is whole or absent."""
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        _write_elements(file, elements)
        file.write("\n")


def _write_elements(file: IO[str], elements: Iterable[Any]) -> None:
    file.write("[")
    before = "\n"
    for element in elements:
        file.write(before + _dumped(element))
        before = ",\n"
    file.write("\n]")


def _dumped(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


class _JsonReader:
    """A window over a JSON text that grows where a value does not fit into it."""

    def __init__(self, path: str, read: Callable[[int], str], chunk_chars: int) -> None:
        self._path, self._read, self._chunk_chars = path, read, chunk_chars
        self._buffer, self._start = "", 0
        self._decode = json.JSONDecoder().raw_decode

    def _grow(self) -> None:
        try:
            more = self._read(max(self._chunk_chars, len(self._buffer) - self._start))
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._path} is not UTF-8 ({error.reason}): fetch it again, or save it anew") from error
        if not more:
            raise ValueError(f"{self._path} ends in the middle: the download is incomplete, or this is no JSON file")
        self._buffer, self._start = self._buffer[self._start :] + more, 0

    def peek(self) -> str:
        """The next character that is not white space."""
        while True:
            while self._start < len(self._buffer):
                if not self._buffer[self._start].isspace():
                    return self._buffer[self._start]
                self._start += 1
            self._grow()

    def one_of(self, allowed: str) -> str:
        """Take the next character, which must be one of ``allowed``."""
        found = self.peek()
        if found not in allowed:
            raise ValueError(
                f"{self._path} is not JSON of the expected form: found {found!r} where {allowed!r} should be; is it the "
                "right file?"
            )
        self._start += 1
        return found

    def expect(self, character: str) -> None:
        self.one_of(character)

    def value(self) -> Any:
        """Take one JSON value."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._buffer, self._start)
            except json.JSONDecodeError:
                self._grow()  # raises at the end of the file
                continue
            except RecursionError as error:
                raise ValueError(f"{self._path} is nested too deeply: is it the right file?") from error
            # A number at the end of the window may go on behind it.
            if end == len(self._buffer) and isinstance(value, (int, float)) and not isinstance(value, bool):
                self._grow()
                continue
            self._start = end
            return value

    def array(self) -> Iterator[Any]:
        """Take one JSON array, element by element."""
        self.expect("[")
        if self.peek() == "]":
            self.expect("]")
            return
        while True:
            yield self.value()
            if self.one_of(",]") == "]":
                return
