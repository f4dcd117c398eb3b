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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...cli import Parser, positive
from ...images import MAX_PIXELS
from ...json_stream import fields, stream_json_arrays
from ...segmentation.masks import check_size, decode_mask
from ...storage import check_inside, datasets_root
from ..builtin import load_class_list
from .jobs import run_jobs, save_label, write_lists

Segment = tuple[int, Any]  # label value, and its mask as in the JSON
Job = tuple[Path, Path, int, int, list[Segment]]  # JSON, output file, height, width, segments in painting order
PHASES = ("train", "val", "test")


def paint(job: Job) -> None:
    """Write one label image; a later segment covers an earlier one.

    Raises:
        ValueError: a mask is faulty; the image is named.
    """
    source, output, height, width, segments = job
    try:
        check_size(height, width, MAX_PIXELS)
        label = np.zeros((height, width), dtype=np.uint8)
        for value, segmentation in segments:
            label[decode_mask(segmentation, height, width)] = value
    except ValueError as error:
        raise ValueError(f"{source}, image {output.stem}: {error}; fetch the file again") from error
    save_label(output, label)


def read_parts(json_file: Path) -> Iterator[tuple[str, Any]]:
    """("images" or "annos_segmentation", entry) of the release's JSON, with the phase and name of images checked.

    Raises:
        FileNotFoundError, ValueError: the JSON is missing, cut off, or not the release's.
    """
    for key, entry in stream_json_arrays(json_file, ("images", "annos_segmentation")):
        if key == "images":
            name, phase = fields(entry, json_file, file_name=str, phase=str)
            check_inside(name, str(json_file))
            if phase not in PHASES:
                raise ValueError(f"{json_file}: the phase of {name} must be one of {', '.join(PHASES)}, got {phase!r}")
        yield key, entry


def parts_of(images: Sequence[dict[str, Any]], json_file: Path) -> dict[str, list[str]]:
    """The names of the images of "train" and "val".

    Raises:
        ValueError: there is none, or one is listed twice.
    """
    parts: dict[str, list[str]] = {"train": [], "val": []}
    for image in images:
        if image["phase"] in parts:
            parts[image["phase"]].append(Path(image["file_name"]).stem)
    stems = [stem for part in parts.values() for stem in part]
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        raise ValueError(f"{json_file} lists {len(twice)} images twice, such as {twice[0]}: fetch it again")
    if not stems:
        raise ValueError(f"{json_file} lists no image of train or val: is it the right file?")
    return parts


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
    for key, entry in read_parts(json_file):
        if key == "images":
            images.append(entry)
            continue
        image_id, category, segmentation = fields(entry, json_file, image_id=int, category_id=int, segmentation=object)
        if category in value_of:
            segments[image_id].append((value_of[category], segmentation))
        else:
            other[category] += 1
    if other:
        print(f"{sum(other.values())} segments of {len(other)} categories outside the 59 are left unlabelled")

    parts = parts_of(images, json_file)
    jobs: list[Job] = []
    for image in images:
        image_id, height, width = fields(image, json_file, image_id=int, height=int, width=int)
        label_file = output / "labels" / f"{Path(image['file_name']).stem}.png"
        if image["phase"] in parts and not label_file.exists():
            jobs.append((json_file, label_file, height, width, segments[image_id]))
    lost = segments.keys() - {image["image_id"] for image in images}
    if lost:
        raise ValueError(f"{json_file} has segments of image {min(lost)}, which it does not list: fetch it again")
    run_jobs(paint, jobs, workers, "PASCAL Context")
    write_lists(output, parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Run with the command-line arguments ``argv``."""
    parser = Parser("python -m zeroshot_d2 datasets prepare pascal_context", __doc__, takes_keys=False)
    parser.add_argument("--root", type=Path, default=datasets_root())
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1)
    arguments = parser.parse(argv)
    folder = arguments.root / "VOCdevkit" / "VOC2010"
    convert(folder / "trainval_merged.json", folder / "pascal_context_59", arguments.workers)
