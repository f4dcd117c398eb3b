"""Videos in and out, by OpenCV. Frames are (H, W, 3) uint8 in BGR order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import cv2

from .images import ImageArray
from .storage import whole_file

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


class VideoError(OSError):
    """A video cannot be read or written; it is named."""


class VideoReader:
    """The frames of a file, once; to be used in a ``with`` block.

    Attributes:
        rate: frames per second.
        expected: the number of frames, as far as the container says; else None.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            VideoError: it cannot be opened.
        """
        self.path = path
        self._video = cv2.VideoCapture(str(path))
        if not self._video.isOpened():
            raise VideoError(
                f"cannot read the video {path}: it is damaged, or its codec is unknown to OpenCV; save it anew as .mp4"
            )
        self.rate: float = self._video.get(cv2.CAP_PROP_FPS) or 25.0
        expected = int(self._video.get(cv2.CAP_PROP_FRAME_COUNT))
        self.expected = expected if expected > 0 else None

    def __iter__(self) -> Iterator[ImageArray]:
        """
        Raises:
            VideoError: there is no frame.
        """
        there, frame = self._video.read()
        if not there:
            raise VideoError(f"cannot read the video {self.path}: it holds no frame that OpenCV can decode")
        while there:
            yield frame
            there, frame = self._video.read()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._video.release()


class VideoWriter:
    """An mp4 file that is whole or absent; its size is that of the first frame, whose sides must be even."""

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self._whole = whole_file(path)
        self._temporary = self._whole.__enter__()
        self._writer: cv2.VideoWriter | None = None
        self._frames = 0

    def write(self, frame: ImageArray) -> None:
        """
        Raises:
            VideoError: OpenCV cannot encode.
        """
        if self._writer is None:
            height, width = frame.shape[:2]
            self._writer = cv2.VideoWriter(str(self._temporary), cv2.VideoWriter.fourcc(*"mp4v"), self.rate, (width, height))
            if not self._writer.isOpened():
                raise VideoError(f"cannot write {self.path}: this build of OpenCV has no encoder for mp4")
        self._writer.write(frame)
        self._frames += 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """
        Raises:
            VideoError: not all frames have arrived in the file.
        """
        if self._writer is not None:
            self._writer.release()
            if error is None and _frames_in(self._temporary) != self._frames:  # OpenCV says nothing about a full disk
                error = VideoError(f"cannot write {self.path}: not all {self._frames} frames arrived, is the disk full?")
                self._whole.__exit__(type(error), error, None)
                raise error
        self._whole.__exit__(kind, error, trace)


def _frames_in(path: Path) -> int:
    """How many frames the container says that it has; 0 where it cannot be read."""
    video = cv2.VideoCapture(str(path))
    try:
        return int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 0
    finally:
        video.release()
