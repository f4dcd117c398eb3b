"""Videos are whole or absent."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from zeroshot_d2.video import VideoReader, VideoWriter


def frames(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8) for i in range(count)]


@pytest.mark.parametrize("count", [1, 7])
def test_what_is_written_is_read(tmp_path, count):
    with VideoWriter(tmp_path / "a.mp4", 5.0) as video:
        for frame in frames(count):
            video.write(frame)
    with VideoReader(tmp_path / "a.mp4") as video:
        assert video.rate == 5.0 and len(list(video)) == count
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_after_an_error_nothing_is_left(tmp_path):
    with pytest.raises(KeyError), VideoWriter(tmp_path / "a.mp4", 5.0) as video:
        video.write(frames(1)[0])
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said(tmp_path):
    """OpenCV itself says nothing; the limit on the size of files stands for the disk."""
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(__file__.rsplit("/", 1)[0])!r})
from pathlib import Path
from test_video import frames
from zeroshot_d2.video import VideoWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
with VideoWriter(Path({str(tmp_path)!r}) / "a.mp4", 5.0) as video:
    for frame in frames(60):
        video.write(frame)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "not all 60 frames arrived" in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())
