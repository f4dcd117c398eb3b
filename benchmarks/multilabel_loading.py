"""What nine million images with image-level labels cost to load: ``python -m benchmarks.multilabel_loading``.

A synthetic label file of the size of Open Images V4's training set (9,011,219 images, 27,894,289 labels, 7,586
classes) is written once, then

* columns: opened by this project's memory-mapped loader, and read at random by 1 and by 4 loader workers;
* list: the same dataset dicts as a Python list, as Detectron2 keeps them (``DatasetFromList``, serialised), at
a twentieth of
  the size, since the whole would not fit; its numbers are also printed times twenty.

Each case runs in a process of its own. Memory is from /proc, so Linux only: "private" belongs to one process
alone, while "shared" pages are the page cache's and there once for all processes. Only ratios within one run
mean anything.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from torch.utils.data import DataLoader, Dataset

from benchmarks.own_process import json_of_own_process
from zeroshot_d2.cli import Parser
from zeroshot_d2.multilabel.columns import LabelColumns, MultiLabelDataset

IMAGES, LABELS, CLASSES = 9_011_219, 27_894_289, 7_586
LIST_SHARE = 20  # the list is made of one image in so many
READS = 50_000
WORKERS = 4


def write_file(path: Path, images: int, labels: int) -> float:
    """Write random labels; seconds it took."""
    start = time.perf_counter()
    rng = np.random.default_rng(0)
    LabelColumns.build(
        [f"/m/{k:06x}" for k in range(CLASSES)],
        (f"{k:016x}.jpg" for k in range(images)),
        rng.integers(0, images, labels),
        rng.integers(0, CLASSES, labels, dtype=np.int32),
        rng.choice(np.array([-1, 1], dtype=np.int8), labels),
    ).save(path)
    return time.perf_counter() - start


def memory() -> dict[str, float]:
    """Megabytes of this process: private to it, and shared with others or with the page cache."""
    fields: dict[str, int] = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        fields[name] = int(value.split()[0])
    # Clean private pages of a mapped file are the page cache's, only nobody else has touched them yet.
    dirty, mapped = fields["Private_Dirty"], fields["Rss"] - fields["Private_Dirty"]
    return {"private_mb": dirty / 1024, "shared_mb": mapped / 1024}


class Probe(Dataset[dict[str, float]]):
    """Reads a record, and says how much memory the process that did so has now."""

    def __init__(self, records: Any, order: np.ndarray) -> None:
        self.records, self.order = records, order
        self.before: dict[str, float] | None = None

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, float]:
        if self.before is None:
            self.before = memory()
        record = self.records[int(self.order[index])]
        assert record["file_name"]
        if index % 5000 == 0:
            now = memory()
            return {"grown_mb": now["private_mb"] - self.before["private_mb"]}
        return {"grown_mb": 0.0}


def read(records: Any, workers: int) -> dict[str, float]:
    """Read ``READS`` records at random; records per second, and the largest growth of private memory in a process."""
    order = np.random.default_rng(1).integers(0, len(records), READS)
    loader = DataLoader(Probe(records, order), batch_size=500, num_workers=workers, collate_fn=list)
    start = time.perf_counter()
    grown = max(sample["grown_mb"] for batch in loader for sample in batch)
    return {"reads_per_s": READS / (time.perf_counter() - start), "grown_mb": grown}


def measure(case: str, file: Path) -> dict[str, float]:
    """One case, in this process."""
    torch.set_num_threads(1)
    columns = LabelColumns.open(file)
    names = columns.class_ids
    before = memory()
    start = time.perf_counter()
    if case == "list":
        whole = MultiLabelDataset("list", columns, "images", vocabulary_ids=names)
        start = time.perf_counter()
        records: Any = DatasetFromList([whole[i] for i in range(0, len(whole), LIST_SHARE)], copy=False)
    else:
        records = MultiLabelDataset("columns", LabelColumns.open(file), "images", vocabulary_ids=names)
    seconds = time.perf_counter() - start
    after = memory()
    result = {"load_s": seconds, "private_mb": after["private_mb"] - before["private_mb"]}
    for workers in (0, WORKERS):
        for key, value in read(records, workers).items():
            result[f"{key}_{workers}_workers"] = value
    return result


def main() -> None:
    parser = Parser("python -m benchmarks.multilabel_loading", __doc__, takes_keys=False)
    parser.add_argument("--share", type=float, default=1.0, help="make the file this much smaller")
    parser.add_argument("--case", choices=("columns", "list"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse()
    if arguments.case:
        print(json.dumps(measure(arguments.case, arguments.file)))
        return
    images, labels = round(IMAGES * arguments.share), round(LABELS * arguments.share)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "labels.npz"
        seconds = write_file(file, images, labels)
        print(f"{images} images, {labels} labels: written in {seconds:.0f} s, {file.stat().st_size / 2**20:.0f} MB on disk")
        for case in ("columns", "list"):
            numbers = json_of_own_process("benchmarks.multilabel_loading", ["--case", case, "--file", str(file)])
            print(f"{case}" + (f" (1/{LIST_SHARE} of the images)" if case == "list" else ""))
            for key, value in numbers.items():
                scaled = case == "list" and key in ("load_s", "private_mb")
                print(f"  {key:24s} {value:12.3f}" + (f"   times {LIST_SHARE}: {value * LIST_SHARE:.0f}" if scaled else ""))


if __name__ == "__main__":
    main()
