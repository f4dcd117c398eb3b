"""What the prepare scripts in ``datasets/`` share: whole files only, parallel work with a bar, JSON that does
not fit in memory.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

Job = TypeVar("Job")
Result = TypeVar("Result")


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give a temporary name beside ``path`` to write to; it becomes ``path`` only when the block ends well.

    So a file of the final name is never a half-written one, whatever interrupts the run.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".unfinished-", suffix=target.suffix)
    os.close(handle)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        os.replace(temporary, target)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_label(path: str | os.PathLike[str], label: npt.NDArray[np.integer]) -> None:
    """Write a label image (H, W) as PNG, 8-bit if its values fit, else 16-bit.

    Raises:
        ValueError: a value does not fit into 16 bits.
    """
    low, high = (int(label.min()), int(label.max())) if label.size else (0, 0)
    if low < 0 or high > 65535:
        raise ValueError(f"{os.fspath(path)}: label values [{low}, {high}] do not fit into 16 bits")
    with whole_file(path) as temporary:
        Image.fromarray(label.astype(np.uint8 if high < 256 else np.uint16)).save(temporary, format="PNG")


def write_lists(folder: Path, parts: Mapping[str, Collection[str]]) -> None:
    """Write the image names of each part to ``<part>.txt`` in ``folder``, sorted, one per line; print how many they are."""
    for part, stems in parts.items():
        with whole_file(folder / f"{part}.txt") as temporary:
            Path(temporary).write_text("".join(f"{stem}\n" for stem in sorted(stems)), encoding="utf-8")
        print(f"{part}: {len(stems)} images")


def map_jobs(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, title: str) -> Iterator[Result]:
    """Run ``function`` on every job, in ``workers`` processes, with a progress bar; the first error ends it.

    Args:
        function: a module-level function.
        jobs: its arguments.
        workers: number of processes; 1 runs in this one.

    Yields:
        The results, in the order in which they are done.

    Raises:
        ValueError: ``workers`` is not positive.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    with tqdm(total=len(jobs), desc=title) as bar:
        if workers == 1:
            for job in jobs:
                yield function(job)
                bar.update()
            return
        with ProcessPoolExecutor(workers) as pool:
            # A window of jobs instead of all of them, since each holds its data.
            pending: set[Future[Result]] = set()
            for job in jobs:
                pending.add(pool.submit(function, job))
                if len(pending) >= 4 * workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
                        bar.update()
            for future in as_completed(pending):
                yield future.result()
                bar.update()


def run_jobs(convert: Callable[[Job], None], jobs: Sequence[Job], workers: int, title: str) -> None:
    """:func:`map_jobs` for functions that write files; leave out jobs whose file exists, so that a run can be
    continued.
    """
    for _ in map_jobs(convert, jobs, workers, title):
        pass


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
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)} does not exist")
    with open(path, encoding="utf-8-sig") as file:
        reader = _JsonReader(os.fspath(path), file.read, chunk_chars)
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
        raise ValueError(f"{os.fspath(path)} has no array {missing}; it has {sorted(map(str, found))}")


class _JsonReader:
    """A window over a JSON text that grows where a value does not fit into it."""

    def __init__(self, path: str, read: Callable[[int], str], chunk_chars: int) -> None:
        self._path, self._read, self._chunk_chars = path, read, chunk_chars
        self._buffer, self._start = "", 0
        self._decode = json.JSONDecoder().raw_decode

    def _grow(self) -> None:
        more = self._read(max(self._chunk_chars, len(self._buffer) - self._start))
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
            raise ValueError(f"{self._path} is no JSON object of arrays: found {found!r} where {allowed!r} should be")
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
