"""Tiny releases of the papers' data sets in their official formats, with their quirks; for tests.

Each function writes below ``root`` (which ``$DETECTRON2_DATASETS`` should name) and, where the project has a
preparation, runs it. Images are 64 x 48 pixels and come as colour, grey and CMYK JPEGs.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import savemat

from zeroshot_d2 import IGNORE_LABEL, read_label
from zeroshot_d2.datasets.builtin import load_class_list
from zeroshot_d2.datasets.preparation import ade20k_847 as prepare_ade20k_847
from zeroshot_d2.datasets.preparation import nus_wide as prepare_nus_wide
from zeroshot_d2.datasets.preparation import open_images_v4 as prepare_open_images_v4
from zeroshot_d2.datasets.preparation import pascal_context as prepare_pascal_context
from zeroshot_d2.datasets.preparation import pascal_context_459 as prepare_pascal_context_459

HEIGHT, WIDTH = 48, 64
MODES = ("RGB", "L", "CMYK")


def save_photo(path: Path, index: int = 0) -> None:
    """Noise, in the colour mode of the index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(index).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    Image.fromarray(noise).convert(MODES[index % len(MODES)]).save(path)


def stripes(values: Sequence[int]) -> np.ndarray:
    """(H, W) label image with one vertical stripe per value."""
    return np.array(values)[np.arange(WIDTH) * len(values) // WIDTH][None].repeat(HEIGHT, axis=0)


def save_label(path: Path, values: Sequence[int], dtype: Any = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stripes(values).astype(dtype)).save(path)


def save_palette_label(path: Path, values: Sequence[int]) -> None:
    """As VOC stores labels: an 8-bit palette image."""
    image = Image.frombytes("P", (WIDTH, HEIGHT), stripes(values).astype(np.uint8).tobytes())
    image.putpalette([(37 * v) % 256 for v in range(768)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def coco_stuff(root: Path) -> None:
    """Raw stuffthingmaps; one training image has no label file, one no seen class, one is unlabelled altogether."""
    labels = {"train": ([0, 20, 255], [181, 7, 168], [20, 171, 255], [255, 255, 255]), "val": ([0, 20, 171], [149, 2])}
    for part, rows in labels.items():
        for i, values in enumerate(rows):
            save_photo(root / f"coco/{part}2017/{i:012d}.jpg", i)
            save_label(root / f"coco/stuffthingmaps/{part}2017/{i:012d}.png", values)
    save_photo(root / "coco/train2017/000000000099.jpg")


def voc2012(root: Path) -> None:
    """The official palette labels, the augmented grey ones, and lists with CRLF or slashes."""
    voc = root / "VOCdevkit/VOC2012"
    for i, stem in enumerate(("2007_000032", "2007_000033", "2008_000001", "2011_000999")):
        save_photo(voc / f"JPEGImages/{stem}.jpg", i)
    save_palette_label(voc / "SegmentationClass/2007_000033.png", [0, 1, 20, 255])
    save_palette_label(voc / "SegmentationClass/2008_000001.png", [15, 16])
    save_label(voc / "SegmentationClassAug/2007_000032.png", [0, 15, 16, 255])
    save_label(voc / "SegmentationClassAug/2011_000999.png", [3, 3])
    lists = voc / "ImageSets/Segmentation"
    write_text(lists / "val.txt", "2007_000033\r\n2008_000001\r\n")
    lines = [f"/JPEGImages/{s}.jpg /SegmentationClassAug/{s}.png\n" for s in ("2007_000032", "2011_000999")]
    write_text(lists / "trainaug.txt", "".join(lines))


def sbd(root: Path) -> None:
    """SBD beside VOC 2012, without what is made from it: labels of VOC's training set, of VOC's val, and of its own."""
    voc2012(root)
    voc = root / "VOCdevkit/VOC2012"
    shutil.rmtree(voc / "SegmentationClassAug")
    (voc / "ImageSets/Segmentation/trainaug.txt").unlink()
    write_text(voc / "ImageSets/Segmentation/train.txt", "2007_000032\n")
    save_palette_label(voc / "SegmentationClass/2007_000032.png", [0, 15, 16, 255])
    for stem in ("2007_000032", "2011_000999", "2008_000001"):
        mask = voc / f"benchmark_RELEASE/dataset/cls/{stem}.mat"
        mask.parent.mkdir(parents=True, exist_ok=True)
        savemat(mask, {"GTcls": {"Segmentation": stripes([3, 0]).astype(np.uint8), "CategoriesPresent": [[3]]}})


def pascal_context_json(root: Path) -> Path:
    """VOC 2010 images and a trainval_merged.json with each way a mask can be written; the folder VOC2010."""
    voc = root / "VOCdevkit/VOC2010"
    size = {"height": HEIGHT, "width": WIDTH}
    stems = {"2008_000002": "train", "2008_000003": "val", "2008_000004": "train", "2009_000001": "test"}
    images = []
    for i, (stem, phase) in enumerate(stems.items()):
        save_photo(voc / f"JPEGImages/{stem}.jpg", i)
        images.append({"file_name": f"{stem}.jpg", "phase": phase, "image_id": int(stem.replace("_", "")), **size})
    left = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    left[:, : WIDTH // 2] = 1
    compressed = {"size": [HEIGHT, WIDTH], "counts": coco_mask.encode(left)["counts"].decode()}
    everything = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    polygon = [[0, 0, 20, 0, 20, HEIGHT, 0, HEIGHT]]
    segments = [  # sky, and over its left half an aeroplane; a dog, and something outside the 59; a car
        {"image_id": 2008000002, "category_id": 360, "segmentation": everything},
        {"image_id": 2008000002, "category_id": 2, "segmentation": compressed},
        {"image_id": 2008000003, "category_id": 113, "segmentation": polygon},
        {"image_id": 2008000003, "category_id": 1, "segmentation": everything},
        {"image_id": 2008000004, "category_id": 59, "segmentation": compressed},
    ]
    content = {"info": {"a": [1]}, "annos_segmentation": segments, "parts": [], "images": images, "n": 3}
    write_text(voc / "trainval_merged.json", json.dumps(content))
    return voc


def pascal_context(root: Path) -> None:
    voc = pascal_context_json(root)
    prepare_pascal_context.convert(voc / "trainval_merged.json", voc / "pascal_context_59")


def pascal_context_459(root: Path) -> None:
    """16-bit LabelMaps of MATLAB."""
    voc = pascal_context_json(root)
    (voc / "trainval").mkdir()
    for stem in ("2008_000002", "2008_000003", "2008_000004"):
        savemat(voc / f"trainval/{stem}.mat", {"LabelMap": stripes([0, 1, 459, 300]).astype(np.uint16)})
    prepare_pascal_context_459.convert(voc / "trainval", voc / "trainval_merged.json", voc / "pascal_context_459")


def ade20k_150(root: Path) -> None:
    for i, values in enumerate(([0, 1, 150], [4, 2])):
        save_photo(root / f"ADEChallengeData2016/images/validation/ADE_val_{i:08d}.jpg", i)
        save_label(root / f"ADEChallengeData2016/annotations/validation/ADE_val_{i:08d}.png", values)


def ade20k_847(root: Path) -> None:
    """Colour-coded segmentations: wall is 2978, building 312; 5 is a class outside the 847; 0 is nothing."""
    release = root / "ADE20K_2021_17_01"
    place = release / "images/ADE/validation/urban/street"
    save_photo(place / "ADE_val_00000001.jpg", 1)
    values = stripes([2978, 312, 5, 0])
    colours = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    colours[..., 0], colours[..., 1] = values // 256 * 10, values % 256
    Image.fromarray(colours).save(place / "ADE_val_00000001_seg.png")
    prepare_ade20k_847.convert(release, release / "ade20k_847", "validation", short_side=HEIGHT // 2)


def nus_wide_files(root: Path) -> Path:
    """The official text files for four images, with their quirks: CRLF, back-slashes, trailing tabs and spaces."""
    split = load_class_list("nus_wide").split
    concepts = list(split.unseen)
    # 1000 tags: 925 that are no concepts and 75 that are, in an order of their own
    shared_tags = [c for c in concepts if c not in ("whales", "map", "computer", "tattoo", "swimmers", "fire")]
    tags = [*shared_tags[:40], *split.seen, *shared_tags[40:]]
    assert len(tags) == 1000
    nus = root / "nus_wide"
    images = ["actor\\0001_1.jpg", "zoo\\0002_2.jpg", "actor\\0003_3.jpg", "lost\\0004_4.jpg"]
    for i, image in enumerate(images[:3]):
        save_photo(nus / "Flickr" / image.replace("\\", "/"), i)
    files = {
        "ImageList/Imagelist.txt": "\r\n".join(images) + "\r\n",
        "ImageList/TrainImagelist.txt": "\n".join(images[::2]) + "\n",
        "ImageList/TestImagelist.txt": "\ufeff" + "\r\n".join(images[1::2]) + "\r\n\r\n",
        "TagList1k.txt": "\r\n".join(tags) + "\r\n",
        "ConceptsList/Concepts81.txt": " \n".join(concepts) + "\n",
    }
    present_tags = [[split.seen[0], shared_tags[0]], [split.seen[3]], [split.seen[924]], []]
    rows = ["\t".join(str(int(tag in present)) for tag in tags) + "\t" for present in present_tags]
    files["NUS_WID_Tags/AllTags1k.txt"] = "\n".join(rows) + "\n"
    for concept in concepts:
        bits = {"airport": "1\n0\n0\n0\n", "zebra": "0\n1\n0\n1\n"}.get(concept, "0\n0\n0\n0\n")
        files[f"Groundtruth/AllLabels/Labels_{concept}.txt"] = bits
    for path, text in files.items():
        write_text(nus / path, text)
    return nus


def nus_wide(root: Path) -> None:
    prepare_nus_wide.convert(nus_wide_files(root))


def open_images_files(root: Path, part: str = "test") -> Path:
    """One part of the release: three images, one of them without a file, one label outside the 7,586 classes."""
    split, ids = load_class_list("open_images_v4").split, load_class_list("open_images_v4").class_ids
    seen, unseen = ids[0], ids[list(split.names).index(split.unseen[0])]
    folder = root / "open_images_v4"
    for i, image in enumerate(("000026e7ee790996", "fffffb0000000001")):
        save_photo(folder / part / f"{image}.jpg", i)
    rows = [
        ["ImageID", "Source", "LabelName", "Confidence"],
        ["fffffb0000000001", "verification", seen, "1"],
        ["000026e7ee790996", "verification", unseen, "1"],
        ["000026e7ee790996", "crowdsource-verification", seen, "0"],
        ["000026e7ee790996", "verification", "/m/outside", "1"],
        ["00000000000000aa", "verification", seen, "1"],
    ]
    with open(folder / f"{part}-annotations-human-imagelabels.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def open_images(root: Path) -> None:
    for part in ("train", "validation", "test"):
        prepare_open_images_v4.convert(open_images_files(root, part), part)


def save_noise(path: Path, size: tuple[int, int] = (6, 4), mode: str = "RGB", **options: Any) -> None:
    """Noise of (width, height) ``size`` in a colour mode; ``options`` are Pillow's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)


def save_values(path: Path, values: Any) -> None:
    """A label image of 8 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(path)


def faulty_release(root: Path) -> None:
    """images/*.jpg and labels/*.png of the values 0 to 2: three whole images, of three kinds of JPEG, and one that its EXIF
    tag turns; then one per fault."""
    for i, mode in enumerate(MODES):
        save_noise(root / f"images/{i}.jpg", mode=mode)
        save_values(root / f"labels/{i}.png", np.full((4, 6), i if i < 2 else 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by a quarter
    save_noise(root / "images/5_turned.jpg", exif=exif)
    save_values(root / "labels/5_turned.png", np.zeros((4, 6)))
    save_noise(root / "images/3_value.jpg")
    save_values(root / "labels/3_value.png", np.full((4, 6), 77))
    save_noise(root / "images/4_cut.jpg", size=(60, 40))
    whole = (root / "images/4_cut.jpg").read_bytes()
    (root / "images/4_cut.jpg").write_bytes(whole[: len(whole) // 2])
    save_values(root / "labels/4_cut.png", np.zeros((40, 60)))
    save_noise(root / "images/6_size.jpg")
    save_values(root / "labels/6_size.png", np.zeros((5, 5)))
    save_noise(root / "images/7_side.jpg")
    save_values(root / "labels/7_side.png", np.ones((6, 4)))


def names_in_order(dataset: str, record: dict) -> list[str | None]:
    """Names of the label's stripes from left to right; None where it is ignored."""
    meta = MetadataCatalog.get(dataset)
    row = read_label(record["sem_seg_file_name"], meta.label_table)[0]
    starts = np.flatnonzero(np.diff(row.astype(int), prepend=-1))
    return [None if row[i] == IGNORE_LABEL else meta.stuff_classes[row[i]] for i in starts]
