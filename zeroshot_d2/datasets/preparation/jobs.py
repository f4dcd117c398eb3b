"""What the preparations share: label images and lists as whole files, and parallel work with a bar."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ...images import write_image
from ...storage import PathLike, write_text

Job = TypeVar("Job")
Result = TypeVar("Result")


def save_label(path: PathLike, label: npt.NDArray[np.integer]) -> None:
    """Write a label image (H, W) as PNG, 8-bit if its values fit, else 16-bit.

    Raises:
        ValueError: a value does not fit into 16 bits.
    """
    low, high = (int(label.min()), int(label.max())) if label.size else (0, 0)
    if low < 0 or high > 65535:
        raise ValueError(f"{path}: label values [{low}, {high}] do not fit into 16 bits")
    write_image(path, label.astype(np.uint8 if high < 256 else np.uint16))


def write_lists(folder: Path, parts: Mapping[str, Collection[str]]) -> None:
    """Write the image names of each part to ``<part>.txt`` in ``folder``, sorted, one per line; print how many they are."""
    for part, stems in parts.items():
        write_text(folder / f"{part}.txt", "".join(f"{stem}\n" for stem in sorted(stems)))
        print(f"{part}: {len(stems)} images")


def map_jobs(
    function: Callable[[Job], Result], jobs: Iterable[Job], workers: int, title: str, total: int | None = None
) -> Iterator[Result]:
    """Run ``function`` on every job, in ``workers`` processes, with a progress bar; the first error ends it.

    Args:
        function: a module-level function.
        jobs: its arguments; taken one by one, a few for each worker ahead.
        workers: number of processes; 1 runs in this one.
        title: of the progress bar.
        total: how many jobs there are, where ``jobs`` has no length.

    Yields:
        The results, in the order in which they are done.

    Raises:
        ValueError: ``workers`` is not positive.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    count = len(jobs) if isinstance(jobs, Sequence) else total
    with tqdm(total=count, desc=title) as bar:
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
