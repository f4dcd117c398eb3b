"""From proposals to a segmentation: the one classification path, score correction (Sec. 3.3), and what a model returns.

Shapes: N images, Q proposals, K classes, D embedding, (h, w) the masks' grid, (H, W) the output. ``...`` stands for no
dimension or for N: one image and a batch take the same path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from detectron2.config import CfgNode, configurable
from fvcore.common.registry import Registry
from torch import Tensor

from alignzeg_d2.modeling.gepc.classifier import ProposalClassifier
from alignzeg_d2.modeling.pbc import ClassIndicator, correct_bias
from alignzeg_d2.semantic_inference import PlacedProposals, best_classes, cropped_masks, semantic_scores
from zeroshot_d2.segmentation.looks import Place

POSTPROCESSOR_REGISTRY = Registry("POSTPROCESSOR")
POSTPROCESSOR_REGISTRY.__doc__ = """
Score corrections: ``@configurable`` classes built as ``postprocessor(cfg)``, see :class:`Postprocessor`.
"""


class Postprocessor(Protocol):
    """A score correction. ``uses_class_indicator`` decides whether the model trains a class indicator for it."""

    uses_class_indicator: bool

    def __call__(self, logits: Tensor, class_indicator: Tensor | None, seen: Tensor) -> Tensor:
        """P (..., Q, K + 1), the class indicator I (..., Q) or None, and which classes are seen (K,) -> corrected logits."""
        ...


@POSTPROCESSOR_REGISTRY.register()
class NoCorrection:
    """Leaves the scores as they are; a model with it has no class indicator."""

    uses_class_indicator = False

    @configurable
    def __init__(self) -> None:
        pass

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {}

    def __call__(self, logits: Tensor, class_indicator: Tensor | None, seen: Tensor) -> Tensor:
        return logits


@POSTPROCESSOR_REGISTRY.register()
class PBC:
    """Predictive Bias Correction, Eq. 7."""

    uses_class_indicator = True

    @configurable
    def __init__(self, *, gamma: float) -> None:
        """``gamma`` is the threshold on the class indicator."""
        self.gamma = gamma

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"gamma": cfg.MODEL.ALIGNZEG.PBC.GAMMA}

    def __call__(self, logits: Tensor, class_indicator: Tensor | None, seen: Tensor) -> Tensor:
        if class_indicator is None:
            raise ValueError(
                "PBC needs a class indicator, and this model has none: train with MODEL.ALIGNZEG.PBC.POSTPROCESSOR PBC"
            )
        return correct_bias(logits, class_indicator, seen, self.gamma)


# ---------------------------------------------------------------------------------------------------- classification
@dataclass(frozen=True)
class Classification:
    """What the network says about the classes of its proposals, uncorrected.

    Args:
        features: F_cls (..., Q, D), unit length.
        class_logits: P (..., Q, K + 1), the background last.
        indicator_logits: logits of the class indicator I (..., Q); None for a model without one.
    """

    features: Tensor
    class_logits: Tensor
    indicator_logits: Tensor | None

    @property
    def class_indicator(self) -> Tensor | None:
        """I (..., Q) in [0, 1]."""
        return None if self.indicator_logits is None else self.indicator_logits.float().sigmoid()


def classify(
    features: Tensor, prototypes: Tensor, classifier: ProposalClassifier, class_indicator: ClassIndicator | None
) -> Classification:
    """Proposal features F (..., Q, D) and text prototypes T (K, D) -> their :class:`Classification` (Sec. 3.2, Eq. 5)."""
    refined = classifier.refine(features)
    return Classification(
        refined, classifier(refined, prototypes), None if class_indicator is None else class_indicator(features)
    )


def class_probabilities(logits: Tensor, *, background_in_softmax: bool = True) -> Tensor:
    """P (..., Q, K + 1) -> (..., Q, K). "The background score is not considered" (Sec. 4.2): it is dropped after the
    softmax, so that background proposals weigh little, or before it."""
    if background_in_softmax:
        return logits.softmax(dim=-1)[..., :-1]
    return logits[..., :-1].softmax(dim=-1)


def correct(
    logits: Tensor,
    class_indicator: Tensor | None,
    seen: Tensor,
    postprocessor: Postprocessor,
    *,
    background_in_softmax: bool,
) -> tuple[Tensor, Tensor]:
    """Eq. 7 and the softmax behind it.

    Args:
        logits: P (..., Q, K + 1).
        class_indicator: I (..., Q), or None.
        seen: (K,) bool.
        postprocessor: the correction.
        background_in_softmax: as for :func:`class_probabilities`.

    Returns:
        corrected logits (..., Q, K + 1) and class probabilities (..., Q, K).
    """
    corrected = postprocessor(logits, class_indicator, seen)
    return corrected, class_probabilities(corrected, background_in_softmax=background_in_softmax)


# ---------------------------------------------------------------------------------------------------------- output
@dataclass(frozen=True, eq=False)
class Seen:
    """What the network made of one window of an image, whatever the vocabulary.

    Args:
        image: (3, H, W), normalised, the window alone.
        features: F (Q, D).
        mask_logits: M (Q, h, w), covering the padded window.
        padded_size: height and width with padding.
        place: which window.
    """

    image: Tensor
    features: Tensor
    mask_logits: Tensor
    padded_size: tuple[int, int]
    place: Place

    @property
    def region(self) -> tuple[float, float]:
        """The part of the masks' grid that the window covers, in cells from the upper left."""
        (height, width), (padded_height, padded_width) = self.image.shape[-2:], self.padded_size
        return self.mask_logits.shape[-2] * height / padded_height, self.mask_logits.shape[-1] * width / padded_width


@dataclass(frozen=True, eq=False)
class Classified:
    """The proposals of one window with their classes.

    Args:
        found: uncorrected.
        corrected_logits: (Q, K + 1), after the score correction.
        placed: what semantic inference takes.
    """

    found: Classification
    corrected_logits: Tensor
    placed: PlacedProposals

    def proposals(self) -> dict[str, Tensor | None]:
        """The entry "proposals" of a model's output."""
        return {
            "mask_logits": cropped_masks(self.placed.mask_logits, self.placed.region),
            "class_logits": self.found.class_logits.float(),
            "corrected_logits": self.corrected_logits,
            "class_indicator": self.found.class_indicator,
            "features": self.found.features.float(),
        }


def output_of(
    found: Sequence[PlacedProposals], output: str, *, output_size: tuple[int, int], chunk_pixels: int
) -> dict[str, Tensor]:
    """Semantic inference: the entries of a model's output, see
    :meth:`alignzeg_d2.proposal_segmenter.ProposalSegmenter.inference`.

    Args:
        found: the proposals of all windows.
        output: "scores" or "labels".
        output_size: (H, W).
        chunk_pixels: as for :func:`alignzeg_d2.semantic_inference.semantic_scores`.
    """
    if output == "scores":
        scores, coverage = semantic_scores(found, output_size=output_size, chunk_pixels=chunk_pixels)
        return {"sem_seg": scores, "sem_seg_coverage": coverage}
    best = best_classes(found, output_size=output_size, chunk_pixels=chunk_pixels)
    return {"sem_seg_labels": best.labels, "sem_seg_confidence": best.confidence}


def of_scores(scores: Tensor, coverage: Tensor, output: str) -> dict[str, Tensor]:
    """Scores (K, H, W) and coverage (H, W) as what :func:`output_of` returns for ``output``."""
    if output == "scores":
        return {"sem_seg": scores, "sem_seg_coverage": coverage}
    best, labels = scores.max(dim=0)
    return {"sem_seg_labels": labels, "sem_seg_confidence": (best / coverage).clamp(0, 1)}
