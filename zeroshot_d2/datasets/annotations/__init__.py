"""What people have drawn in annotation tools, as label images: a file per family of tools.

    labelme       LabelMe's JSON files, one per image
    coco          COCO's JSON: instances, stuff, or any with "images", "annotations" and "categories"
    cvat-images   the annotations.xml of "CVAT for images 1.1"
    cvat-masks    the folder of "Segmentation mask 1.1", which is PASCAL VOC's

Each has a function of the path that returns :class:`Annotations`; :func:`convert` writes the label images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .base import Annotations, Conversion, convert
from .coco import read_coco
from .cvat import read_cvat_images, read_cvat_masks
from .labelme import read_labelme

READERS: dict[str, Callable[[Path], Annotations]] = {
    "labelme": read_labelme,
    "coco": read_coco,
    "cvat-images": read_cvat_images,
    "cvat-masks": read_cvat_masks,
}

__all__ = ["READERS", "Annotations", "Conversion", "convert"]
