"""Open Images V4: one label file per part, from the human image-level labels of the release of 2018_04.

    python -m zeroshot_d2 datasets prepare open_images_v4 [--root $DETECTRON2_DATASETS] [--parts train validation test]
    [--no-image-check]

reads   open_images_v4/<part>-annotations-human-imagelabels.csv   (or in a folder <part>)
        open_images_v4/<part>/<ImageID>.jpg
        for the part train_boxes, which is asked for by name: train's labels, and the images with boxes in train_boxes/
writes  open_images_v4/open_images_v4_<part>.npz      7,186 seen and 400 unseen classes, by MID; +1 present, -1 absent

A part whose file is there is left as it is; delete the file to make it again.
"""

from __future__ import annotations

import csv
import os
import re
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...cli import Parser
from ...multilabel.columns import LabelColumns
from ...storage import datasets_root, wrong_content
from ..builtin import load_class_list

# Rows of the CSV files, from the release's page of facts and figures: a cut-off download is noticed.
IMAGE_ID = re.compile("[0-9a-f]{16}")
ROWS = {"train": 27_894_289, "validation": 551_390, "test": 1_667_399}
# The training images that are offered for download, 1,743,042 of 9 million, have train's labels and a folder of their own.
SHARED_LABELS = {"train_boxes": "train"}
CONFIDENCES = {"1": 1, "1.0": 1, "0": -1, "0.0": -1}
HEADER = ["ImageID", "Source", "LabelName", "Confidence"]


def convert(root: Path, part: str, check_images: bool = True, expected_rows: int | None = None) -> None:
    """Write the label file of one part.

    Args:
        root: the folder ``open_images_v4``.
        part: "train", "train_boxes", "validation" or "test".
        check_images: leave out images whose file is missing.
        expected_rows: how many labels the whole CSV has; another number is reported.

    Raises:
        FileNotFoundError: the CSV or the image folder is missing.
        ValueError: the CSV is not the release's; the line is named.
    """
    labels = SHARED_LABELS.get(part, part)
    name = f"{labels}-annotations-human-imagelabels.csv"
    candidates = [root / name, root / labels / name]
    csv_file = next((path for path in candidates if path.is_file()), None)
    if csv_file is None:
        raise FileNotFoundError(
            f"{name} not found: looked for {' and '.join(map(str, candidates))} (see datasets/README.md)"
        )
    folder = root / part
    if check_images and not folder.is_dir():
        raise FileNotFoundError(f"images not found: looked for the folder {folder}; --no-image-check goes on without")
    class_ids = load_class_list("open_images_v4").class_ids
    class_of = {mid: k for k, mid in enumerate(class_ids)}

    # 28 million rows: numbers in arrays, image ids as 64-bit integers, which is what their 16 hexadecimal digits are.
    images, classes, signs = array("Q"), array("i"), array("b")
    with open(csv_file, "rb") as file:
        reason = wrong_content(file.read(64))
    if reason:
        raise ValueError(f"{csv_file} cannot be read: {reason}")
    with open(csv_file, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text)
        try:
            if next(reader, []) != HEADER:
                raise ValueError(f"the first line should be {','.join(HEADER)}")
            for row in tqdm(reader, part, expected_rows, unit=" labels", unit_scale=True):
                number, mid, sign = _label(row)
                images.append(number)
                classes.append(class_of.get(mid, -1))
                signs.append(sign)
        except (ValueError, csv.Error) as error:  # UnicodeDecodeError is a ValueError
            reason = f"it is not UTF-8 ({error.reason})" if isinstance(error, UnicodeDecodeError) else str(error)
            line = reader.line_num + isinstance(error, UnicodeDecodeError)
            raise ValueError(f"{csv_file}, line {line}: {reason}; fetch it again") from error
    rows = len(classes)
    if expected_rows is not None and rows != expected_rows:
        print(f"WARNING {part}: {rows} labels, the whole release has {expected_rows}: the download is incomplete")
    image_numbers = np.frombuffer(images, dtype=np.uint64)
    class_numbers, sign_numbers = np.frombuffer(classes, dtype=np.int32), np.frombuffer(signs, dtype=np.int8)
    if not rows:
        raise ValueError(f"{csv_file} has a heading and no label: fetch it again")
    outside = int((class_numbers < 0).sum())
    if outside == rows:
        raise ValueError(f"{csv_file}: none of its {rows} labels is of the {len(class_ids)} classes, is it the right file?")
    print(f"{part}: {rows} labels, {outside} of them of classes outside the {len(class_ids)}")
    unique, position = np.unique(image_numbers, return_inverse=True)
    kept = np.ones(len(unique), dtype=bool)
    if check_images:
        with os.scandir(folder) as entries:
            stems = [entry.name.removesuffix(".jpg") for entry in entries if entry.name.endswith(".jpg")]
        strange = [stem for stem in stems if not IMAGE_ID.fullmatch(stem)]
        if strange:
            print(f"{part}: {len(strange)} files in {folder} are no images of the release, such as {strange[0]}.jpg")
        there = np.fromiter((int(stem, 16) for stem in stems if IMAGE_ID.fullmatch(stem)), dtype=np.uint64)
        kept = np.isin(unique, there)
        if not kept.all():
            print(f"{part}: {int((~kept).sum())} of {len(unique)} images are missing in {folder} and left out")
    if not kept.any():
        raise FileNotFoundError(f"none of the {len(unique)} images of {csv_file} is in {folder}: fetch the photos")
    new_index = np.cumsum(kept) - 1
    use = kept[position] & (class_numbers >= 0)
    columns = LabelColumns.build(
        class_ids,
        (f"{number:016x}.jpg" for number in unique[kept].tolist()),
        new_index[position[use]],
        class_numbers[use],
        sign_numbers[use],
    )
    columns.save(root / f"open_images_v4_{part}.npz")
    print(f"{part}: {len(columns)} images")


def _label(row: Sequence[str]) -> tuple[int, str, int]:
    """(number of the image, class id, sign) of a row.

    Raises:
        ValueError: it is not as the release has it.
    """
    try:
        image_id, _, mid, confidence = row
    except ValueError:
        raise ValueError(f"cannot understand {str(row)[:100]}, a row must have {len(HEADER)} values") from None
    if not IMAGE_ID.fullmatch(image_id):
        raise ValueError(f"an image id must have 16 hexadecimal digits, got {image_id[:40]!r}")
    if confidence not in CONFIDENCES:
        raise ValueError(f"a confidence must be one of {', '.join(CONFIDENCES)}, got {confidence[:40]!r}")
    return int(image_id, 16), mid, CONFIDENCES[confidence]


def main(argv: Sequence[str] | None = None) -> None:
    """Run with the command-line arguments ``argv``."""
    parser = Parser("python -m zeroshot_d2 datasets prepare open_images_v4", __doc__, takes_keys=False)
    parser.add_argument("--root", type=Path, default=datasets_root())
    parser.add_argument("--parts", nargs="+", choices=(*ROWS, *SHARED_LABELS), default=list(ROWS))
    parser.add_argument("--no-image-check", action="store_true", help="keep images whose file is missing")
    arguments = parser.parse(argv)
    root = arguments.root / "open_images_v4"
    for part in arguments.parts:
        if (root / f"open_images_v4_{part}.npz").exists():
            print(f"{part}: is there already")
        else:
            convert(root, part, not arguments.no_image_check, ROWS[SHARED_LABELS.get(part, part)])
