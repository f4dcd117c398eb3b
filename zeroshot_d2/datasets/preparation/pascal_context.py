"""PASCAL Context, 59 classes: label images from the release's JSON (``trainval_merged.json``).

    python -m zeroshot_d2 datasets prepare pascal_context [--root $DETECTRON2_DATASETS] [--workers N]

reads   VOCdevkit/VOC2010/trainval_merged.json
writes  VOCdevkit/VOC2010/pascal_context_59/labels/<image>.png   0 unlabelled, k+1 class k
        VOCdevkit/VOC2010/pascal_context_59/{train,val}.txt

An interrupted run continues where it stopped.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ...cli import Parser
from ...storage import datasets_root
from ..builtin import load_class_list
from .jobs import run_jobs, save_label, write_lists
from .json_stream import stream_json_arrays

Segment = tuple[int, Any]  # label value, and its mask as in the JSON
Job = tuple[Path, int, int, list[Segment]]  # output file, height, width, segments in painting order


def paint(job: Job) -> None:
    """Write one label image; a later segment covers an earlier one."""
    output, height, width, segments = job
    label = np.zeros((height, width), dtype=np.uint8)
    for value, segmentation in segments:
        if isinstance(segmentation, list):  # polygons
            run_lengths = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):  # run lengths as numbers
            run_lengths = coco_mask.frPyObjects(segmentation, height, width)
        else:
            run_lengths = segmentation
        mask = coco_mask.decode(run_lengths).astype(bool)
        if mask.shape != label.shape:
            raise ValueError(f"{output.stem}: a mask of {mask.shape} in an image of {label.shape} (height, width)")
        label[mask] = value
    save_label(output, label)


def convert(json_file: Path, output: Path, workers: int = 1) -> None:
    """Write the label images and the lists of both parts.

    Raises:
        FileNotFoundError, ValueError: the JSON is missing, cut off, or not the release's.
    """
    if not json_file.is_file():
        raise FileNotFoundError(
            f"{json_file} not found: it is trainval_merged.json of the PASCAL in Detail / PASCAL Context download "
            "(see datasets/README.md)"
        )
    classes = load_class_list("pascal_context_59")
    value_of = dict(zip(classes.release_ids, classes.label_values, strict=True))
    images: list[dict[str, Any]] = []
    segments: defaultdict[Any, list[Segment]] = defaultdict(list)
    other: Counter[int] = Counter()
    for key, entry in stream_json_arrays(json_file, ("images", "annos_segmentation")):
        if key == "images":
            images.append(entry)
        elif entry["category_id"] in value_of:
            segments[entry["image_id"]].append((value_of[entry["category_id"]], entry["segmentation"]))
        else:
            other[entry["category_id"]] += 1
    if other:
        print(f"{sum(other.values())} segments of {len(other)} categories outside the 59 are left unlabelled")

    parts: dict[str, list[str]] = {"train": [], "val": []}
    jobs: list[Job] = []
    for image in images:
        stem = Path(image["file_name"]).stem
        if image["phase"] not in parts:
            continue
        parts[image["phase"]].append(stem)
        label_file = output / "labels" / f"{stem}.png"
        if not label_file.exists():
            jobs.append((label_file, image["height"], image["width"], segments[image["image_id"]]))
    run_jobs(paint, jobs, workers, "PASCAL Context")
    write_lists(output, parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Run with the command-line arguments ``argv``."""
    parser = Parser("python -m zeroshot_d2 datasets prepare pascal_context", __doc__, takes_keys=False)
    parser.add_argument("--root", type=Path, default=datasets_root())
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse(argv)
    folder = arguments.root / "VOCdevkit" / "VOC2010"
    convert(folder / "trainval_merged.json", folder / "pascal_context_59", arguments.workers)
