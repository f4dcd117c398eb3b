"""The one reader of images and the one of label images: what a file means, or one exception that names it.

H, W are the height and width of an image in pixels. No other module opens an image file.
"""

from __future__ import annotations

import functools
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, UnidentifiedImageError

from .storage import whole_file, wrong_content

PathLike = str | os.PathLike[str]
ImageArray = npt.NDArray[np.uint8]

MAX_PIXELS = 178_956_970
"""Width times height above which a file is refused, unless a caller says otherwise: 0.5 GB in RGB, Pillow's own limit."""

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".avif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga"),
)
"""Endings of the files that count as images in folders and patterns, in lower case."""

# Pillow's names of what these endings stand for; MPO is what some cameras write as .jpg. Its reader of EPS runs a program.
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "WEBP", "AVIF", "TIFF", "PPM", "JPEG2000", "TGA")

_ORIENTATION, _WIDTH, _HEIGHT = 0x0112, 0x0100, 0x0101  # tags of EXIF and TIFF
_TURNED = (5, 6, 7, 8)  # orientations that exchange height and width
_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_opening = threading.Lock()

T = TypeVar("T")
A = TypeVar("A", bound=np.generic)


class UnreadableImage(ValueError):
    """A file that exists but is no image, is damaged, too large, or of a kind whose meaning is not clear; it is named."""


def read_image(
    path: PathLike,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] | None = None,
    at_least: tuple[int, int] | None = None,
) -> ImageArray:
    """A photo as an image viewer shows it: upright by its EXIF tag, the first frame, transparency on white, in sRGB.

    16-bit values are divided by 257; floats must lie in [0, 1].

    Args:
        path: the file.
        max_pixels: the largest width times height, known from the header before anything is decoded.
        formats: Pillow's names of the formats that are allowed; None: those of :data:`IMAGE_SUFFIXES`.
        at_least: (H, W) of the upright image that will do. A JPEG is then decoded at the smallest of 1/8, 1/4 and 1/2 of
            its size that has as many pixels on both sides, for a part of the time; its values are those of a resized image.
            Other files, and JPEGs that are not twice as large, have their own size.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableImage: see there.
    """
    return _read(path, "image", lambda image: _decoded(image, to_rgb, at_least)[0], max_pixels, formats)


def read_label_image(
    path: PathLike, *, photo: PathLike | None = None, max_pixels: int = MAX_PIXELS
) -> npt.NDArray[np.integer[Any]]:
    """The values of a label image: palette, grey, 1-bit, 16-bit or 32-bit PNG or TIFF.

    An EXIF orientation of the label image itself is applied. Without one, the label lies as the stored pixels of the photo
    do, and is turned with it; a label whose height and width are those of the upright photo, and not of the stored one, is
    upright already.

    Args:
        path: the file.
        photo: the file of the image that it labels.
        max_pixels: as for :func:`read_image`.

    Returns:
        (H, W) integers.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableImage: see there; also a JPEG, more than one channel, or values that are no integers.
    """

    def values(image: Image.Image) -> npt.NDArray[np.integer[Any]]:
        if image.format in ("JPEG", "MPO"):
            raise UnreadableImage(
                f"label image {os.fspath(path)} is a JPEG, which keeps values only about as they were: make it a PNG anew"
            )
        label = np.asarray(image)
        if label.ndim != 2:
            raise UnreadableImage(
                f"label image {os.fspath(path)} has {label.shape[-1]} channels: a label image holds one value per pixel "
                "(palette or grey), not colours; save its values"
            )
        if label.dtype == np.bool_:  # mode "1"
            label = label.astype(np.uint8)
        if not np.issubdtype(label.dtype, np.integer):
            raise UnreadableImage(f"label image {os.fspath(path)} holds {label.dtype} values: labels must be integers")
        return label

    label, orientation = _read(path, "label image", lambda image: _decoded(image, values), max_pixels, None)
    return label if photo is None or orientation != 1 else turned_with(photo, label, max_pixels=max_pixels)


def turned_with(
    photo: PathLike, label: npt.NDArray[np.integer[Any]], *, max_pixels: int = MAX_PIXELS
) -> npt.NDArray[np.integer[Any]]:
    """``label`` (H, W) upright, where it lies as the stored pixels of ``photo`` do; see :func:`read_label_image`."""
    return _turned(label, _orientation_for_label(os.fspath(photo), label.shape[::-1], max_pixels))


def image_size(path: PathLike, *, max_pixels: int = MAX_PIXELS, formats: Sequence[str] | None = None) -> tuple[int, int]:
    """(H, W) of the upright image, from the header alone.

    Raises:
        FileNotFoundError, UnreadableImage: as :func:`read_image`.
    """

    def size(image: Image.Image) -> tuple[int, int]:
        orientation, (width, height) = _stored(image)
        return (width, height) if orientation in _TURNED else (height, width)

    return _read(path, "image", size, max_pixels, formats)


def stored_orientation(path: PathLike) -> int:
    """EXIF's number of how the pixels of a file are turned, from the header alone; 1: they are upright.

    Raises:
        FileNotFoundError, UnreadableImage: as :func:`read_image`.
    """
    return _read(path, "image", _orientation, sys.maxsize, None)


def check_image_array(image: Any, order: str) -> ImageArray:
    """The array itself if it is (H, W, 3) uint8; ``order`` says the order of its channels.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(image, np.ndarray):
        raise ValueError(f"expected an image as an array, got {type(image).__name__}")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"an image array must be (H, W, 3) uint8 in {order}, got {image.shape} {image.dtype}")
    return image


def to_rgb(image: Image.Image) -> ImageArray:
    """(H, W, 3) uint8 RGB of an image that Pillow holds; see :func:`read_image`. Orientation is left as it is.

    Raises:
        ValueError: a mode or values whose meaning is not clear.
    """
    if image.mode in _16_BIT:
        grey = np.asarray(image).astype(np.float64) / 257  # 65535 becomes 255
        return _grey(np.rint(grey))
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError(
                f"its floating-point values [{values.min():g}, {values.max():g}] are not all in [0, 1]: "
                "scale them, or save the image with 8 or 16 bits"
            )
        return _grey(np.rint(255 * values))
    if image.mode == "I":
        raise ValueError("it has 32-bit integer values, whose range is not known: save it with 8 or 16 bits")
    image = _in_srgb(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image.convert("RGB"))


def resized_to_fit(image: ImageArray, longest: int, resample: Image.Resampling = Image.Resampling.LANCZOS) -> ImageArray:
    """``image`` (H, W, 3) with no side longer than ``longest``; a smaller one stays as it is."""
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    return np.asarray(Image.fromarray(image).resize(size, resample))


def write_image(path: PathLike, pixels: npt.NDArray[Any], *, sync: bool = True, **options: Any) -> None:
    """Write (H, W, 3) uint8 RGB, or (H, W) uint8 or uint16, in the format of the suffix; ``options`` are Pillow's."""
    with whole_file(path, sync=sync) as temporary:
        Image.fromarray(pixels).save(temporary, **options)


# ------------------------------------------------------------------------------------------------------- inside
def _read(
    path: PathLike,
    what: str,
    convert: Callable[[Image.Image], T],
    max_pixels: int,
    formats: Sequence[str] | None,
) -> T:
    """``convert`` of the opened file; whatever goes wrong is an UnreadableImage that names it."""
    name = os.fspath(path)
    shown = name if name.isprintable() and len(name) < 500 else ascii(name[:100])
    try:
        if not name or not Path(name).exists():
            raise FileNotFoundError(f"{what} {shown} does not exist (looked for it from {Path.cwd()}): correct the path")
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise FileNotFoundError(f"{what} {shown} cannot be looked for ({error.strerror}): correct the path") from error
    if not Path(name).is_file():
        raise UnreadableImage(f"{what} {shown} is not a file: give the path of one")
    try:
        with _opened(name, what, formats) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise UnreadableImage(
                    f"{what} {name} has {width} x {height} pixels, more than {max_pixels:,}: make it smaller, or "
                    "raise the limit (INPUT.MAX_PIXELS in a config, --max-pixels on the command line)"
                    + ("; `predict --stream` segments TIFF of any size" if image.format == "TIFF" else "")
                )
            return convert(image)
    except UnreadableImage:
        raise
    # Some forty decoders report damage as OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError,
    # RuntimeError, OverflowError, ...: whatever it is, this file cannot be used, and the next one can.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise UnreadableImage(f"cannot read the {what} {shown}: {reason}; fetch or save it anew, or leave it out") from error


@contextmanager
def _opened(name: str, what: str, formats: Sequence[str] | None) -> Iterator[Image.Image]:
    """The file, its header read. Pillow's own limit of pixels is off: ours can be set, and names the file."""
    # From a stream: given a name, Pillow maps uncompressed TIFF into memory and mixes up the rows of turned ones.
    with open(name, "rb") as stream:
        with _opening:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                Image.init()  # an older Pillow has no AVIF
                allowed = [known for known in (_FORMATS if formats is None else formats) if known in Image.OPEN]
                image = Image.open(stream, formats=allowed)  # noqa: TID251  (the one reader)
            except UnidentifiedImageError as error:
                stream.seek(0)
                reason = wrong_content(stream.read(64)) or "it is no image of a known format: save it as PNG or JPEG"
                raise UnreadableImage(f"cannot read the {what} {name}: {reason}") from error
            finally:
                Image.MAX_IMAGE_PIXELS = limit
        with image:
            yield image


def _orientation(image: Image.Image) -> int:
    """By the EXIF data in the header; Pillow's own way decodes a PNG to look for some behind its pixels."""
    try:
        return Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF, which viewers ignore; it fails in as many ways as a damaged image
        return 1


def _stored(image: Image.Image) -> tuple[int, tuple[int, int]]:
    """Orientation, and stored (width, height), of an image of which only the header was read."""
    tags = getattr(image, "tag_v2", None)  # TIFF: its size may be that of the turned image already
    return _orientation(image), image.size if tags is None else (tags[_WIDTH], tags[_HEIGHT])


def _decoded(
    image: Image.Image, convert: Callable[[Image.Image], npt.NDArray[A]], at_least: tuple[int, int] | None = None
) -> tuple[npt.NDArray[A], int]:
    """The upright pixels, and the orientation in which they were stored; ``convert`` decodes them."""
    orientation = _orientation(image)
    if at_least is not None:
        height, width = at_least[::-1] if orientation in _TURNED else at_least
        image.draft(None, (max(1, width), max(1, height)))  # of JPEG alone; the mode stays
    pixels = convert(image)
    # Pillow turns TIFF as it decodes it, and takes the tag away.
    return _turned(pixels, _orientation(image) if image.format == "TIFF" else orientation), orientation


def _grey(values: npt.NDArray[np.floating[Any]]) -> ImageArray:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def _in_srgb(image: Image.Image) -> Image.Image:
    """``image`` with its colours in sRGB where it carries another ICC profile that fits its mode."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "L", "CMYK"):
        return image
    transform = _srgb_transform(bytes(profile), image.mode)
    return image if transform is None else transform.apply(image)


@functools.lru_cache(maxsize=16)
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None for sRGB itself, and for a profile that is damaged or made for another mode, which viewers ignore."""
    output = {"RGBA": "RGBA"}.get(mode, "RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, output)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _orientation_for_label(photo: str, label_size: tuple[int, int], max_pixels: int) -> int:
    """The orientation to be applied to a label image of (width, height) ``label_size`` that has none of its own."""
    orientation, size = _read(photo, "image", _stored, max_pixels, None)
    if orientation in _TURNED and label_size != size and label_size == size[::-1]:
        return 1
    return orientation


def _turned(pixels: npt.NDArray[A], orientation: int) -> npt.NDArray[A]:
    """``pixels`` (H, W, ...) with the EXIF ``orientation`` applied."""
    steps: dict[int, Callable[[npt.NDArray[A]], npt.NDArray[A]]] = {
        2: np.fliplr,
        3: lambda x: np.rot90(x, 2),
        4: np.flipud,
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
        8: np.rot90,
    }
    return np.ascontiguousarray(steps[orientation](pixels)) if orientation in steps else pixels
