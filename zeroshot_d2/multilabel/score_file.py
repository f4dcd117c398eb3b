"""Scores that do not fit into memory: written image by image, read class by class.

Shapes: N images, B of a batch, K classes.
"""

from __future__ import annotations

import tempfile
from typing import IO

import numpy as np

from .ranking import Float32Array

_ROWS_PER_CHUNK = 1024  # images that wait in memory before they are written


class ScoreFile:
    """Scores of all images and classes, on disk: (N, K) float32 written by rows and read by columns.

    In memory are at most 1,024 rows, and while reading 64 columns: 31 MB and 32 MB for the 125,456 images and 7,586 classes
    of Open Images.
    """

    def __init__(self, num_classes: int, folder: str | None) -> None:
        self.num_classes = num_classes
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed by close)
        # By columns, so that a column is read in few pieces.
        self._waiting = np.empty((num_classes, _ROWS_PER_CHUNK), dtype=np.float32)
        self._num_waiting = 0
        self._chunk_rows: list[int] = []

    def add(self, scores: Float32Array) -> None:
        """Append ``scores`` (B, K)."""
        while len(scores):
            part = scores[: _ROWS_PER_CHUNK - self._num_waiting]
            self._waiting[:, self._num_waiting : self._num_waiting + len(part)] = part.T
            self._num_waiting += len(part)
            scores = scores[len(part) :]
            if self._num_waiting == _ROWS_PER_CHUNK:
                self._write()

    def _write(self) -> None:
        if self._num_waiting:
            self._file.write(np.ascontiguousarray(self._waiting[:, : self._num_waiting]).data)
            self._chunk_rows.append(self._num_waiting)
            self._num_waiting = 0

    def columns(self, start: int, stop: int) -> Float32Array:
        """(stop - start, N) scores of the classes ``start`` to ``stop``."""
        self._write()
        parts = [np.empty((stop - start, 0), dtype=np.float32)]
        offset = 0
        for rows in self._chunk_rows:
            self._file.seek(4 * (offset + start * rows))
            data = self._file.read(4 * (stop - start) * rows)
            parts.append(np.frombuffer(data, dtype=np.float32).reshape(stop - start, rows))
            offset += rows * self.num_classes
        self._file.seek(0, 2)
        return np.concatenate(parts, axis=1)

    def close(self) -> None:
        self._file.close()
