"""PASCAL Context, all 459 classes: label images from the release's .mat files.

    python -m zeroshot_d2 datasets prepare pascal_context_459 [--root $DETECTRON2_DATASETS] [--workers N]

reads   VOCdevkit/VOC2010/trainval/<image>.mat      LabelMap, 16-bit, from trainval.tar.gz
        VOCdevkit/VOC2010/trainval_merged.json      only which image belongs to train and which to val
writes  VOCdevkit/VOC2010/pascal_context_459/labels/<image>.png   16-bit, 0 unlabelled, k+1 class k
        VOCdevkit/VOC2010/pascal_context_459/{train,val}.txt

An interrupted run continues where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from ...cli import Parser, positive
from ...storage import datasets_root, wrong_content
from ..builtin import load_class_list
from .jobs import run_jobs, save_label, write_lists
from .pascal_context import parts_of, read_parts

Job = tuple[Path, Path]  # .mat file, output file


def rewrite(job: Job) -> None:
    """Write the LabelMap of one .mat file as PNG."""
    mat_file, output = job
    try:
        content = loadmat(mat_file)
    # MATLAB's format has many parts, whose readers report damage as ValueError, TypeError, zlib.error, MatReadError, ...
    except Exception as error:
        reason = wrong_content(mat_file.read_bytes()[:64]) or f"fetch it again ({error})"
        raise ValueError(f"{mat_file} is unreadable or truncated: {reason}") from error
    label = content.get("LabelMap")
    if label is None:
        raise ValueError(f"{mat_file} has no LabelMap: it is not a label file of PASCAL Context, fetch it again")
    most = len(load_class_list("pascal_context_459").split)
    whole = isinstance(label, np.ndarray) and label.dtype.kind in "uif" and label.ndim == 2 and label.size > 0
    if not whole:
        kind = f"{label.dtype} values of shape {label.shape}" if isinstance(label, np.ndarray) else type(label).__name__
        raise ValueError(f"{mat_file}: LabelMap must hold a whole number for each pixel, got {kind}")
    strange = label[~((label >= 0) & (label <= most) & (label == np.rint(label)))]
    if strange.size:
        raise ValueError(f"{mat_file}: label {strange[0]} must be a whole number from 0 to {most}: fetch the file again")
    save_label(output, label)


def convert(mat_root: Path, json_file: Path, output: Path, workers: int = 1) -> None:
    """Write the label images and the lists of both parts.

    Raises:
        FileNotFoundError: the folder, the JSON, or label files are missing; some are named.
        ValueError: a file is damaged.
    """
    for path, what in ((mat_root, "the folder of the .mat files"), (json_file, "trainval_merged.json")):
        if not path.exists():
            raise FileNotFoundError(f"{what} not found: looked for {path} (see datasets/README.md)")
    parts = parts_of([entry for key, entry in read_parts(json_file) if key == "images"], json_file)
    stems = sorted(stem for part in parts.values() for stem in part)
    missing = [stem for stem in stems if not (mat_root / f"{stem}.mat").exists()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(stems)} label files are missing in {mat_root}, for example {missing[0]}.mat: "
            "the download is incomplete, fetch it again"
        )
    outputs = [(mat_root / f"{stem}.mat", output / "labels" / f"{stem}.png") for stem in stems]
    run_jobs(rewrite, [job for job in outputs if not job[1].exists()], workers, "PASCAL Context 459")
    write_lists(output, parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Run with the command-line arguments ``argv``."""
    parser = Parser("python -m zeroshot_d2 datasets prepare pascal_context_459", __doc__, takes_keys=False)
    parser.add_argument("--root", type=Path, default=datasets_root())
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1)
    arguments = parser.parse(argv)
    folder = arguments.root / "VOCdevkit" / "VOC2010"
    convert(folder / "trainval", folder / "trainval_merged.json", folder / "pascal_context_459", arguments.workers)
