"""Photos: damaged, of unusual kinds, mislabelled, and none at all."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from zeroshot_d2.images import read_image
from zeroshot_d2.predictor import to_bgr

from .case import Case, damaged, encoded, not_a_file, photo_array, write

KIND = "images"
Check = Callable[[np.ndarray], bool]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, depth: int, colour: int, data: bytes, *more: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + _chunk(b"IDAT", zlib.compress(data)) + _chunk(b"IEND", b"")


def _case(name: str, file: str, content: bytes | Callable[[Path], Any], reads: Check | None, refused: bool = True) -> Case:
    def run(folder: Path) -> np.ndarray:
        path = folder / file
        content(path) if callable(content) else write(path, content)
        return read_image(path)

    return Case(KIND, name, run, (file,) if refused else None, reads)


def _array(name: str, array: Any, words: tuple[str, ...]) -> Case:
    return Case(KIND, name, lambda folder: to_bgr(array), words, None)


def _shape(height: int = 64, width: int = 64) -> Check:
    return lambda image: image.shape == (height, width, 3) and image.dtype == np.uint8


def _near(expected: np.ndarray, tolerance: float = 12.0) -> Check:
    return lambda image: image.shape == expected.shape and float(np.abs(image.astype(float) - expected).mean()) < tolerance


def _huge_text(path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * (3 * PngImagePlugin.MAX_TEXT_CHUNK), zip=True)
    Image.fromarray(photo_array()).save(path, pnginfo=info)


def _profile(path: Path) -> None:
    Image.fromarray(photo_array()).save(
        path, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()[:99]
    )


def _animated(path: Path) -> None:
    frames = [Image.fromarray(photo_array(index)) for index in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)


def _turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo_array()[:32]).save(path, exif=exif, quality=95)


def cases(rng: random.Random) -> list[Case]:
    photo = photo_array()
    jpeg, png = encoded(photo, "JPEG", quality=95), encoded(photo, "PNG")
    found = [_case(f"{what} as .jpg", "photo.jpg", content, None) for what, content in not_a_file().items()]
    for file_format in ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM"):
        file = f"photo.{file_format.lower()}"
        whole = encoded(photo, file_format)
        # What decoders forgive they may forgive: the size is then right, and the rest is what any viewer shows.
        found += [_case(f"{file_format} {what}", file, content, _shape()) for what, content in damaged(whole, rng, 2, 1)]
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    grey = np.repeat(np.rint(ramp / 257).astype(np.uint8)[..., None], 3, axis=2)
    unit = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    white = np.full((64, 64, 4), [10, 20, 30, 0], dtype=np.uint8)
    cmyk = io.BytesIO()
    Image.fromarray(photo).convert("CMYK").save(cmyk, "JPEG", quality=95)
    adobe = cmyk.getvalue()
    found += [
        _case("16-bit grey", "ramp.png", encoded(ramp, "PNG"), _near(grey, 1.0), False),
        _case("float in [0, 1]", "unit.tif", encoded(unit, "TIFF"), _near(grey, 1.0), False),
        _case("float beyond 1", "unit.tif", encoded(2 * unit, "TIFF"), None),
        _case("float with NaN", "nan.tif", encoded(np.where(unit > 0.5, np.nan, unit), "TIFF"), None),
        _case("32-bit integers", "int.tif", encoded(ramp.astype(np.int32), "TIFF"), None),
        _case("transparent", "clear.png", encoded(white, "PNG"), _near(np.full((64, 64, 3), 255)), False),
        _case("CMYK", "cmyk.jpg", adobe, _near(photo, 20.0), False),
        _case("animated WebP", "moving.webp", _animated, _near(photo, 3.0), False),
        _case("1-bit", "bits.png", encoded(photo[..., 0] > 100, "PNG"), _shape(), False),
        _case("turned by EXIF", "turned.jpg", _turned, _shape(64, 32), False),
        _case("a PNG called .jpg", "photo.jpg", png, _near(photo, 1.0), False),
        _case("a JPEG called .png", "photo.png", jpeg, _near(photo), False),
        _case("no suffix", "photo", jpeg, _near(photo), False),
        _case("a name with a line break", "a\nb.jpg", jpeg, _near(photo), False),
        _case("bytes behind the end", "more.png", png + b"more" * 1000, _near(photo, 1.0), False),
        _case("a damaged colour profile", "profile.jpg", _profile, _near(photo), False),
        _case("a text chunk beyond Pillow's limit", "text.png", _huge_text, None),
        _case("a PNG of 14000 x 13000", "large.png", _png(14000, 13000, 1, 0, bytes(1751 * 13000)), None),
        _case("a PNG whose header says 4 billion pixels", "bomb.png", _png(65500, 65500, 8, 2, b"\0"), None),
        _case("a PNG of no height", "flat.png", _png(10, 0, 8, 2, b""), None),
        _case("a PNG with a broken second chunk", "broken.png", png[:33] + b"\0\0\0\5bad!!\0\0" + png[33:], None),
        _case("a PNG without pixels", "header.png", png[:33], None),
        _case("a PNG with too few rows", "short.png", _png(64, 64, 8, 2, bytes(193 * 10)), _shape()),
        _case("a PPM without numbers", "photo.ppm", b"P6\nwide high\n255\n", None),
        _case("a PPM whose numbers are negative", "photo.ppm", b"P6\n-4 4\n255\n" + bytes(48), None),
        _case("only the mark of JPEG", "photo.jpg", b"\xff\xd8\xff\xe0", None),
        _case("an SVG", "photo.svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='4' height='4'/>", None),
        _case("a PDF", "photo.jpg", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog >>\nendobj\n", None),
        _case(
            "EPS, which would start Ghostscript",
            "photo.eps",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\nshowpage\n",
            None,
        ),
        _case("a pickle", "photo.jpg", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00.", None),
        _case("a folder", "photo.jpg", Path.mkdir, None),
        _case("absent", "absent.jpg", lambda path: None, None),
        _case("a link to nothing", "link.jpg", lambda path: path.symlink_to("nowhere.jpg"), None),
        _case("a link to itself", "link.jpg", lambda path: path.symlink_to(path.name), None),
        _case("a pipe", "pipe.jpg", os.mkfifo, None),
        Case(KIND, "an empty name", lambda folder: read_image(""), (), None),
        Case(KIND, "a name with a zero byte", lambda folder: read_image("a\0.jpg"), ("a\\x00.jpg",), None),
        Case(KIND, "a name of 5,000 letters", lambda folder: read_image("a" * 5000), (), None),
        _array("None", None, ("NoneType",)),
        _array("a grey array", photo[..., 0], ("(64, 64)",)),
        _array("an RGBA array", white, ("(64, 64, 4)",)),
        _array("a float array", photo / 255, ("float64",)),
        _array("an array without pixels", np.zeros((0, 4, 3), np.uint8), ("(0, 4, 3)",)),
        _array("a number", 3, ("int",)),
        _array("a list of paths", ["a.jpg"], ("list",)),
    ]
    return found
