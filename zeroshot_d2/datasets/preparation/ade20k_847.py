"""ADE20K, 847 classes (A-847): images and 16-bit label images from the full release of 2021_17_01.

    python -m zeroshot_d2 datasets prepare ade20k_847 [--root $DETECTRON2_DATASETS] [--parts validation] [--short-side 512]
    [--workers N]

reads   ADE20K_2021_17_01/images/ADE/{training,validation}/**/<image>.jpg and <image>_seg.png
writes  ADE20K_2021_17_01/ade20k_847/images/{training,validation}/<image>.jpg
        ADE20K_2021_17_01/ade20k_847/labels/{training,validation}/<image>.png   16-bit class index of the
        release, 0 unlabelled

The benchmark scales images and labels down to a short side of 512 pixels (MaskFormer, NeurIPS 2021); 0 keeps
their size. Which of the release's classes count, and where, is decided when a label is read. An interrupted
run continues.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...cli import Parser, from_zero, positive
from ...images import UnreadableImage, image_size, read_image, turned_with, write_image
from ...storage import datasets_root
from .jobs import run_jobs, save_label

_SIZES_LOOKED_AT = 20
MOST_CLASSES = 4095  # some more than the release has
Job = tuple[Path, Path, Path, int]  # image, output image, output label, short side (0: as it is)


def class_indices(segmentation: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """Class of each pixel of a ``*_seg.png`` (H, W, 3): red // 10 * 256 + green, counted from 1."""
    red, green = segmentation[..., 0].astype(np.uint16), segmentation[..., 1].astype(np.uint16)
    return red // 10 * 256 + green


def smaller(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """(width, height) scaled so that the shorter one is ``short_side``; never larger than before."""
    if short_side == 0 or min(size) <= short_side:
        return size
    scale = short_side / min(size)
    return round(size[0] * scale), round(size[1] * scale)


def rewrite(job: Job) -> None:
    """Write one image and its label; the label last, since it marks the pair as done."""
    image_file, output_image, output_label, short_side = job
    try:
        segmentation = image_file.with_name(f"{image_file.stem}_seg.png")
        indices = class_indices(read_image(segmentation, formats=("PNG",)))
        label = Image.fromarray(turned_with(image_file, indices.astype(np.int32)))
        image = Image.fromarray(read_image(image_file))
    except (FileNotFoundError, UnreadableImage) as error:
        raise ValueError(f"{image_file} or its _seg.png is missing or damaged: {error}") from error
    if image.size != label.size:
        raise ValueError(
            f"{image_file}: image {image.size} and label {label.size} of {segmentation.name} differ in size (width, "
            "height): fetch them again"
        )
    if (indices > MOST_CLASSES).any():
        raise ValueError(
            f"{segmentation} has the class {int(indices.max())}, more than the release has: its colours are no classes, "
            "fetch it again"
        )
    size = smaller(image.size, short_side)
    write_image(output_image, np.asarray(image.resize(size, Image.Resampling.BILINEAR)), quality=95)
    save_label(output_label, np.asarray(label.resize(size, Image.Resampling.NEAREST)))


def convert(release: Path, output: Path, part: str, short_side: int = 512, workers: int = 1) -> None:
    """Write the images and labels of "training" or "validation".

    Raises:
        FileNotFoundError: the folder is missing or holds no image.
        ValueError: a file is damaged or has no label, or there are files of another ``short_side``.
    """
    folder = release / "images" / "ADE" / part
    images = sorted(folder.rglob("*.jpg"))
    if not images:
        raise FileNotFoundError(
            f"no image found below {folder}: unpack the full ADE20K release of 2021_17_01 there (see datasets/README.md)"
        )
    twice = [stem for stem, count in Counter(image.stem for image in images).items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} images below {folder} have the name of another, such as {twice[0]}.jpg: remove one of them"
        )
    pairs = [(image, output / "labels" / part / f"{image.stem}.png") for image in images]
    _check_size([pair for pair in pairs if pair[1].exists()], short_side)
    jobs: list[Job] = []
    for image, output_label in pairs:
        if not output_label.exists():
            jobs.append((image, output / "images" / part / image.name, output_label, short_side))
    run_jobs(rewrite, jobs, workers, f"A-847 {part}")
    print(f"{part}: {len(images)} images")


def _check_size(pairs: list[tuple[Path, Path]], short_side: int) -> None:
    """Raise ValueError where the labels that an earlier run wrote have another size; a few of them are looked at."""
    for image, label in pairs[:: max(1, len(pairs) // _SIZES_LOOKED_AT)]:
        height, width = image_size(image)
        found, wanted = image_size(label)[::-1], smaller((width, height), short_side)
        if found != wanted:
            raise ValueError(
                f"{label} is {found[0]} x {found[1]} (width x height), not {wanted[0]} x {wanted[1]} as with --short-side "
                f"{short_side}: take the value of the earlier run, or remove {label.parent} and its images first"
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Run with the command-line arguments ``argv``."""
    parser = Parser("python -m zeroshot_d2 datasets prepare ade20k_847", __doc__, takes_keys=False)
    parser.add_argument("--root", type=Path, default=datasets_root())
    parser.add_argument("--parts", nargs="+", choices=("training", "validation"), default=["validation"])
    parser.add_argument("--short-side", type=from_zero, default=512, help="in pixels; 0 keeps the size")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1)
    arguments = parser.parse(argv)
    release = arguments.root / "ADE20K_2021_17_01"
    for part in arguments.parts:
        convert(release, release / "ade20k_847", part, arguments.short_side, arguments.workers)
