"""From the shapes of an annotation tool to label images.

A label image has the index of a class in each pixel, and the largest value (255, or 65535 for more than 255 classes) in
pixels that no shape covers: what :func:`zeroshot_d2.register_sem_seg` reads without further arguments, up to 255 classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...images import MAX_PIXELS, write_image
from ...segmentation.labels import no_class_value
from ...segmentation.masks import Mask, check_size, decode_mask
from ...storage import read_lines, write_text
from ..preparation.jobs import map_jobs

CLASSES_FILE = "classes.txt"

Draw = Callable[[int, int], Mask]
"""(height, width) -> the pixels of a shape; ValueError where it is faulty."""


@dataclass(frozen=True)
class Shape:
    """What covers the pixels of a class.

    Args:
        name: of the class.
        draw: gives the pixels. It must be picklable: a function of a module, or a partial of one.
    """

    name: str
    draw: Draw


def segment(name: str, segmentation: Any) -> Shape:
    """A shape of polygons or run lengths, as :func:`zeroshot_d2.segmentation.masks.decode_mask` takes them."""
    return Shape(name, partial(decode_mask, segmentation))


@dataclass(frozen=True)
class AnnotatedImage:
    """The shapes of one image.

    Args:
        stem: the image's path without its ending, with "/", from the data set's folder.
        source: the file of its annotations, for messages.
        height, width: in pixels.
        shapes: in the order in which they are painted.
        largest_first: paint in the order of their area instead.
    """

    stem: str
    source: str
    height: int
    width: int
    shapes: Sequence[Shape]
    largest_first: bool = False


@dataclass(frozen=True)
class Annotations:
    """What a reader found.

    Args:
        names: the classes, in the order of the tool.
        images: all images.
        left_out: how many shapes of each kind have no area, and are not painted.
    """

    names: list[str]
    images: list[AnnotatedImage]
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` has done.

    Args:
        names: the classes, in the order of their values.
        written, skipped: label images, and those that were there before.
        empty: label images without a shape, among those written.
        other_classes: how many shapes of each class that is not among the names.
    """

    names: list[str]
    written: int
    skipped: int
    empty: int
    other_classes: Counter[str]


def convert(
    annotations: Annotations,
    output: Path,
    classes: Sequence[str] | None = None,
    *,
    background: str | None = None,
    workers: int = 1,
) -> Conversion:
    """Write ``output``/labels/STEM.png for every image, and the names to ``output``/classes.txt.

    Label images that are there are kept, so that an interrupted run can be continued.

    Args:
        annotations: what one of the readers gave.
        output: the folder.
        classes: the classes in the order of their values; others are left unlabelled. None: all, in the tool's order.
        background: a further class, for the pixels that no shape covers.
        workers: number of processes.

    Raises:
        ValueError: a shape is faulty (its file and image are named), no class is left, or the folder holds label images of
            other classes.
    """
    names = list(annotations.names if classes is None else classes)
    if background is not None and background not in names:
        names.append(background)
    if not names:
        raise ValueError("there is no class: the annotations have no shape with a name, draw some or name --classes")
    if len(set(names)) != len(names) or len(names) > 65535:
        twice = next((name for name, count in Counter(names).items() if count > 1), "")
        raise ValueError(f"the classes must be different, and at most 65,535, got {len(names)}, {twice!r} among them twice")
    faulty = next((name for name in names if not name.strip() or name != name.strip() or len(name.splitlines()) != 1), None)
    if faulty is not None:
        raise ValueError(f"the class {faulty!r} does not fit into a line of {CLASSES_FILE}: rename it")
    stems = Counter(image.stem.lower() for image in annotations.images)
    same = [stem for stem, count in stems.items() if count > 1]
    if same:
        raise ValueError(f"{len(same)} images would have one label image, such as {same[0]}.png: rename them")
    list_file = output / CLASSES_FILE
    if list_file.is_file() and read_lines(list_file, "class list", comments=False) != names:
        raise ValueError(
            f"{list_file} lists other classes than {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}: label images "
            "of different classes do not mix, name another --output or the same --classes"
        )
    write_text(list_file, "".join(f"{name}\n" for name in names))
    value = {name: index for index, name in enumerate(names)}
    other = Counter(shape.name for image in annotations.images for shape in image.shapes if shape.name not in value)
    fill = no_class_value(len(names)) if background is None else value[background]
    jobs = [
        (image, path, value, fill)
        for image in annotations.images
        if not (path := output / "labels" / f"{image.stem}.png").exists()
    ]
    covered = list(map_jobs(_paint, jobs, workers, "label images"))
    return Conversion(names, len(jobs), len(annotations.images) - len(jobs), covered.count(False), other)


def _paint(job: tuple[AnnotatedImage, Path, dict[str, int], int]) -> bool:
    """Write one label image; whether a shape covers any pixel."""
    image, path, value, fill = job
    try:
        check_size(image.height, image.width, MAX_PIXELS)
        label = np.full((image.height, image.width), fill, dtype=np.uint8 if len(value) <= 255 else np.uint16)
        masks = [(value[s.name], s.draw(image.height, image.width)) for s in image.shapes if s.name in value]
    except ValueError as error:
        raise ValueError(f"{image.source}, image {image.stem}: {error}; correct it in the tool, or leave it out") from error
    if image.largest_first:
        masks.sort(key=lambda item: -int(item[1].sum()))
    for index, mask in masks:
        label[mask] = index
    write_image(path, label)
    return any(mask.any() for _, mask in masks)


def draw_box(left: float, top: float, right: float, bottom: float, height: int, width: int) -> Mask:
    """The pixels of a rectangle."""
    return decode_mask([[left, top, right, top, right, bottom, left, bottom]], height, width)


def draw_ellipse(
    x: float, y: float, radius_x: float, radius_y: float, degrees: float, height: int, width: int
) -> npt.NDArray[np.bool_]:
    """The pixels of an ellipse that is turned clockwise by ``degrees`` about its centre."""
    if not np.isfinite([x, y, radius_x, radius_y, degrees]).all() or min(radius_x, radius_y) <= 0:
        raise ValueError(f"an ellipse must have finite numbers and radii above 0, got {(x, y, radius_x, radius_y, degrees)}")
    turn = np.deg2rad(degrees)
    rows, columns = np.ogrid[:height, :width]
    dx, dy = columns + 0.5 - x, rows + 0.5 - y
    along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    return (along / radius_x) ** 2 + (across / radius_y) ** 2 <= 1
