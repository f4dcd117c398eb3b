"""Segmentation for people: what a predictor returns, and the predictor of any system of the task.

Shapes: Q proposals, K classes of the vocabulary, (H, W) an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..class_split import ClassSplit
from ..images import ImageArray
from ..predictor import Predictor
from .mapper import ShortestEdge


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a model makes of one image.

    Args:
        vocabulary: the K classes that it chose among; its ``unseen`` are those that it was not trained on.
        labels: (H, W) int64, vocabulary indices.
        best: (H, W) float32, the score of that class.
        scores: (K, H, W), the scores of all classes; None unless asked for.
        proposals: what a system with proposals returns about them; None unless asked for.
    """

    vocabulary: ClassSplit
    labels: npt.NDArray[np.int64]
    best: npt.NDArray[np.float32]
    scores: Tensor | None = None
    proposals: dict[str, Tensor | None] | None = None

    def classes(self) -> list[dict[str, Any]]:
        """The classes present, largest first: ``index``, ``name``, ``unseen``, ``pixels``, ``area`` (share of the image) and
        ``score`` (mean of its pixels' scores)."""
        pixels = np.bincount(self.labels.ravel(), minlength=len(self.vocabulary))
        sums = np.bincount(self.labels.ravel(), weights=self.best.ravel(), minlength=len(self.vocabulary))
        unseen = self.vocabulary.unseen_mask
        return [
            {
                "index": int(k),
                "name": self.vocabulary.names[k],
                "unseen": bool(unseen[k]),
                "pixels": int(pixels[k]),
                "area": float(pixels[k] / self.labels.size),
                "score": float(sums[k] / pixels[k]),
            }
            for k in np.argsort(-pixels, kind="stable")
            if pixels[k]
        ]


class SegmentationPredictor(Predictor[Segmentation]):
    """Calls take ``scores=True`` for the scores of all classes, K times as much memory as the label map's."""

    options: ClassVar[tuple[str, ...]] = ("scores",)

    def __init__(self, cfg: CfgNode, batch_size: int | None = None) -> None:
        super().__init__(cfg, batch_size)
        self._resize = ShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    def model_input(self, image: ImageArray) -> dict[str, Any]:
        """BGR (H, W, 3) -> ``image`` (3, h, w) float in the model's channel order and test size, ``height``, ``width``."""
        height, width = image.shape[:2]
        ordered = image[:, :, ::-1] if self.cfg.INPUT.FORMAT == "RGB" else image
        resized = self._resize.get_transform(ordered).apply_image(ordered)
        return {
            "image": torch.from_numpy(resized.astype(np.float32).transpose(2, 0, 1)),
            "height": height,
            "width": width,
        }

    def results(self, inputs: list[dict[str, Any]], vocabulary: ClassSplit, wanted: frozenset[str]) -> list[Segmentation]:
        return [segmentation_of(output, vocabulary, scores="scores" in wanted) for output in self.model(inputs)]


def segmentation_of(output: dict[str, Any], vocabulary: ClassSplit, *, scores: bool) -> Segmentation:
    """A model's output for one image as a :class:`Segmentation`, with its scores where they are wanted and there."""
    all_scores = output.get("sem_seg")
    if all_scores is None:
        labels, best = output["sem_seg_labels"], output.get("sem_seg_best")
        best = torch.ones_like(labels, dtype=torch.float32) if best is None else best
    else:
        best, labels = all_scores.max(dim=0)
    return Segmentation(
        vocabulary,
        labels.cpu().numpy(),
        best.float().cpu().numpy(),
        all_scores if scores else None,
        output.get("proposals"),
    )
