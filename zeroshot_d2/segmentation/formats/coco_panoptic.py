"""COCO panoptic: a PNG of segment ids for each image, and one JSON file.

    coco_panoptic/panoptic.json   images, annotations with their segments, and categories; "score" beside COCO's own keys
    coco_panoptic/panoptic/       a PNG per image, whose colour (R, G, B) is the segment id R + 256 G + 65536 B

A segmentation knows no objects: every class is stuff ("isthing": 0) and is one segment, whose id is the category's. Pixels
without a class have the id 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ...images import ImageArray, write_image
from ...json_stream import write_json_arrays
from ..predictor import Segmentation
from ..regions import class_regions
from .base import Entry, Format, rounded, stem_of
from .coco import coco_categories, coco_images


def panoptic_segments(found: Segmentation) -> tuple[npt.NDArray[np.int64], list[dict[str, Any]]]:
    """The segment id of each pixel (H, W), and COCO's ``segments_info``."""
    ids = np.where((found.labels >= 0) & (found.labels < len(found.vocabulary)), found.labels + 1, 0)
    segments = [
        {
            "id": region.index + 1,
            "category_id": region.index + 1,
            "area": region.area,
            "bbox": list(region.box),
            "iscrowd": 0,
            "score": rounded(region.score),
        }
        for region in class_regions(found)
    ]
    return ids, segments


def id_colors(ids: npt.NDArray[np.int64]) -> ImageArray:
    """Ids (H, W) below 2^24 as colours (H, W, 3)."""
    return np.stack([ids & 255, (ids >> 8) & 255, ids >> 16], axis=2).astype(np.uint8)


class CocoPanopticFormat(Format):
    """See the top of the file."""

    file_of_each = "panoptic/{stem}.png"

    def image(self, file_name: str, found: Segmentation) -> dict[str, Any]:
        ids, segments = panoptic_segments(found)
        path = self.path_of(file_name)
        assert path is not None
        write_image(path, id_colors(ids))
        return {"segments_info": segments}

    def collect(self, entries: Callable[[], Iterator[Entry]]) -> None:
        def annotations() -> Iterator[dict[str, Any]]:
            for image, entry in enumerate(entries(), start=1):
                name = f"{stem_of(entry['file_name'])}.png"
                yield {"image_id": image, "file_name": name, "segments_info": entry["segments_info"]}

        categories = coco_categories(self.vocabulary)
        content = {
            "info": {"description": f"predictions of {self.settings.model}"},
            "licenses": [],
            "categories": [
                {**category, "isthing": 0, "color": list(color)}
                for category, color in zip(categories, self.settings.colors, strict=True)
            ],
            "images": coco_images(entries()),
            "annotations": annotations(),
        }
        write_json_arrays(self.folder / "panoptic.json", content)
