"""Releases: what every preparation reads, and what the registered data sets list, with one part spoilt at a time."""

from __future__ import annotations

import functools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from scipy.io import savemat

from zeroshot_d2.datasets.builtin import load_class_list
from zeroshot_d2.images import read_label_image
from zeroshot_d2.multilabel.columns import LabelColumns

from .case import Case, command, damaged, encoded, not_a_file, photo_array, save_photo, scratch, write

KIND = "releases"
Spoil = Callable[[Path], Any]
VOC2010 = Path("datasets/VOCdevkit/VOC2010")
VOC2012 = Path("datasets/VOCdevkit/VOC2012")
ADE = Path("datasets/ADE20K_2021_17_01/images/ADE/validation")
NUS, OPEN_IMAGES = Path("datasets/nus_wide"), Path("datasets/open_images_v4")
STEMS = {"2008_000002": "train", "2008_000003": "val"}
CSV = OPEN_IMAGES / "test-annotations-human-imagelabels.csv"
LABEL = np.arange(48).reshape(6, 8).astype(np.uint8) % 3


# ------------------------------------------------------------------------------------------------- whole releases
def context(**changes: Any) -> dict[str, Any]:
    """trainval_merged.json of two images; ``changes`` replace parts of the first image and of the first segment."""
    images = [
        {"file_name": f"{stem}.jpg", "phase": phase, "image_id": number, "height": 6, "width": 8}
        for number, (stem, phase) in enumerate(STEMS.items())
    ]
    segments = [
        {"image_id": 0, "category_id": 360, "segmentation": {"size": [6, 8], "counts": [0, 48]}},
        {"image_id": 1, "category_id": 2, "segmentation": [[0, 0, 4, 0, 4, 6, 0, 6]]},
    ]
    for key, value in changes.items():
        for target in (images[0], segments[0]):
            if key in target:
                target[key] = value
    return {"info": {}, "images": images, "annos_segmentation": segments}


def _pascal_context(root: Path) -> None:
    write(root / VOC2010 / "trainval_merged.json", json.dumps(context()))


def _pascal_context_459(root: Path) -> None:
    _pascal_context(root)
    (root / VOC2010 / "trainval").mkdir()
    for stem in STEMS:
        savemat(root / VOC2010 / f"trainval/{stem}.mat", {"LabelMap": LABEL.astype(np.uint16)})


def _ade20k_847(root: Path) -> None:
    save_photo(root / ADE / "street/ADE_val_00000001.jpg")
    colours = np.zeros((64, 64, 3), np.uint8)
    colours[..., 0], colours[..., 1] = 2978 // 256 * 10, 2978 % 256
    write(root / ADE / "street/ADE_val_00000001_seg.png", encoded(colours, "PNG"))


def _nus_wide(root: Path) -> None:
    split = load_class_list("nus_wide").split
    images = ["actor\\0001_1.jpg", "zoo\\0002_2.jpg"]
    for image in images:
        save_photo(root / NUS / "Flickr" / image.replace("\\", "/"))
    tags = [*split.unseen[:75], *split.seen]
    files = {
        "Imagelist.txt": "\n".join(images),
        "TrainImagelist.txt": images[0],
        "TestImagelist.txt": images[1],
        "TagList1k.txt": "\n".join(tags),
        "Concepts81.txt": "\n".join(split.unseen),
        "AllTags1k.txt": "\n".join("\t".join(["1", *"0" * (len(tags) - 1)]) for _ in images),
        **{f"AllLabels/Labels_{concept}.txt": "1\n0\n" for concept in split.unseen},
    }
    for name, text in files.items():
        write(root / NUS / name, text)


def _open_images(root: Path) -> None:
    save_photo(root / OPEN_IMAGES / "test/000026e7ee790996.jpg")
    mid = load_class_list("open_images_v4").class_ids[0]
    write(root / CSV, f"ImageID,Source,LabelName,Confidence\n000026e7ee790996,verification,{mid},1\n")


def _voc2012(root: Path) -> None:
    for stem in ("2007_000033", "2008_000001"):
        save_photo(root / VOC2012 / f"JPEGImages/{stem}.jpg")
        write(root / VOC2012 / f"SegmentationClass/{stem}.png", encoded(LABEL, "PNG"))
    write(root / VOC2012 / "ImageSets/Segmentation/val.txt", "2007_000033\n2008_000001\n")


BUILDERS: dict[str, Callable[[Path], None]] = {
    "pascal_context": _pascal_context,
    "pascal_context_459": _pascal_context_459,
    "ade20k_847": _ade20k_847,
    "nus_wide": _nus_wide,
    "open_images_v4": _open_images,
    "voc2012": _voc2012,
}


@functools.cache
def _whole(release: str) -> Path:
    """A release as it should be; cases copy it."""
    folder = scratch() / release
    BUILDERS[release](folder)
    return folder


# --------------------------------------------------------------------------------------------------------- giving
def prepared(release: str, folder: Path) -> Path:
    options = {"pascal_context": ["--workers", 1], "pascal_context_459": ["--workers", 1], "ade20k_847": ["--workers", 1]}
    parts = ["--parts", "test"] if release == "open_images_v4" else []
    command("datasets", "prepare", release, "--root", folder / "datasets", *options.get(release, []), *parts)
    return folder


def _case(
    release: str,
    name: str,
    spoil: Spoil,
    words: tuple[str, ...] | None,
    reads: Callable[[Path], bool] | None = None,
    **more: Any,
) -> Case:
    def run(folder: Path) -> Path:
        shutil.copytree(_whole(release), folder, dirs_exist_ok=True)
        spoil(folder)
        return _listed(folder) if release == "voc2012" else prepared(release, folder)

    return Case(KIND, f"{release}: {name}", run, words, reads, **more)


def _listed(folder: Path) -> Any:
    return DatasetCatalog.get("voc2012_val")


def _file(
    release: str, file: Path, name: str, content: str | bytes, words: tuple[str, ...] | None, reads: Any = None
) -> Case:
    """One file replaced."""
    named = None if words is None else (file.name, *words)
    return _case(release, f"{file.name}: {name}", lambda folder: write(folder / file, content), named, reads)


def _gone(release: str, path: Path, *words: str) -> Case:
    def remove(folder: Path) -> None:
        shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()

    return _case(release, f"{path.name} is missing", remove, (path.name, *words))


def _spoilt(release: str, file: Path, rng: random.Random, reads: Any = None) -> Iterator[Case]:
    """What a download may leave behind, and a file that was cut off or altered."""
    for what, content in not_a_file().items():
        yield _file(release, file, what, content, ())
    for number, seed in enumerate([rng.random() for _ in range(6)]):

        def spoil(folder: Path, seed: float = seed, number: int = number) -> None:
            cases = list(damaged((folder / file).read_bytes(), random.Random(seed), 3, 3))
            write(folder / file, cases[number][1])

        yield _case(release, f"{file.name}: {'cut off' if number < 3 else 'altered'}, {number}", spoil, (file.name,), reads)


def _labels_are(folder: Path) -> bool:
    """The label images of PASCAL Context, as far as they were written, have only values that mean something."""
    files = list((folder / VOC2010).glob("pascal_context*/labels/*.png"))
    return all(int(read_label_image(file).max()) <= 459 for file in files)


def _columns_are(folder: Path) -> bool:
    return all(len(LabelColumns.open(file)) for file in (folder / "datasets").rglob("*.npz"))


def _json(
    name: str, content: Any, words: tuple[str, ...] | None, reads: Any = None, release: str = "pascal_context"
) -> Case:
    text = json.dumps(content) if not isinstance(content, str | bytes) else content
    return _file(release, VOC2010 / "trainval_merged.json", name, text, words, reads)


def _without(key: str) -> dict[str, Any]:
    content = context()
    for entry in (*content["images"], *content["annos_segmentation"]):
        entry.pop(key, None)
    return content


def _elsewhere() -> dict[str, Any]:
    content = context()
    content["annos_segmentation"][0]["image_id"] = 77
    return content


def _mat(name: str, words: tuple[str, ...] | None, reads: Any = None, **content: Any) -> Case:
    file = VOC2010 / "trainval/2008_000002.mat"
    named = None if words is None else (file.name, *words)
    return _case("pascal_context_459", f"{file.name}: {name}", lambda folder: savemat(folder / file, content), named, reads)


def cases(rng: random.Random) -> list[Case]:
    nan, polygon = float("nan"), [[0, 0, 4, 0, 4, 6, 0, 6]]
    concept = load_class_list("nus_wide").split.unseen[0]
    seg, jpg = ADE / "street/ADE_val_00000001_seg.png", ADE / "street/ADE_val_00000001.jpg"
    mid, head = load_class_list("open_images_v4").class_ids[0], "ImageID,Source,LabelName,Confidence\n"
    row = f"000026e7ee790996,verification,{mid},1\n"
    found = [_case(release, "as it should be", lambda folder: None, None, bool) for release in BUILDERS]

    # ---- PASCAL Context ----
    merged = VOC2010 / "trainval_merged.json"
    found += [*_spoilt("pascal_context", merged, rng, _labels_are), _gone("pascal_context", merged)]
    found += [
        _json(f"no {key}", _without(key), (key,))
        for key in ("phase", "file_name", "height", "image_id", "category_id", "segmentation")
    ]
    found += [
        _json("a byte-order mark", b"\xef\xbb\xbf" + json.dumps(context()).encode(), None, _labels_are),
        _json("UTF-16", json.dumps(context()).encode("utf-16"), ()),
        _json("a list", [1, 2], ()),
        _json("a number", "3", ()),
        _json("no images", {"annos_segmentation": []}, ("images",)),
        _json("no image in a part", {"images": [], "annos_segmentation": []}, ()),
        _json("images that are an object", {"images": {}, "annos_segmentation": []}, ("images",)),
        _json("an image that is a number", {"images": [3], "annos_segmentation": []}, ("3",)),
        _json("a segment that is null", {**context(), "annos_segmentation": [None]}, ("None",)),
        _json("text behind the end", json.dumps(context()) + "]", (), _labels_are),
        _json("brackets, 100,000 of them", '{"images": ' + "[" * 100_000, ()),
        _json("a phase that is none", context(phase="training"), ("training",)),
        _json("a phase that is a number", context(phase=3), ("3",)),
        _json("a height of 0", context(height=0), ("0",)),
        _json("a negative height", context(height=-6), ("-6",)),
        _json("a height that is a text", context(height="six"), ("six",)),
        _json("a height of a billion", context(height=10**9), (str(10**9),)),
        _json("a file name that leads outside", context(file_name="../../x.jpg"), ("../../x.jpg",)),
        _json("a file name that is null", context(file_name=None), ("None",)),
        _json("a polygon with NaN", context(segmentation=[[0, 0, nan, 0, 4, 6]]), ("2008_000002",)),
        _json("a polygon with infinity", context(segmentation=[[0, 0, float("inf"), 0, 4, 6]]), ("2008_000002",)),
        _json("a polygon with a huge number", context(segmentation=[[0, 0, 1e300, 0, 4, 6]]), ("2008_000002",)),
        _json("a polygon of texts", context(segmentation=[["a", "b", "c", "d", "e", "f"]]), ("2008_000002",)),
        _json("a polygon of two points", context(segmentation=[[0, 0, 1, 1]]), ("2008_000002",)),
        _json("a polygon of an odd length", context(segmentation=[[0, 0, 1, 1, 2, 2, 3]]), ("2008_000002",)),
        _json("a polygon that is none", context(segmentation=[]), ("2008_000002",)),
        _json("a polygon in a polygon", context(segmentation=[polygon]), ("2008_000002",)),
        _json("a mask that is null", context(segmentation=None), ("2008_000002",)),
        _json("a mask that is a text", context(segmentation="mask"), ("2008_000002",)),
        _json("a mask without counts", context(segmentation={"size": [6, 8]}), ("2008_000002",)),
        _json("a mask without size", context(segmentation={"counts": [0, 48]}), ("2008_000002",)),
        _json("counts of another size", context(segmentation={"size": [60, 80], "counts": [0, 4800]}), ("2008_000002",)),
        _json("counts that end too early", context(segmentation={"size": [6, 8], "counts": [0, 5]}), ("2008_000002",)),
        _json("counts that go too far", context(segmentation={"size": [6, 8], "counts": [0, 4800]}), ("2008_000002",)),
        _json("negative counts", context(segmentation={"size": [6, 8], "counts": [-5, 53]}), ("2008_000002",)),
        _json("counts of texts", context(segmentation={"size": [6, 8], "counts": ["a"]}), ("2008_000002",)),
        _json(
            "compressed counts that are no counts",
            context(segmentation={"size": [6, 8], "counts": "\u00ff!"}),
            ("2008_000002",),
        ),
        _json(
            "compressed counts that go too far",
            context(segmentation={"size": [6, 8], "counts": "oooo1000000000"}),
            ("2008_000002",),
        ),
        _json("a negative size", context(segmentation={"size": [-6, -8], "counts": [0, 48]}), ("2008_000002",)),
        _json("a segment of an image that is none", _elsewhere(), ("77",)),
        _json("a category outside the 59", context(category_id=99999), None, _labels_are),
        _json("a category that is a list", context(category_id=[1]), ("[1]",)),
        _json("an image twice", {**context(), "images": [*context()["images"], context()["images"][0]]}, ("2008_000002",)),
    ]

    # ---- PASCAL Context, 459 classes ----
    mat = VOC2010 / "trainval/2008_000002.mat"
    found += [
        *_spoilt("pascal_context_459", mat, rng, _labels_are),
        _gone("pascal_context_459", mat),
        _gone("pascal_context_459", mat.parent),
    ]
    found += [
        _mat("as it should be", None, _labels_are, LabelMap=LABEL),
        _mat("another variable", ("LabelMap",), Labels=LABEL),
        _mat("a value beyond 459", ("460",), LabelMap=LABEL.astype(np.uint16) + 458),
        _mat("a negative value", ("-1",), LabelMap=LABEL.astype(np.int16) - 1),
        _mat("fractions", ("0.5",), LabelMap=LABEL + 0.5),
        _mat("whole numbers as floats", None, _labels_are, LabelMap=LABEL.astype(float)),
        _mat("NaN", ("nan",), LabelMap=np.full((6, 8), np.nan)),
        _mat("texts", ("LabelMap",), LabelMap="sky"),
        _mat("cells", ("LabelMap",), LabelMap=np.array([[1, "a"]], dtype=object)),
        _mat("complex numbers", ("LabelMap",), LabelMap=LABEL + 1j),
        _mat("three dimensions", ("LabelMap",), LabelMap=np.dstack([LABEL, LABEL])),
        _mat("nothing in it", ("LabelMap",), LabelMap=LABEL[:0]),
        _json("no phase", _without("phase"), ("phase",), None, "pascal_context_459"),
        _json(
            "a file name that leads outside", context(file_name="../../x.jpg"), ("../../x.jpg",), None, "pascal_context_459"
        ),
        _json(
            "an image twice", {**context(), "images": context()["images"] * 2}, ("2008_00000",), None, "pascal_context_459"
        ),
    ]

    # ---- ADE20K ----
    found += [*_spoilt("ade20k_847", seg, rng, bool), *_spoilt("ade20k_847", jpg, rng, bool), _gone("ade20k_847", seg)]
    found += [
        _case("ade20k_847", "no image", lambda folder: (folder / jpg).unlink(), ("validation",)),
        _file("ade20k_847", seg, "another size", encoded(photo_array()[:32], "PNG"), ("64", "32")),
        _file("ade20k_847", seg, "grey", encoded(photo_array()[..., 0], "PNG"), ("_seg.png",)),
        _file("ade20k_847", seg, "a JPEG", encoded(photo_array(), "JPEG"), ("_seg.png",)),
        Case(KIND, "ade20k_847: a short side of -5", lambda folder: _ade(folder, -5), ("--short-side", "-5"), None),
        Case(KIND, "ade20k_847: a short side of half", lambda folder: _ade(folder, "half"), ("--short-side", "half"), None),
        Case(KIND, "ade20k_847: 0 workers", lambda folder: _ade(folder, 64, "--workers", 0), ("--workers", "0"), None),
        Case(
            KIND,
            "ade20k_847: a part that is none",
            lambda folder: _ade(folder, 64, "--parts", "test"),
            ("--parts", "test"),
            None,
        ),
        _case(
            "ade20k_847",
            "two images of one name",
            lambda folder: shutil.copytree(folder / ADE / "street", folder / ADE / "again"),
            ("ADE_val_00000001",),
        ),
    ]

    # ---- NUS-WIDE ----
    lists = (
        "Imagelist.txt",
        "TrainImagelist.txt",
        "TagList1k.txt",
        "Concepts81.txt",
        "AllTags1k.txt",
        f"AllLabels/Labels_{concept}.txt",
    )
    found += [_gone("nus_wide", NUS / name) for name in (*lists, "AllLabels", "Flickr")]
    found += [_file("nus_wide", NUS / name, what, content, ()) for name in lists for what, content in not_a_file().items()]
    found += [
        _file(
            "nus_wide",
            NUS / "TrainImagelist.txt",
            "an image twice",
            "actor\\0001_1.jpg\nactor/0001_1.jpg\n",
            ("actor/0001_1.jpg",),
        ),
        _file("nus_wide", NUS / "TrainImagelist.txt", "an image of the test list", "zoo\\0002_2.jpg\n", ("zoo/0002_2.jpg",)),
        _file("nus_wide", NUS / "TrainImagelist.txt", "an image that is none", "zoo\\9999.jpg\n", ("zoo/9999.jpg",)),
        _file("nus_wide", NUS / "Imagelist.txt", "a path that leads outside", "..\\x.jpg\nzoo\\0002_2.jpg\n", ("x.jpg",)),
        _file("nus_wide", NUS / "Imagelist.txt", "an absolute path", "/etc/passwd\nzoo\\0002_2.jpg\n", ("/etc/passwd",)),
        _file(
            "nus_wide",
            NUS / "Imagelist.txt",
            "UTF-16",
            "actor\\0001_1.jpg\nzoo\\0002_2.jpg".encode("utf-16"),
            None,
            _columns_are,
        ),
        _file("nus_wide", NUS / "Imagelist.txt", "Latin-1", b"\xe4\\0001_1.jpg\n", ("UTF-8",)),
        _file("nus_wide", NUS / "TagList1k.txt", "a tag twice", "sky\nsky\n", ("sky",)),
        _file("nus_wide", NUS / "AllTags1k.txt", "a digit that is none", "2\t0\n", ("0 and 1",)),
        _file("nus_wide", NUS / "AllTags1k.txt", "a row that is short", "1\t0\n" * 2, ("line 1",)),
        _file("nus_wide", NUS / "AllTags1k.txt", "a row too few", "\t".join("0" * 1000), ("1 lines",)),
        _file("nus_wide", NUS / f"AllLabels/Labels_{concept}.txt", "-1 for absent", "1\n-1\n", ("0 and 1",)),
        _file("nus_wide", NUS / f"AllLabels/Labels_{concept}.txt", "a row too many", "1\n0\n0\n", ("3 labels",)),
        _file("nus_wide", NUS / "Concepts81.txt", "a concept that leads outside", "../../x\n", ("../../x",)),
        _file("nus_wide", NUS / "Concepts81.txt", "a concept of another name", "airports\n", ("airports",)),
        _case(
            "nus_wide",
            "two lists that differ",
            lambda folder: write(folder / NUS / "old/Imagelist.txt", "a\\1.jpg"),
            ("Imagelist.txt", "more than once"),
        ),
        _case("nus_wide", "no photo", lambda folder: shutil.rmtree(folder / NUS / "Flickr/zoo"), ("nus_wide_test",)),
    ]

    # ---- Open Images ----
    found += [
        *_spoilt("open_images_v4", CSV, rng, _columns_are),
        _gone("open_images_v4", CSV),
        _gone("open_images_v4", OPEN_IMAGES / "test"),
    ]
    found += [
        _file("open_images_v4", CSV, name, content, words)
        for name, content, words in (
            ("another heading", "ImageID,LabelName,Confidence\n" + row, ("ImageID",)),
            ("only the heading", head, ()),
            ("tabs", (head + row).replace(",", "\t"), ("ImageID",)),
            ("an id that is none", head + row.replace("000026e7ee790996", "26e7"), ("line 2", "26e7")),
            (
                "an id that leads outside",
                head + row.replace("000026e7ee790996", "../../etc/passwd"),
                ("line 2", "../../etc/passwd"),
            ),
            ("a confidence of 0.5", head + row.replace(",1\n", ",0.5\n"), ("line 2", "0.5")),
            ("a row that is short", head + "000026e7ee790996,verification\n", ("line 2",)),
            ("a row that is long", head + row.strip() + ",1\n", ("line 2",)),
            ("an empty row in between", head + "\n" + row, ("line 2",)),
            ("Latin-1", (head + row).encode("utf-8") + b"\xe4,\n", ("UTF-8",)),
            ("UTF-16", (head + row).encode("utf-16"), ("UTF-8",)),
            ("a zero byte", (head + row).encode() + b"\0\n", ("line 3",)),
            ("a field of a megabyte", head + "a" * 2**20 + ",b,c,1\n", ("line 2",)),
            ("only classes outside", head + row.replace(mid, "/m/outside"), ("7586",)),
        )
    ]
    found += [
        _case(
            "open_images_v4",
            "a photo of another name",
            lambda folder: save_photo(folder / OPEN_IMAGES / "test/thumbnail_1.jpg"),
            None,
            _columns_are,
        ),
        _case(
            "open_images_v4",
            "no photo of the list",
            lambda folder: (folder / OPEN_IMAGES / "test/000026e7ee790996.jpg").unlink(),
            ("test-annotations",),
        ),
    ]

    # ---- what registered releases list ----
    val = VOC2012 / "ImageSets/Segmentation/val.txt"
    two = lambda records: len(records) == 2  # noqa: E731
    found += [_file("voc2012", val, what, content, (), None) for what, content in not_a_file().items() if what != "text"]
    found += [
        _file("voc2012", val, "text", "not what it says\n", (), None),
        _file("voc2012", val, "CR LF", "2007_000033\r\n2008_000001\r\n", None, two),
        _file("voc2012", val, "UTF-16", "2007_000033\n2008_000001\n".encode("utf-16"), None, two),
        _file("voc2012", val, "an image twice", "2007_000033\n2007_000033\n", ("twice",)),
        _file("voc2012", val, "a path that leads outside", "../../x\n2007_000033\n", ("../../x",)),
        _case(
            "voc2012",
            "an absolute path, as some lists have",
            lambda folder: write(folder / val, "/etc/passwd\n2007_000033\n"),
            None,
            lambda records: len(records) == 1,
            warns=("passwd",),
        ),
        _case(
            "voc2012",
            "an image that is none",
            lambda folder: write(folder / val, "2007_000033\n1999_000001\n"),
            None,
            lambda records: len(records) == 1,
            warns=("1999_000001",),
        ),
        _case(
            "voc2012",
            "a label is missing",
            lambda folder: (folder / VOC2012 / "SegmentationClass/2008_000001.png").unlink(),
            None,
            lambda records: len(records) == 1,
            warns=("2008_000001",),
        ),
        _case(
            "voc2012",
            "two photos but for case",
            lambda folder: save_photo(folder / VOC2012 / "JPEGImages/2007_000033.JPG", format="JPEG"),
            ("2007_000033",),
        ),
        _gone("voc2012", val),
        _gone("voc2012", VOC2012 / "JPEGImages"),
        _gone("voc2012", VOC2012 / "SegmentationClass"),
    ]
    for name in (
        "coco_stuff_164k_val",
        "ade20k_150_val",
        "ade20k_847_val",
        "pascal_context_59_val",
        "pascal_context_459_val",
        "nus_wide_test",
        "open_images_v4_test",
    ):
        found.append(
            Case(KIND, f"{name} is not there", lambda folder, name=name: DatasetCatalog.get(name), (name, "datasets"), None)
        )
    for word in ("nus-wide", "voc2012", ""):
        found.append(
            Case(
                KIND,
                f"prepare {word!r}",
                lambda folder, word=word: command("datasets", "prepare", word),
                (repr(word), "nus_wide"),
                None,
            )
        )
    return found


def _ade(folder: Path, short_side: object, *more: object) -> str:
    shutil.copytree(_whole("ade20k_847"), folder, dirs_exist_ok=True)
    return command("datasets", "prepare", "ade20k_847", "--root", folder / "datasets", "--short-side", short_side, *more)
