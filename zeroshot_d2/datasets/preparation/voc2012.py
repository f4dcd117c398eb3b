"""PASCAL VOC 2012: the augmented labels for training, from the release of SBD (Hariharan et al., ICCV 2011).

    python -m zeroshot_d2 datasets prepare voc2012 [--root $DETECTRON2_DATASETS] [--workers N]

reads   VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt
        VOCdevkit/VOC2012/SegmentationClass/<image>.png
        VOCdevkit/VOC2012/benchmark_RELEASE/dataset/cls/<image>.mat      GTcls.Segmentation, 0 background, k class k
writes  VOCdevkit/VOC2012/SegmentationClassAug/<image>.png
        VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt

An image of VOC's own training set keeps VOC's label, which has a border of 255 around objects; SBD labels the others. Images
of val are left out. An interrupted run continues where it stopped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from ...cli import Parser, positive
from ...storage import check_inside, datasets_root, read_lines, whole_file, wrong_content
from ..builtin import load_class_list
from .jobs import run_jobs, save_label, write_lists

NUM_IMAGES = 10_582  # of the augmented training set, in every paper that trains on it

Job = tuple[Path, Path]  # label image of VOC or .mat file of SBD, output file


def rewrite(job: Job) -> None:
    """Copy VOC's label image, or write SBD's as PNG."""
    source, output = job
    if source.suffix == ".png":
        with whole_file(output) as temporary:
            shutil.copyfile(source, temporary)
        return
    try:
        label = loadmat(source)["GTcls"][0]["Segmentation"][0]
    # MATLAB's format has many parts, whose readers report damage as ValueError, TypeError, zlib.error, MatReadError, ...
    except Exception as error:
        reason = wrong_content(source.read_bytes()[:64]) or f"fetch it again ({error!r})"
        raise ValueError(f"{source} is no label file of SBD, or truncated: {reason}") from error
    most = len(load_class_list("voc2012").split)
    if not (isinstance(label, np.ndarray) and label.dtype.kind == "u" and label.ndim == 2 and label.size):
        raise ValueError(f"{source}: GTcls.Segmentation must hold a whole number for each pixel: fetch it again")
    if label.max() > most:
        raise ValueError(f"{source}: label {label.max()} must be a whole number from 0 to {most}: fetch the file again")
    save_label(output, label)


def convert(voc: Path, workers: int = 1) -> None:
    """Write the label images and the list below ``voc``, the folder VOC2012.

    Raises:
        FileNotFoundError: a part of VOC's or SBD's release is missing.
        ValueError: a file is damaged.
    """
    lists, masks = voc / "ImageSets" / "Segmentation", voc / "benchmark_RELEASE" / "dataset" / "cls"
    own, held_out = (
        {check_inside(stem, str(lists / name)) for stem in read_lines(lists / name, f"VOC's {name}", comments=False)}
        for name in ("train.txt", "val.txt")
    )
    augmented = {path.stem for path in masks.glob("*.mat")}
    if not augmented:
        raise FileNotFoundError(
            f"SBD's label files not found: looked for *.mat in {masks}; `python -m zeroshot_d2 datasets download voc2012` "
            "fetches them (see datasets/README.md)"
        )
    stems = sorted((own | augmented) - held_out)
    sources = {stem: voc / "SegmentationClass" / f"{stem}.png" if stem in own else masks / f"{stem}.mat" for stem in stems}
    missing = [path for path in sources.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(stems)} label files are missing, for example {missing[0]}: the release is incomplete, "
            "unpack it again"
        )
    outputs = [(source, voc / "SegmentationClassAug" / f"{stem}.png") for stem, source in sources.items()]
    run_jobs(rewrite, [job for job in outputs if not job[1].exists()], workers, "VOC 2012, augmented")
    if len(stems) != NUM_IMAGES:
        print(f"WARNING {len(stems)} images, the whole augmented training set has {NUM_IMAGES}")
    write_lists(lists, {"trainaug": stems})


def main(argv: Sequence[str] | None = None) -> None:
    """Run with the command-line arguments ``argv``."""
    parser = Parser("python -m zeroshot_d2 datasets prepare voc2012", __doc__, takes_keys=False)
    parser.add_argument("--root", type=Path, default=datasets_root())
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1)
    arguments = parser.parse(argv)
    convert(arguments.root / "VOCdevkit" / "VOC2012", arguments.workers)
