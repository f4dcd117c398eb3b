"""OUTPUT_DIR belongs to one run at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from detectron2.utils import comm

from .storage import UNFINISHED, PathLike

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"


@contextlib.contextmanager
def hold(folder: PathLike) -> Iterator[None]:
    """Keep other runs out of ``folder`` for the length of the block; all processes of a run enter it together.

    The lock is the operating system's, so it dies with the main process, however that ends. What a killed run had not
    finished writing is removed.

    Args:
        folder: OUTPUT_DIR, which is made; "" holds nothing.

    Raises:
        ValueError: another run holds it.
        OSError: it cannot be made or written to.
    """
    if not str(folder):
        yield
        return
    file, problem = None, ""
    if comm.is_main_process():
        Path(folder).mkdir(parents=True, exist_ok=True)
        file, problem = _lock(Path(folder))
    (problem, *_) = comm.all_gather(problem)
    if problem:
        raise ValueError(problem)
    try:
        if file is not None:
            for left in Path(folder).glob(f"{UNFINISHED}*"):
                left.unlink(missing_ok=True)
        yield
    finally:
        if file is not None:
            file.close()


def _lock(folder: Path) -> tuple[IO[str] | None, str]:
    """The open lock file, or None and why it cannot be had."""
    file = (folder / LOCK_FILE).open("a+", encoding="utf-8")
    try:
        if sys.platform == "win32":
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            # Not flock, which a loader worker that outlives its parent would go on holding.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        return None, (
            f"another run (process {owner}) is writing to OUTPUT_DIR {folder}: wait for its end, or give this one an "
            "OUTPUT_DIR of its own"
        )
    except OSError as error:  # a file system without locks
        logger.warning("OUTPUT_DIR %s cannot be locked (%s): make sure that no other run writes to it", folder, error)
        return file, ""
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file, ""
