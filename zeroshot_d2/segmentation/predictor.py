"""Segmentation for people: what a predictor returns, and the predictor of any system of the task.

Shapes: Q proposals, K classes of the vocabulary, (H, W) an image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..class_split import ClassSplit, comparable
from ..images import ImageArray
from ..predictor import Predictor
from .mapper import test_resize

OTHER = "other"
"""The class of pixels of which the model is not sure enough."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a model makes of one image.

    Args:
        vocabulary: the K classes that it chose among; its ``unseen`` are those that it was not trained on.
        labels: (H, W) int64, vocabulary indices.
        confidence: (H, W) float32 in [0, 1], how much of what the model found at a pixel speaks for that class: its score,
            divided by what a model says to divide it by ("sem_seg_coverage") where its scores can exceed 1.
        scores: (K, H, W), the scores of all classes, as the model gives them; None unless asked for.
        proposals: what a system with proposals returns about them; None unless asked for.
    """

    vocabulary: ClassSplit
    labels: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]
    scores: Tensor | None = None
    proposals: dict[str, Tensor | None] | None = None

    def classes(self) -> list[dict[str, Any]]:
        """The classes present, largest first: ``index``, ``name``, ``unseen``, ``pixels``, ``area`` (share of the image) and
        ``score`` (mean confidence of its pixels)."""
        counts = ClassCounts(self.vocabulary)
        counts.add(self.labels, self.confidence)
        return counts.classes()

    def with_other(self, threshold: float, name: str = OTHER) -> Segmentation:
        """None of these: pixels whose confidence is below ``threshold`` get a further class ``name``, the last one.

        ``scores`` and ``proposals`` stay those of the K classes.

        Raises:
            ValueError: the threshold is not in [0, 1], or the vocabulary has a class of this name.
        """
        vocabulary = with_other(self.vocabulary, threshold, name)
        labels = np.where(self.confidence < threshold, len(self.vocabulary), self.labels)
        return replace(self, vocabulary=vocabulary, labels=labels)


def with_other(vocabulary: ClassSplit, threshold: float, name: str = OTHER) -> ClassSplit:
    """The vocabulary with a further class for pixels whose confidence is below the threshold; it is not unseen.

    Raises:
        ValueError: as :meth:`Segmentation.with_other`.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"the threshold must lie in [0, 1], as confidences do, got {threshold}")
    if comparable(name) in map(comparable, vocabulary.names):
        raise ValueError(f"the vocabulary has a class {name!r} already: give the class of all other pixels another name")
    return ClassSplit(
        (*vocabulary.names, name),
        vocabulary.unseen,
        (*vocabulary.prompts, name),
        (*vocabulary.aliases, ""),
        (*vocabulary.released, name),
    )


class ClassCounts:
    """Adds up what :meth:`Segmentation.classes` says, over parts of an image."""

    def __init__(self, vocabulary: ClassSplit) -> None:
        self._vocabulary = vocabulary
        self._pixels = np.zeros(len(vocabulary), dtype=np.int64)
        self._sums = np.zeros(len(vocabulary))

    def add(self, labels: npt.NDArray[np.int64], confidence: npt.NDArray[np.float32]) -> None:
        """Labels and confidences of some pixels."""
        count = len(self._vocabulary)
        self._pixels += np.bincount(labels.ravel(), minlength=count)
        self._sums += np.bincount(labels.ravel(), weights=confidence.ravel(), minlength=count)

    def classes(self) -> list[dict[str, Any]]:
        """As :meth:`Segmentation.classes`."""
        unseen, pixels = self._vocabulary.unseen_mask, self._pixels
        return [
            {
                "index": int(k),
                "name": self._vocabulary.names[k],
                "unseen": bool(unseen[k]),
                "pixels": int(pixels[k]),
                "area": float(pixels[k] / pixels.sum()),
                "score": float(self._sums[k] / pixels[k]),
            }
            for k in np.argsort(-pixels, kind="stable")
            if pixels[k]
        ]


class SegmentationPredictor(Predictor[Segmentation]):
    """Calls take ``scores=True`` for the scores of all classes, K times as much memory as the label map's."""

    options: ClassVar[tuple[str, ...]] = ("scores",)

    def __init__(self, cfg: CfgNode, batch_size: int | None = None) -> None:
        super().__init__(cfg, batch_size)
        self._resize = test_resize(cfg)

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
    """A model's output for one image as a :class:`Segmentation`, with its scores where they are wanted and there.

    Scores of a model that says nothing about its confidence are cut to [0, 1]; labels without scores have confidence 1.
    """
    all_scores = output.get("sem_seg")
    if all_scores is None:
        labels, confidence = output["sem_seg_labels"], output.get("sem_seg_confidence")
        confidence = torch.ones_like(labels, dtype=torch.float32) if confidence is None else confidence
    else:
        best, labels = all_scores.max(dim=0)
        confidence = (best / output.get("sem_seg_coverage", 1)).clamp(0, 1)
    return Segmentation(
        vocabulary,
        labels.cpu().numpy(),
        confidence.float().cpu().numpy(),
        all_scores if scores else None,
        output.get("proposals"),
    )
