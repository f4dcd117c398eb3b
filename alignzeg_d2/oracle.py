"""How good the proposals alone are: evaluation in which each gets its class from the ground truth (Table 6).

Shapes: Q proposals, K classes, (h, w) the masks' grid, (H, W) the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from zeroshot_d2.segmentation.evaluation import ZeroShotSemSegEvaluator

# Masks brought to full size at a time: 8 masks of a 12-megapixel photo take 0.4 GB.
_MASKS_PER_CHUNK = 8


class OracleEvaluator(ZeroShotSemSegEvaluator):
    """How good the proposals alone are (Table 6): every proposal is given its ground-truth class.

    Needs ``output["proposals"]["mask_logits"]`` (Q, h, w), cropped to the image, which the model returns when
    ``MODEL.ALIGNZEG.TEST.RETURN_PROPOSALS`` is set. The class of a proposal is the one with the largest soft
    overlap, that is the sum of the mask's probabilities over the labelled pixels of the class; then semantic
    inference runs with one-hot class scores.
    """

    protocol_suffix = " (oracle)"

    def _prediction(self, output: Mapping[str, Any], truth: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if "mask_logits" not in (output.get("proposals") or {}):
            raise ValueError(
                "the oracle protocol needs output['proposals']['mask_logits']: set MODEL.ALIGNZEG.TEST.RETURN_PROPOSALS True"
                ", and TEST.SLIDE.ENABLED and TEST.AUG.ENABLED False"
            )
        return oracle_prediction(output["proposals"]["mask_logits"], truth, self._num_classes)


def masks_at(mask_logits: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Mask probabilities (<= 8, H, W) at full size, a few proposals at a time, in order."""
    for chunk in mask_logits.split(_MASKS_PER_CHUNK):
        yield F.interpolate(chunk[None].float(), size=size, mode="bilinear", align_corners=False)[0].sigmoid()


@torch.no_grad()
def oracle_prediction(mask_logits: Tensor, truth: npt.NDArray[np.int64], num_classes: int) -> npt.NDArray[np.int64]:
    """Semantic inference with ground-truth classes for the proposals (Table 6).

    Args:
        mask_logits: (Q, h, w), covering exactly the image.
        truth: (H, W) vocabulary indices, ``num_classes`` where ignored.
        num_classes: K.

    Returns:
        (H, W) vocabulary indices; K ("no prediction") everywhere if no pixel is labelled.
    """
    height, width = truth.shape
    labels = torch.from_numpy(truth).to(mask_logits.device)
    present = torch.unique(labels)
    present = present[present < num_classes]
    if present.numel() == 0:
        return np.full_like(truth, num_classes)
    regions = (labels == present[:, None, None]).float()  # (C, H, W), C classes in the image

    scores = torch.zeros_like(regions)
    for masks in masks_at(mask_logits, (height, width)):
        overlap = masks.flatten(1) @ regions.flatten(1).T  # (<= 8, C)
        scores.index_add_(0, overlap.argmax(dim=1), masks)
    return present[scores.argmax(dim=0)].cpu().numpy()
