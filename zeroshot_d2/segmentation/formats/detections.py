"""Segmentations as ``supervision.Detections``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..predictor import Segmentation
from ..regions import class_regions, connected_regions

if TYPE_CHECKING:
    import supervision


def to_supervision(found: Segmentation, min_area: int = 1, *, connected: bool = True) -> supervision.Detections:
    """``supervision.Detections`` with masks, for supervision's annotators, filters and sinks.

    Args:
        found: the segmentation.
        min_area: pixels that a detection must have; smaller ones are left out.
        connected: a detection for each connected region; False: for each class.

    Returns:
        N detections: ``mask`` (N, H, W), ``xyxy`` as supervision makes it from the masks, ``class_id`` (vocabulary
        indices), ``confidence`` (mean score of the class over the pixels), and the names as ``data["class_name"]``.

    Raises:
        ModuleNotFoundError: supervision is not installed.
    """
    try:
        import supervision
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; install it: pip install supervision", name=error.name) from error
    if connected:
        regions = connected_regions(found, min_area)
    else:
        regions = [region for region in class_regions(found) if region.area >= min_area]
    if not regions:
        return supervision.Detections.empty()
    masks = np.stack([region.mask() for region in regions])
    return supervision.Detections(
        xyxy=supervision.mask_to_xyxy(masks).astype(np.float32),
        mask=masks,
        confidence=np.array([region.score for region in regions], dtype=np.float32),
        class_id=np.array([region.index for region in regions]),
        data={"class_name": np.array([found.vocabulary.names[region.index] for region in regions])},
    )
