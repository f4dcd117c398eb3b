"""From proposals to a segmentation: the one classification path, score correction (Sec. 3.3) and semantic inference.

Shapes: N images, Q proposals, K classes, D embedding, (h, w) the masks' grid, (H, W) the output. ``...`` stands for no
dimension or for N: one image and a batch take the same path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from detectron2.config import CfgNode, configurable
from fvcore.common.registry import Registry
from torch import Tensor

from alignzeg_d2.modeling.gepc.classifier import ProposalClassifier
from alignzeg_d2.modeling.pbc import ClassIndicator, correct_bias

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


# ------------------------------------------------------------------------------------------------ semantic inference
def segment(
    found: Classification,
    mask_logits: Tensor,
    *,
    seen: Tensor,
    postprocessor: Postprocessor,
    background_in_softmax: bool,
    image_size: tuple[int, int],
    padded_size: tuple[int, int],
    output_size: tuple[int, int],
    chunk_pixels: int,
    output: str,
    with_proposals: bool,
    reweigh: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Any]:
    """The output of one image; see :meth:`alignzeg_d2.proposal_segmenter.ProposalSegmenter.inference` for its entries.

    Args:
        found: of its Q proposals.
        mask_logits: (Q, h, w), covering the padded image.
        seen: (K,) bool, the classes that the model was trained on.
        postprocessor: the score correction.
        background_in_softmax: as for :func:`class_probabilities`.
        image_size, padded_size: heights and widths that the network saw.
        output_size: (H, W).
        chunk_pixels: as for :func:`semantic_scores`.
        output: "scores" or "labels".
        with_proposals: whether to return them.
        reweigh: what another classifier makes of the class probabilities (Q, K).
    """
    logits, indicator = found.class_logits.float(), found.class_indicator
    corrected, probabilities = correct(logits, indicator, seen, postprocessor, background_in_softmax=background_in_softmax)
    if reweigh is not None:
        probabilities = reweigh(probabilities)
    region = (
        mask_logits.shape[-2] * image_size[0] / padded_size[0],
        mask_logits.shape[-1] * image_size[1] / padded_size[1],
    )
    where: dict[str, Any] = {"region": region, "output_size": output_size, "chunk_pixels": chunk_pixels}
    result: dict[str, Any] = {}
    if output == "scores":
        result["sem_seg"] = semantic_scores(probabilities, mask_logits, **where)
    else:
        result["sem_seg_labels"], result["sem_seg_best"] = best_classes(probabilities, mask_logits, **where)
    if with_proposals:
        cells = (max(1, round(region[0])), max(1, round(region[1])))
        ((_, masks),) = upsampled_strips(mask_logits, region, cells, chunk_pixels=cells[0] * cells[1])
        result["proposals"] = {
            "mask_logits": masks,
            "class_logits": logits,
            "corrected_logits": corrected,
            "class_indicator": indicator,
            "features": found.features.float(),
        }
    return result


def of_scores(scores: Tensor, output: str) -> dict[str, Tensor]:
    """Scores (K, H, W) as what :func:`segment` returns for ``output``."""
    if output == "scores":
        return {"sem_seg": scores}
    best, labels = scores.max(dim=0)
    return {"sem_seg_labels": labels, "sem_seg_best": best}


def semantic_scores(
    probabilities: Tensor,
    mask_logits: Tensor,
    *,
    region: tuple[float, float],
    output_size: tuple[int, int],
    chunk_pixels: int,
) -> Tensor:
    """Scores of all classes at every pixel: sum over proposals of class probability times mask.

    Args:
        probabilities: (Q, K).
        mask_logits: (Q, h, w).
        region: the part of the grid that the image covers, in cells from the upper left (the rest is padding).
        output_size: (H, W).
        chunk_pixels: pixels handled at once; bounds the memory beyond the result to about 12 Q chunk_pixels bytes.

    Returns:
        (K, H, W).
    """
    scores = probabilities.new_empty(probabilities.shape[1], *output_size)
    flat, width = scores.flatten(1), output_size[1]
    for rows, masks in upsampled_strips(mask_logits, region, output_size, chunk_pixels):
        flat[:, rows.start * width : rows.stop * width] = probabilities.T @ masks.sigmoid_().flatten(1)
    return scores


def best_classes(
    probabilities: Tensor,
    mask_logits: Tensor,
    *,
    region: tuple[float, float],
    output_size: tuple[int, int],
    chunk_pixels: int,
) -> tuple[Tensor, Tensor]:
    """The best class of every pixel and its score, as :func:`semantic_scores` but without ever holding all scores.

    Returns:
        labels (H, W) long and scores (H, W).
    """
    labels = torch.empty(output_size, dtype=torch.long, device=mask_logits.device)
    best = probabilities.new_empty(output_size)
    for rows, masks in upsampled_strips(mask_logits, region, output_size, chunk_pixels):
        scores = torch.mm(probabilities.T, masks.sigmoid_().flatten(1)).unflatten(1, masks.shape[1:])
        labels[rows] = scores.argmax(dim=0)
        best[rows] = scores.gather(0, labels[rows][None])[0]
    return labels, best


def upsampled_strips(
    mask_logits: Tensor, region: tuple[float, float], output_size: tuple[int, int], chunk_pixels: int
) -> Iterator[tuple[slice, Tensor]]:
    """Bilinear upsampling (``align_corners=False``) of part of a grid, a strip of output rows at a time.

    Yields:
        the rows of the strip and its masks (Q, strip, W).
    """
    height, width = output_size
    left, right, weight = _interpolation(mask_logits.shape[-1], region[1], width, mask_logits.device)
    # Along the rows as one product with a (w, W) matrix: for many columns that is faster than gathering neighbours.
    across = mask_logits.new_zeros(mask_logits.shape[-1], width)
    columns = torch.arange(width, device=mask_logits.device)
    across[left, columns] += 1 - weight
    across[right, columns] += weight
    above, below, down = _interpolation(mask_logits.shape[-2], region[0], height, mask_logits.device)
    step = max(1, chunk_pixels // width)
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        strip = torch.lerp(mask_logits[:, above[rows]], mask_logits[:, below[rows]], down[rows, None])
        yield rows, strip @ across


def _interpolation(cells: int, covered: float, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Neighbours and weight of ``size`` output positions spread over the first ``covered`` of ``cells`` grid cells."""
    position = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (covered / size) - 0.5
    position = position.clamp(0, cells - 1)
    lower = position.floor().long()
    return lower, (lower + 1).clamp(max=cells - 1), position - lower
