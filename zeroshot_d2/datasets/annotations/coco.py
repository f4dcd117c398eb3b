"""COCO's JSON: "images", "annotations" with polygons or run lengths, and "categories".

Where shapes overlap, the smaller one lies above the larger one, since COCO has no order.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from ...json_stream import fields, stream_json_arrays
from ...storage import check_inside
from .base import AnnotatedImage, Annotations, Shape, segment


def read_coco(path: Path) -> Annotations:
    """The annotations of a JSON file; its categories are the classes, by their ids.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not COCO's or is cut off, or an image or a category has two entries or none.
    """
    categories: dict[int, str] = {}
    images: dict[Any, tuple[str, int, int]] = {}
    segments: list[tuple[Any, int, Any]] = []
    for key, entry in stream_json_arrays(path, ("images", "annotations", "categories")):
        if key == "categories":
            category, name = fields(entry, path, id=int, name=str)
            _add(categories, category, name, "category", path)
        elif key == "images":
            image, file_name, height, width = fields(entry, path, id=object, file_name=str, height=int, width=int)
            check_inside(file_name, str(path))
            _add(images, _key(image, path), (file_name, height, width), "image", path)
        else:
            image, category, segmentation = fields(entry, path, image_id=object, category_id=int, segmentation=object)
            segments.append((_key(image, path), category, segmentation))
    shapes: dict[Any, list[Shape]] = {image: [] for image in images}
    for image, category, segmentation in segments:
        for what, known, number in (("image", shapes, image), ("category", categories, category)):
            if number not in known:
                raise ValueError(f"{path} has an annotation of {what} {number!r}, which it does not list: is it cut down?")
        shapes[image].append(segment(categories[category], segmentation))
    return Annotations(
        [categories[category] for category in sorted(categories)],
        [
            AnnotatedImage(
                PurePosixPath(file_name.replace("\\", "/")).with_suffix("").as_posix(),
                str(path),
                height,
                width,
                shapes[image],
                largest_first=True,
            )
            for image, (file_name, height, width) in images.items()
        ],
    )


def _key(image: Any, path: Path) -> int | str:
    """An image's id, which some tools make a text."""
    if not isinstance(image, int | str):
        raise ValueError(f"{path} has the image id {str(image)[:60]}, which must be a whole number or a text")
    return image


def _add(known: dict[Any, Any], key: Any, value: Any, what: str, path: Path) -> None:
    if key in known:
        raise ValueError(f"{path} lists {what} {key!r} twice: give each an id of its own")
    known[key] = value
