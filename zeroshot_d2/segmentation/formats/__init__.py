"""Segmentations as the annotation tools read them, a file per family.

A format is a class of :data:`FORMATS`, which ``predict --format`` names; what it does with one result is a function of its
module, for use from Python:

    coco            COCO instances: connected regions in run lengths
    coco-panoptic   COCO panoptic: a PNG of segments, and JSON
    label-studio    pre-annotations for Label Studio, with brushes
    cvat            "Segmentation mask 1.1" of CVAT

:func:`zeroshot_d2.segmentation.formats.detections.to_supervision` makes ``supervision.Detections``.
"""

from __future__ import annotations

from .base import Format
from .coco import CocoFormat
from .coco_panoptic import CocoPanopticFormat
from .cvat import CvatFormat
from .label_studio import LabelStudioFormat

FORMATS: dict[str, type[Format]] = {
    "coco": CocoFormat,
    "coco-panoptic": CocoPanopticFormat,
    "label-studio": LabelStudioFormat,
    "cvat": CvatFormat,
}
