"""NUS-WIDE: one label file for training and one for testing, from the release's text files.

    python -m zeroshot_d2 datasets prepare nus_wide [--root $DETECTRON2_DATASETS] [--no-image-check]

reads   nus_wide/Flickr/<folder>/<image>.jpg
        nus_wide/**/{Imagelist,TrainImagelist,TestImagelist}.txt, TagList1k.txt, Concepts81.txt, AllTags1k.txt
        nus_wide/**/AllLabels/Labels_<concept>.txt
writes  nus_wide/nus_wide_{train,test}.npz      925 tags that are no concepts, and 81 concepts

Flickr users delete images, so hardly anyone has all of them: missing ones are counted and left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ...cli import Parser
from ...multilabel.columns import LabelColumns
from ...storage import check_inside, datasets_root, read_lines

Bits = npt.NDArray[np.bool_]


def find(root: Path, name: str) -> Path:
    """The file or folder ``name`` at most two folders below ``root``: the archives are unpacked in different ways.

    Raises:
        FileNotFoundError: there is none, or several that differ.
    """
    found = [path for pattern in (name, f"*/{name}", f"*/*/{name}") for path in sorted(root.glob(pattern))]
    if not found:
        raise FileNotFoundError(
            f"{name} not found in {root} or two folders below it: unpack it there (see datasets/README.md)"
        )
    if len(found) > 1 and not (found[0].is_file() and len({path.read_bytes() for path in found}) == 1):
        raise FileNotFoundError(f"{name} is there more than once, and differs: {', '.join(map(str, found))}; keep one")
    return found[0]


def read_paths(path: Path) -> list[str]:
    """The entries of one of the release's lists, with slashes instead of back-slashes.

    Raises:
        ValueError: an entry occurs twice, or leads out of the data set's folder.
    """
    entries = [check_inside(line.replace("\\", "/"), str(path)) for line in read_lines(path, comments=False)]
    twice = [entry for entry, count in Counter(entries).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: {len(twice)} of its entries occur more than once, such as {twice[0]}: fetch it again")
    return entries


def read_bits(text: bytes, path: Path) -> Bits:
    """Zeros and ones between which only white space stands.

    Raises:
        ValueError: something else is there.
    """
    digits = np.frombuffer(text.translate(None, b" \t\r\n"), dtype=np.uint8)
    ones = digits == ord("1")
    if not (ones | (digits == ord("0"))).all():
        strange = bytes(digits[~(ones | (digits == ord("0")))][:10])
        raise ValueError(f"{path}: expected only 0 and 1, found {strange!r}")
    return ones


def tag_rows(path: Path, width: int) -> Iterator[Bits]:
    """The rows of AllTags1k.txt, one image each."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                row = read_bits(line, path)
                if len(row) != width:
                    raise ValueError(f"{path}, line {number}: {len(row)} values for {width} tags, fetch it again")
                yield row


def convert(root: Path, check_images: bool = True) -> None:
    """Write both label files.

    Args:
        root: the folder ``nus_wide``.
        check_images: leave out images whose file is missing.

    Raises:
        FileNotFoundError: a part of the release is missing.
        ValueError: parts do not fit together: lines are missing, an image is not in Imagelist.txt, or is in a list twice or
            in both.
    """
    images = read_paths(find(root, "Imagelist.txt"))
    tags, concepts = read_paths(find(root, "TagList1k.txt")), read_paths(find(root, "Concepts81.txt"))
    seen = [tag for tag in tags if tag not in set(concepts)]
    kept_columns = np.array([tag not in set(concepts) for tag in tags])
    print(f"{len(seen)} seen + {len(concepts)} unseen classes; {len(tags) - len(seen)} tags are concepts and are dropped")

    image_index: list[npt.NDArray[np.int64]] = []
    class_index: list[npt.NDArray[np.int64]] = []
    labels_folder = find(root, "AllLabels")
    for k, concept in enumerate(tqdm(concepts, desc="concepts", unit="file")):
        path = labels_folder / f"Labels_{concept}.txt"
        if not path.is_file():
            raise FileNotFoundError(
                f"the labels of concept {concept!r} are missing: looked for {path}, as Concepts81.txt says"
            )
        bits = read_bits(path.read_bytes(), path)
        if len(bits) != len(images):
            raise ValueError(f"{path} has {len(bits)} labels for the {len(images)} images of Imagelist.txt: fetch it again")
        image_index.append(np.flatnonzero(bits))
        class_index.append(np.full(int(bits.sum()), len(seen) + k))
    tags_file = find(root, "AllTags1k.txt")
    rows = 0
    for rows, row in enumerate(tqdm(tag_rows(tags_file, len(tags)), "tags", len(images), unit="image"), start=1):
        present = np.flatnonzero(row[kept_columns])
        image_index.append(np.full(len(present), rows - 1))
        class_index.append(present)
    if rows != len(images):
        raise ValueError(
            f"{tags_file} has {rows} lines for the {len(images)} images of Imagelist.txt: it is incomplete, fetch it again"
        )
    image, classes = np.concatenate(image_index), np.concatenate(class_index)

    position = {path: i for i, path in enumerate(images)}
    photos = root / "Flickr"
    if check_images and not photos.is_dir():
        raise FileNotFoundError(f"images not found: looked for the folder {photos}; --no-image-check goes on without")
    lists = {part: read_paths(find(root, f"{part}Imagelist.txt")) for part in ("Train", "Test")}
    both = sorted(set(lists["Train"]) & set(lists["Test"]))
    if both:
        raise ValueError(
            f"{len(both)} images of TrainImagelist.txt are in TestImagelist.txt too, such as {both[0]}: a model would be "
            "tested on what it was trained on, fetch the lists again"
        )
    for part, listed in lists.items():
        strange = [path for path in listed if path not in position]
        if strange:
            raise ValueError(
                f"{len(strange)} images of {part}Imagelist.txt are not in Imagelist.txt, such as {strange[0]}: fetch both"
            )
        kept = existing(photos, listed) if check_images else listed
        if len(kept) < len(listed):
            print(f"{part.lower()}: {len(listed) - len(kept)} of {len(listed)} images are missing in {photos} and left out")
        write_part(root / f"nus_wide_{part.lower()}.npz", [*seen, *concepts], kept, position, image, classes)
        print(f"{part.lower()}: {len(kept)} images")


def existing(folder: Path, paths: Sequence[str]) -> list[str]:
    """Those of ``paths`` that are files below ``folder``."""
    return [path for path in tqdm(paths, "images", unit="image") if (folder / path).is_file()]


def write_part(
    output: Path,
    class_ids: Sequence[str],
    paths: Sequence[str],
    position: dict[str, int],
    image: npt.NDArray[np.int64],
    classes: npt.NDArray[np.int64],
) -> None:
    """Write the labels of some images; ``image`` and ``classes`` are the labels of all, ``position`` an
    image's number there.
    """
    if not paths:
        raise FileNotFoundError(f"no image is left for {output.name}: fetch the folder Flickr again")
    new_index = np.full(len(position), -1, dtype=np.int64)
    new_index[[position[path] for path in paths]] = np.arange(len(paths))
    here = new_index[image] >= 0
    ones = np.ones(int(here.sum()), dtype=np.int8)
    LabelColumns.build(class_ids, paths, new_index[image[here]], classes[here], ones).save(output)


def main(argv: Sequence[str] | None = None) -> None:
    """Run with the command-line arguments ``argv``."""
    parser = Parser("python -m zeroshot_d2 datasets prepare nus_wide", __doc__, takes_keys=False)
    parser.add_argument("--root", type=Path, default=datasets_root())
    parser.add_argument("--no-image-check", action="store_true", help="keep images whose file is missing")
    arguments = parser.parse(argv)
    convert(arguments.root / "nus_wide", not arguments.no_image_check)
