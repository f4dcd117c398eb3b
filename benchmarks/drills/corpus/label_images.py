"""Label images: values that mean nothing, channels, sizes, orientations, damage."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zeroshot_d2 import ClassSplit
from zeroshot_d2.segmentation.labels import IGNORE_LABEL, label_table, read_label

from .case import Case, damaged, encoded, not_a_file, write

KIND = "label_images"
SPLIT = ClassSplit(("cat", "dog", "sky"), unseen=("dog",))
LABEL = np.arange(48).reshape(6, 8).astype(np.uint8) % 3


def _turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """``image`` as EXIF's orientation wants it shown; written from the standard's table, not with the project's code."""
    if orientation in (5, 6, 7, 8):
        image = image.T
    flips = {
        2: np.s_[:, ::-1],
        3: np.s_[::-1, ::-1],
        4: np.s_[::-1],
        6: np.s_[:, ::-1],
        7: np.s_[::-1, ::-1],
        8: np.s_[::-1],
    }
    return image[flips[orientation]] if orientation in flips else image


def _read(path: Path, **options: Any) -> np.ndarray:
    return read_label(path, label_table(SPLIT), **options)


def _case(
    name: str, content: bytes | Callable[[Path], Any], words: tuple[str, ...] | None, expected: np.ndarray | None
) -> Case:
    def run(folder: Path) -> np.ndarray:
        content(folder / "label.png") if callable(content) else write(folder / "label.png", content)
        return _read(folder / "label.png")

    named = None if words is None else ("label.png", *words)
    return Case(KIND, name, run, named, None if expected is None else lambda label: np.array_equal(label, expected))


def _table(name: str, words: tuple[str, ...], **options: Any) -> Case:
    return Case(KIND, name, lambda folder: label_table(SPLIT, **options), words, None)


def _with_photo(orientation: int) -> Case:
    """A photo with an EXIF tag, and a label that lies as its stored pixels do."""

    def run(folder: Path) -> np.ndarray:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(folder / "photo.jpg", exif=exif)
        write(folder / "label.png", encoded(LABEL, "PNG"))
        return _read(folder / "label.png", photo=folder / "photo.jpg")

    expected = _turned(LABEL, orientation)
    return Case(
        KIND, f"the photo has EXIF orientation {orientation}", run, None, lambda label: np.array_equal(label, expected)
    )


def _valid_or_refused(label: np.ndarray) -> bool:
    """What a decoder may make of damage: labels of the right size that mean something."""
    return label.shape == LABEL.shape and bool(((label < 3) | (label == IGNORE_LABEL)).all())


def _palette(path: Path) -> None:
    image = Image.frombytes("P", (8, 6), LABEL.tobytes())
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.save(path)


def cases(rng: random.Random) -> list[Case]:
    whole = encoded(LABEL, "PNG")
    odd = LABEL.copy()
    odd[2, 3] = 7
    ignored = np.where(LABEL == 1, 255, LABEL).astype(np.uint8)
    as_index = np.where(LABEL == 1, IGNORE_LABEL, LABEL.astype(np.uint16)).astype(np.uint16)
    colours = np.repeat(LABEL[..., None], 3, axis=2)
    wide = LABEL.astype(np.int32)
    found = [_case(f"{what} as .png", content, (), None) for what, content in not_a_file().items()]
    found += [
        Case(
            KIND,
            f"PNG {name}",
            lambda folder, content=content: _read(write(folder / "label.png", content)),
            ("label.png",),
            _valid_or_refused,
        )
        for name, content in damaged(whole, rng, 4, 4)
    ]
    found += [_with_photo(orientation) for orientation in range(1, 9)]
    found += [
        _case("8-bit grey", whole, None, LABEL),
        _case("with a palette", _palette, None, LABEL),
        _case("16-bit", encoded(LABEL.astype(np.uint16), "PNG"), None, LABEL),
        _case("32-bit TIFF", encoded(wide, "TIFF"), None, LABEL),
        _case("unlabelled pixels", encoded(ignored, "PNG"), None, as_index),
        _case("65535, always ignored", encoded(as_index.astype(np.uint16), "PNG"), None, as_index),
        _case("a value without a meaning", encoded(odd, "PNG"), ("7",), None),
        _case("a 16-bit value without a meaning", encoded(LABEL.astype(np.uint16) + 300, "PNG"), ("300",), None),
        _case("negative values", encoded(wide - 1, "TIFF"), ("-1",), None),
        _case("values beyond 16 bits", encoded(wide + 70000, "TIFF"), ("70000",), None),
        _case("colours", encoded(colours, "PNG"), ("3 channels",), None),
        _case("colours with transparency", encoded(np.dstack([colours, LABEL]), "PNG"), ("4 channels",), None),
        _case("grey with transparency", encoded(np.dstack([LABEL, LABEL]), "PNG"), ("2 channels",), None),
        _case("floats", encoded(LABEL.astype(np.float32), "TIFF"), ("float32",), None),
        _case("a JPEG, whose values are not exact", encoded(LABEL, "JPEG"), (), None),
        _case("1-bit", encoded(LABEL > 0, "PNG"), None, (LABEL > 0).astype(np.uint16)),
        _case("a folder", Path.mkdir, (), None),
        _case("absent", lambda path: None, (), None),
        _table("too few label values", ("2 label values", "3 classes"), label_values=[0, 1]),
        _table("a label value twice", ("[1]",), label_values=[0, 1, 1]),
        _table("a negative label value", ("-1",), label_values=[0, 1, -1]),
        _table("a label value beyond 16 bits", ("70000",), label_values=[0, 1, 70000]),
        _table("a fraction as label value", ("1.5",), label_values=[0, 1.5, 2]),
        _table("a text as label value", ("'cat'",), label_values=["cat", "dog", "sky"]),
        _table("a class that is ignored", ("255",), label_values=[0, 1, 255]),
        _table("a class that the split does not have", ("bird",), label_values={0: "cat", 1: "dog", 2: "sky", 3: "bird"}),
        _table("a class without a value", ("sky",), label_values={0: "cat", 1: "dog"}),
        _table("a fraction as ignore value", ("2.5",), ignore_values=[2.5]),
        _table("an ignore value beyond 16 bits", ("70000",), ignore_values=[70000]),
        _table("an unknown vocabulary", ("'both'",), vocabulary="both"),
        _table("None among the ignore values", ("None",), ignore_values=[None]),
        _table("a mapping the wrong way round", ("'cat'",), label_values={"cat": 0, "dog": 1, "sky": 2}),
    ]
    return found
