"""What CVAT exports: "CVAT for images 1.1", an XML file, and "Segmentation mask 1.1", a folder of coloured images.

In the XML, polygons, boxes, ellipses and masks are read; a higher z_order lies above, then a later shape.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn
from xml.parsers import expat

import numpy as np
import numpy.typing as npt

from ...images import image_size, read_image
from ...pictures.colors import Color
from ...segmentation.masks import Mask, decode_mask
from ...storage import check_inside, read_lines
from .base import AnnotatedImage, Annotations, Shape, draw_box, draw_ellipse, segment

_BLACK = (0, 0, 0)
_WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton", "tag")
_SHAPES = ("polygon", "box", "ellipse", "mask")


# ------------------------------------------------------------------------------------------------- CVAT for images 1.1
def read_cvat_images(path: Path) -> Annotations:
    """The annotations of an annotations.xml, or of the folder that holds it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no XML, declares a document type, or is not CVAT's; it is named.
    """
    file = path / "annotations.xml" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist (looked for it from {Path.cwd()}): unpack CVAT's archive, name the file"
        )
    reader = _ImagesXml(file)
    reader.read()
    used = {shape.name for image in reader.images for shape in image.shapes}
    names = [*reader.labels, *sorted(used - set(reader.labels))]
    return Annotations(names, reader.images, reader.left_out)


class _ImagesXml:
    """A pass over the file, element by element.

    Expat, unlike ElementTree, lets a document type be refused before it declares entities that unfold to gigabytes.
    """

    def __init__(self, file: Path) -> None:
        self.labels: list[str] = []
        self.images: list[AnnotatedImage] = []
        self.left_out: Counter[str] = Counter()
        self._file = file
        self._open: list[str] = []
        self._text = ""
        self._image: Mapping[str, str] = {}
        self._shapes: list[tuple[int, Shape]] = []

    def read(self) -> None:
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._data
        try:
            with open(self._file, "rb") as stream:
                parser.ParseFile(stream)
        except expat.ExpatError as error:
            raise ValueError(f"{self._file} is no XML or is cut off ({error}): export it again") from error

    def _doctype(self, *declared: Any) -> NoReturn:
        raise ValueError(f"{self._file} declares a document type, which CVAT's files do not: export it again")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._open and tag != "annotations":
            raise ValueError(f"{self._file} begins with <{tag}>, not with <annotations>: is it CVAT's?")
        if self._open == ["annotations"] and tag == "track":
            raise ValueError(
                f'{self._file} is of the format "CVAT for video": export "CVAT for images 1.1" or "Segmentation mask 1.1"'
            )
        inside = self._open == ["annotations", "image"]
        self._open.append(tag)
        self._text = ""
        if self._open == ["annotations", "image"]:
            self._image, self._shapes = attributes, []
        elif inside and tag in _WITHOUT_AREA:
            self.left_out[tag] += 1
        elif inside:
            self._add_shape(tag, attributes)

    def _end(self, tag: str) -> None:
        if self._open[-3:] == ["labels", "label", "name"]:
            if self._text not in self.labels:
                self.labels.append(self._text)
        elif self._open == ["annotations", "image"]:
            self._add_image()
        self._open.pop()

    def _data(self, text: str) -> None:
        self._text += text

    def _add_image(self) -> None:
        name = self._get(self._image, "name")
        check_inside(name, str(self._file))
        height, width = (int(self._number(self._image, key)) for key in ("height", "width"))
        stem = PurePosixPath(name.replace("\\", "/")).with_suffix("").as_posix()
        shapes = [shape for _, shape in sorted(self._shapes, key=lambda item: item[0])]
        self.images.append(AnnotatedImage(stem, str(self._file), height, width, shapes))

    def _add_shape(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag not in _SHAPES:
            raise ValueError(f"{self._file} has <{tag}> in an image, which this version does not know: leave it out")
        label = self._get(attributes, "label")
        order = int(self._number({"z_order": "0", **attributes}, "z_order"))
        if tag == "polygon":
            points = self._get(attributes, "points").replace(";", ",").split(",")
            shape = segment(label, [[self._float(value, "points") for value in points]])
        elif tag == "box":
            left, top, right, bottom = (self._number(attributes, key) for key in ("xtl", "ytl", "xbr", "ybr"))
            degrees = self._number({"rotation": "0", **attributes}, "rotation")
            shape = Shape(label, partial(_draw_turned_box, left, top, right, bottom, degrees))
        elif tag == "ellipse":
            x, y, radius_x, radius_y = (self._number(attributes, key) for key in ("cx", "cy", "rx", "ry"))
            degrees = self._number({"rotation": "0", **attributes}, "rotation")
            shape = Shape(label, partial(draw_ellipse, x, y, radius_x, radius_y, degrees))
        else:
            runs = [int(self._float(value, "rle")) for value in self._get(attributes, "rle").split(",")]
            window = [int(self._number(attributes, key)) for key in ("left", "top", "width", "height")]
            shape = Shape(label, partial(_draw_mask, runs, *window))
        self._shapes.append((order, shape))

    def _get(self, attributes: Mapping[str, str], key: str) -> str:
        if key not in attributes:
            raise ValueError(f"{self._file} has <{self._open[-1]}> without {key!r}: export it again")
        return attributes[key]

    def _number(self, attributes: Mapping[str, str], key: str) -> float:
        return self._float(self._get(attributes, key), key)

    def _float(self, text: str, key: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(
                f"{self._file}, image {self._image.get('name')!r}, has <{self._open[-1]}> whose {key!r} must be numbers, "
                f"got {text[:60]!r}: export it again"
            )
        return value


def _draw_turned_box(left: float, top: float, right: float, bottom: float, degrees: float, height: int, width: int) -> Mask:
    """A box that is turned clockwise about its centre."""
    if not degrees:
        return draw_box(left, top, right, bottom, height, width)
    x, y, turn = (left + right) / 2, (top + bottom) / 2, math.radians(degrees)
    corners = [(left - x, top - y), (right - x, top - y), (right - x, bottom - y), (left - x, bottom - y)]
    polygon = []
    for dx, dy in corners:
        polygon += [x + dx * math.cos(turn) - dy * math.sin(turn), y + dx * math.sin(turn) + dy * math.cos(turn)]
    return decode_mask([polygon], height, width)


def _draw_mask(runs: list[int], left: int, top: int, width: int, height: int, image_height: int, image_width: int) -> Mask:
    """CVAT's mask: run lengths along the rows of a window, those outside of the mask first."""
    if left < 0 or top < 0 or min(width, height) < 1 or left + width > image_width or top + height > image_height:
        window = (left, top, width, height)
        raise ValueError(f"a mask at {window} (left, top, width, height) leaves the image of {image_height} x {image_width}")
    # Columns and rows exchanged, these are COCO's run lengths.
    window_mask = decode_mask({"size": [width, height], "counts": runs}, width, height).T
    mask = np.zeros((image_height, image_width), dtype=np.bool_)
    mask[top : top + height, left : left + width] = window_mask
    return mask


# -------------------------------------------------------------------------------------------------- segmentation mask 1.1
def read_cvat_masks(folder: Path) -> Annotations:
    """The annotations of a folder with labelmap.txt and SegmentationClass/; black is what no shape covers.

    Raises:
        FileNotFoundError: the folder or one of the two is missing.
        ValueError: labelmap.txt is damaged; it is named.
    """
    masks = folder / "SegmentationClass"
    if not masks.is_dir():
        raise FileNotFoundError(f"{masks} is no folder: unpack CVAT's archive and name the folder that holds labelmap.txt")
    color_of = {name: color for name, color in _label_map(folder / "labelmap.txt").items() if color != _BLACK}
    known = tuple(color_of.values())
    images = []
    for file in sorted(masks.rglob("*.png")):
        height, width = image_size(file)
        shapes = [Shape(name, partial(_draw_color, str(file), color, known)) for name, color in color_of.items()]
        stem = file.relative_to(masks).with_suffix("").as_posix()
        images.append(AnnotatedImage(stem, str(file), height, width, shapes))
    if not images:
        raise FileNotFoundError(f"{masks} holds no .png: export the masks again")
    return Annotations(list(color_of), images)


def _label_map(file: Path) -> dict[str, Color]:
    """{class: colour} of the lines "class:red,green,blue:parts:actions"."""
    color_of: dict[str, Color] = {}
    for line in read_lines(file, "label map"):
        name, _, rest = line.partition(":")
        numbers = rest.partition(":")[0].split(",")
        if not name or len(numbers) != 3 or not all(number.strip().isdecimal() and int(number) < 256 for number in numbers):
            raise ValueError(f'{file} has the line {line[:80]!r}, which must be "class:red,green,blue:parts:actions"')
        red, green, blue = map(int, numbers)
        if name in color_of or (red, green, blue) in color_of.values():
            raise ValueError(f"{file} has the class or the colour of the line {line[:80]!r} twice: correct it")
        color_of[name] = red, green, blue
    return color_of


def _draw_color(file: str, color: Color, known: tuple[Color, ...], height: int, width: int) -> Mask:
    return np.asarray(_color_codes(file, known) == _code(color))


@functools.lru_cache(maxsize=1)  # all classes of an image follow each other
def _color_codes(file: str, known: tuple[Color, ...]) -> npt.NDArray[np.int64]:
    """The colours (H, W) of an image as numbers, all of them black or among the known ones."""
    pixels = read_image(file).astype(np.int64)
    codes = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    strange = np.setdiff1d(codes, [_code(color) for color in (_BLACK, *known)])
    if len(strange):
        red, green, blue = (int(strange[0]) >> shift & 255 for shift in (16, 8, 0))
        raise ValueError(f"{len(strange)} colours are not in labelmap.txt, such as {red},{green},{blue}")
    return codes


def _code(color: Color) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]
