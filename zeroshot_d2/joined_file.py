"""A file that all processes of a run write a part of, each its own, and that the main process joins."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import IO

from detectron2.utils import comm

from .storage import UNFINISHED, whole_file

PREDICTIONS = "predictions"
"""The folder of saved predictions in OUTPUT_DIR, whatever the task."""

_COPIED = 1 << 20  # bytes that are copied at once


class JoinedFile:
    """Bytes of all processes in one file, those of the first process first.

    The file is whole or absent, as everything that :mod:`zeroshot_d2.storage` writes. The processes must see the same
    folder, as they do for checkpoints.

    Args:
        path: the file.
        distributed: join the parts of all processes; False: this process writes the whole file.
    """

    def __init__(self, path: Path, *, distributed: bool) -> None:
        self.path, self._distributed = path, distributed
        self._part: Path | None = None
        self._stream: IO[bytes] | None = None
        self._joined = False

    def write(self, data: bytes) -> None:
        """Append to this process's part.

        Raises:
            OSError: the folder cannot be written.
        """
        if self._stream is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._part = self.path.with_name(f"{UNFINISHED}{secrets.token_hex(6)}-{self.path.name}")
            self._stream = open(self._part, "xb")  # noqa: SIM115  (closed by join or discard)
        self._stream.write(data)

    def join(self, head: bytes = b"", between: bytes = b"", tail: bytes = b"") -> None:
        """Write the file on the main process; every process must call it. A second call changes nothing.

        Args:
            head: what comes first.
            between: what every :meth:`write` of all processes but the last ended with, and is not wanted there.
            tail: what comes last.
        """
        if self._joined:
            return
        self._joined = True
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        parts = [self._part]
        if self._distributed:
            comm.synchronize()
            parts = comm.gather(self._part)
        if not self._distributed or comm.is_main_process():
            with whole_file(self.path) as temporary, open(temporary, "wb") as target:
                target.write(head)
                written = _append(target, [part for part in parts if part is not None])
                if written and between:
                    target.seek(-len(between), 2)
                    target.truncate()
                target.write(tail)
            for part in parts:
                if part is not None:
                    part.unlink()
        self._part = None

    def discard(self) -> None:
        """Remove this process's part; the next :meth:`write` begins a new one."""
        self._joined = False
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self._part is not None:
            self._part.unlink(missing_ok=True)
            self._part = None


def _append(target: IO[bytes], parts: list[Path]) -> int:
    written = 0
    for part in parts:
        with open(part, "rb") as source:
            while data := source.read(_COPIED):
                target.write(data)
                written += len(data)
    return written
