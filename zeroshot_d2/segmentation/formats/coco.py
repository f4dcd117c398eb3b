"""COCO instances: the connected regions of each class, as run lengths.

    coco/annotations.json   images, annotations and categories; "score" beside COCO's own keys

Category ids are vocabulary indices plus 1, since many programs take 0 as background.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

from ...class_split import ClassSplit
from ...cli import positive
from ...json_stream import write_json_arrays
from ..predictor import Segmentation
from ..regions import connected_regions
from .base import Entry, Format, rounded


def coco_annotations(found: Segmentation, min_area: int = 1) -> list[dict[str, Any]]:
    """COCO's annotations of an image, without ``id`` and ``image_id``.

    Args:
        found: the segmentation.
        min_area: pixels that a region must have; smaller ones are left out.
    """
    return [
        {
            "category_id": region.index + 1,
            "segmentation": region.run_lengths(),
            "area": region.area,
            "bbox": list(region.box),
            "iscrowd": 0,
            "score": rounded(region.score),
        }
        for region in connected_regions(found, min_area)
    ]


def coco_categories(vocabulary: ClassSplit) -> list[dict[str, Any]]:
    """COCO's categories of a vocabulary."""
    return [{"id": k, "name": name, "supercategory": name} for k, name in enumerate(vocabulary.names, start=1)]


def coco_images(entries: Iterator[Entry]) -> Iterator[dict[str, Any]]:
    """COCO's images, numbered from 1."""
    for number, entry in enumerate(entries, start=1):
        yield {"id": number, **{key: entry[key] for key in ("file_name", "width", "height")}}


class CocoFormat(Format):
    """See the top of the file."""

    options = ("min_area",)

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--min-area",
            type=positive,
            metavar="PIXELS",
            help="of --format coco: leave out connected regions with fewer pixels; default: none",
        )

    def image(self, file_name: str, found: Segmentation) -> dict[str, Any]:
        return {"annotations": coco_annotations(found, self.settings.args.min_area or 1)}

    def collect(self, entries: Callable[[], Iterator[Entry]]) -> None:
        def annotations() -> Iterator[dict[str, Any]]:
            number = 0
            for image, entry in enumerate(entries(), start=1):
                for annotation in entry["annotations"]:
                    number += 1
                    yield {"id": number, "image_id": image, **annotation}

        content = {
            "info": {"description": f"predictions of {self.settings.model}"},
            "licenses": [],
            "categories": coco_categories(self.vocabulary),
            "images": coco_images(entries()),
            "annotations": annotations(),
        }
        write_json_arrays(self.folder / "annotations.json", content)
