"""Tags for people: what a predictor returns, and the predictor of any system of the task.

Shapes: K classes of the vocabulary, G groups, (h, w) a grid of patches, S side of the model's square, (H, W) an
image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms.v2 import functional as transforms

from ..class_split import ClassSplit
from ..images import ImageArray
from ..predictor import Predictor

Threshold = float | npt.NDArray[np.float64] | None


@dataclass(frozen=True, eq=False)
class Tags:
    """What a model makes of one image.

    Args:
        vocabulary: the K classes that it ranked; its ``unseen`` are those that it was not trained on.
        scores: (K,) float32. They rank classes and are no probabilities.
        attention: what a system returns about where it looked, as arrays; None unless asked for.
    """

    vocabulary: ClassSplit
    scores: npt.NDArray[np.float32]
    attention: Mapping[str, npt.NDArray[Any]] | None = None

    def classes(self, top_k: int | None = None, threshold: Threshold = None) -> list[dict[str, Any]]:
        """The best classes, best first: ``index``, ``name``, ``unseen`` and ``score``.

        Args:
            top_k: how many at most; None: all.
            threshold: the least score, one for all or one for each class (K,); None: no limit.

        Raises:
            ValueError: ``top_k`` is not between 1 and K.
        """
        unseen = self.vocabulary.unseen_mask
        return [
            {"index": k, "name": self.vocabulary.names[k], "unseen": bool(unseen[k]), "score": float(self.scores[k])}
            for k in best_labels(self.scores, len(self.scores) if top_k is None else top_k, threshold)
        ]


def best_labels(scores: npt.NDArray[np.floating[Any]], top_k: int, threshold: Threshold = None) -> list[int]:
    """Indices of the ``top_k`` best scores at or above ``threshold``, best first; equal scores in vocabulary order.

    With a threshold for each class (K,) the best are those that lie highest above their own.

    Raises:
        ValueError: ``top_k`` is not between 1 and the number of scores.
    """
    if not 1 <= top_k <= len(scores):
        raise ValueError(f"top_k must be between 1 and the {len(scores)} classes of the vocabulary, got {top_k}")
    above = scores - threshold if isinstance(threshold, np.ndarray) else scores
    least = np.broadcast_to(-np.inf if threshold is None else threshold, scores.shape)
    order = np.argsort(-above, kind="stable")[:top_k]
    return [int(k) for k in order if threshold is None or scores[k] >= least[k]]


class TagPredictor(Predictor[Tags]):
    """The model of any system of the task."""

    def model_input(self, image: ImageArray) -> dict[str, Any]:
        """BGR (H, W, 3) -> ``image`` (3, S, S) uint8 in the model's channel order, squeezed to a square as in evaluation."""
        ordered = image[:, :, ::-1] if self.cfg.INPUT.FORMAT == "RGB" else image
        photo = torch.from_numpy(np.ascontiguousarray(ordered.transpose(2, 0, 1)))
        return {"image": transforms.resize(photo, [self.cfg.INPUT.IMAGE_SIZE] * 2, antialias=True)}

    def results(self, inputs: list[dict[str, Any]], vocabulary: ClassSplit, wanted: frozenset[str]) -> list[Tags]:
        return [Tags(vocabulary, scores_of(output)) for output in self.model(inputs)]


def scores_of(output: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """The scores (K,) of a model's output for one image, on the CPU."""
    return output["scores"].detach().float().cpu().numpy()
