"""What loading a training image costs on one core, stage by stage: ``python -m benchmarks.loading``.

The mappers of COCO-Stuff's training (``coco/alignzeg.yaml``) and of NUS-WIDE's (``nus_wide/epsilon.yaml``) read photos that
are made up for it, JPEGs with some grain. Epsilon's mapper decodes a JPEG at a reduced scale where the crop allows it;
"whole" is the same mapper without that. Cases alternate. Times are CPU time, medians over rounds; only ratios within one run
mean anything.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image
from tabulate import tabulate

from zeroshot_d2.cli import Parser, load_config, positive
from zeroshot_d2.images import write_image
from zeroshot_d2.multilabel import mapper as multilabel
from zeroshot_d2.segmentation import mapper as segmentation
from zeroshot_d2.vocabulary import split_of_dataset

DECODE, LABELS, RESIZE, COLOUR, REST = "decode", "labels", "resize, crop, pad, flip", "colour", "to tensor, rest"
STAGES = (DECODE, LABELS, RESIZE, COLOUR, REST)


class Stopwatch:
    """CPU seconds by stage, of functions that it takes the place of."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, whose time counts for ``stage``."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[stage] += time.process_time() - start

        return wrapped


class TimedAugmentation(T.Augmentation):
    """An augmentation of Detectron2's under a stopwatch."""

    def __init__(self, augmentation: T.Augmentation, watch: Stopwatch) -> None:
        super().__init__()
        # The colours come as a transform, which a list of augmentations wraps.
        is_colour = isinstance(getattr(augmentation, "tfm", None), segmentation.ColorAugSSDTransform)
        self.run = watch.timed(COLOUR if is_colour else RESIZE, augmentation)

    def __call__(self, aug_input: T.AugInput) -> T.Transform:
        return self.run(aug_input)


@dataclass
class Case:
    """A mapper and what it loads.

    Args:
        name: for the table.
        mapper: of dataset dicts.
        records: dataset dicts of files that are there.
        patched: a function of a module in the place of another while the case runs: (module, name, stage, function).
    """

    name: str
    mapper: Any
    records: list[dict[str, Any]]
    patched: list[tuple[Any, str, str, Callable[..., Any]]] = field(default_factory=list)

    def run(self) -> dict[str, float]:
        """Milliseconds of CPU time an image, by stage."""
        watch = Stopwatch()
        with ExitStack() as stack:
            for module, name, stage, function in self.patched:
                stack.enter_context(patch.object(module, name, watch.timed(stage, function)))
            if isinstance(self.mapper, segmentation.SegmentationMapper):
                augmentations = [TimedAugmentation(each, watch) for each in self.mapper.augmentations.augs]
                stack.enter_context(patch.object(self.mapper, "augmentations", T.AugmentationList(augmentations)))
            start = time.process_time()
            for record in self.records:
                self.mapper(record)
            whole = time.process_time() - start
        seconds = dict(watch.seconds)
        seconds[REST] = whole - sum(seconds.values())
        return {stage: 1000 * seconds.get(stage, 0.0) / len(self.records) for stage in STAGES}


def photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A made-up photo (H, W, 3): smooth shapes and some grain."""
    coarse = rng.integers(0, 256, (height // 32 + 2, width // 32 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    return np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def segmentation_case(folder: Path, count: int) -> Case:
    """COCO-Stuff's training pipeline on photos of 640 x 480 with label images."""
    cfg = load_config("coco/alignzeg.yaml")
    dataset = cfg.DATASETS.TRAIN[0]
    rng = np.random.default_rng(0)
    lut = MetadataCatalog.get(dataset).label_table.lut[:255]
    values = np.flatnonzero(lut < len(split_of_dataset(dataset))).astype(np.uint8)
    records = []
    for i in range(count):
        write_image(folder / f"{i}.jpg", photo(rng, 480, 640), quality=90)
        write_image(folder / f"{i}.png", rng.choice(values, (15, 20)).repeat(32, 0).repeat(32, 1))
        files = {"file_name": str(folder / f"{i}.jpg"), "sem_seg_file_name": str(folder / f"{i}.png")}
        records.append({**files, "dataset_name": dataset})
    patched = [
        (segmentation, "read_image", DECODE, segmentation.read_image),
        (segmentation, "read_label_image", LABELS, segmentation.read_label_image),
    ]
    return Case("COCO-Stuff, 640 x 480", segmentation.SegmentationMapper(cfg, is_train=True), records, patched)


def multilabel_cases(folder: Path, count: int, height: int, width: int) -> list[Case]:
    """NUS-WIDE's training pipeline on photos of one size, at reduced scale and whole."""
    cfg = load_config("nus_wide/epsilon.yaml")
    rng = np.random.default_rng(0)
    records = []
    for i in range(count):
        write_image(folder / f"{width}_{i}.jpg", photo(rng, height, width), quality=90)
        labels = {"positive_labels": np.array([0]), "negative_labels": np.array([], dtype=np.int64)}
        file = str(folder / f"{width}_{i}.jpg")
        records.append({"file_name": file, "dataset_name": cfg.DATASETS.TRAIN[0], **labels})

    def whole(path: str, *, max_pixels: int, at_least: tuple[int, int]) -> np.ndarray:
        return reduced(path, max_pixels=max_pixels)

    reduced = multilabel.read_image
    cases = []
    for name, read in (("", reduced), (", whole", whole)):
        mapper = multilabel.MultiLabelMapper(cfg, is_train=True)
        assert mapper.crop is not None
        patched = [
            (multilabel, "image_size", DECODE, multilabel.image_size),
            (multilabel, "read_image", DECODE, read),
            (mapper.crop, "transform", RESIZE, mapper.crop.transform),
            (mapper, "transform", RESIZE, mapper.transform),
        ]
        cases.append(Case(f"Epsilon, {width} x {height}{name}", mapper, records, patched))
    return cases


def measure(folder: Path, images: int, rounds: int) -> dict[str, list[Mapping[str, float]]]:
    """{case: what :meth:`Case.run` gave in each round}; the cases alternate."""
    cases = [
        segmentation_case(folder, images),
        *multilabel_cases(folder, images, 375, 500),
        *multilabel_cases(folder, images, 768, 1024),
    ]
    for case in cases:
        case.run()  # what is loaded or compiled at the first use
    measured: dict[str, list[Mapping[str, float]]] = {case.name: [] for case in cases}
    for number in range(rounds):
        torch.manual_seed(number)  # the same crops, whole or not
        for case in cases:
            with torch.random.fork_rng(devices=[]):
                measured[case.name].append(case.run())
    return measured


def table(measured: Mapping[str, list[Mapping[str, float]]]) -> str:
    """A row for each case, medians over the rounds."""
    rows = []
    for name, runs in measured.items():
        sums = [sum(run.values()) for run in runs]
        median = statistics.median(sums)
        whole = measured.get(f"{name}, whole")
        ratios = [sum(theirs.values()) / ours for theirs, ours in zip(whole, sums, strict=True)] if whole else []
        stages = [f"{statistics.median(run[stage] for run in runs):.2f}" for stage in STAGES]
        faster = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""
        rows.append([name, *stages, f"{median:.2f} ({min(sums):.2f} to {max(sums):.2f})", f"{1000 / median:.0f}", faster])
    headers = ["ms an image", *STAGES, "together", "images/s and core", "times as fast as whole"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = Parser("python -m benchmarks.loading", __doc__, takes_keys=False)
    parser.add_argument("--images", type=positive, default=16, help="made up for each size")
    parser.add_argument("--rounds", type=positive, default=7)
    args = parser.parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(table(measure(Path(folder), args.images, args.rounds)))


if __name__ == "__main__":
    main()
