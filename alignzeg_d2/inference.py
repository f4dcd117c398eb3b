"""From proposals to a segmentation: the one classification path, score correction (Sec. 3.3) and semantic inference.

Shapes: N images, Q proposals, K classes, D embedding, (h, w) the masks' grid, (H, W) the output. ``...`` stands for no
dimension or for N: one image and a batch take the same path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
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

# Side in pixels of the tiles in which labels are decided. At 640 pixels it is a cell of the masks' grid, beyond which masks
# vary too much to rule out many classes.
_TILE = 16
_TILED_DEVICES = ("cpu",)


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
    """The best class of every pixel and its score, as :func:`semantic_scores` gives them but without computing all scores.

    Returns:
        labels (H, W) long and scores (H, W). Of equal scores the first class wins.
    """
    labels = torch.empty(output_size, dtype=torch.long, device=mask_logits.device)
    best = probabilities.new_empty(output_size)
    by_class = probabilities.T.contiguous()
    for rows, masks in upsampled_strips(mask_logits, region, output_size, chunk_pixels):
        for (down, across), classes in _contenders(probabilities, masks.sigmoid_()):
            tile = masks[:, down, across]
            highest, index = torch.mm(by_class[classes], tile.flatten(1)).max(dim=0)
            labels[rows][down, across] = classes[index].view(tile.shape[1:])
            best[rows][down, across] = highest.view(tile.shape[1:])
    return labels, best


def _contenders(probabilities: Tensor, masks: Tensor) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """Tiles of a strip, each with the classes, in rising order, that may be the best of one of its pixels.

    Within a small tile few classes can win, often one in a hundred, and the scores of the others need not be computed.
    Let lowest(q) and highest(q) be the extremes of mask q in a tile, and r the *rival*: the class with the best lower bound
    sum_q p(q, r) lowest(q). At every pixel class k leads r by

        sum_q (p(q, k) - p(q, r)) mask(q)  <=  sum_q (p(q, k) - p(q, r)) middle(q) + |p(q, k) - p(q, r)| reach(q)

    where middle and reach are half the sum and half the difference of the extremes. If the right side is negative, k never
    wins. It must be negative by more than the rounding, so that k does not win by a rounded score either.

    On other devices than a CPU, starting kernels for each tile takes longer than the arithmetic that it saves.

    Args:
        probabilities: (Q, K), none below 0.
        masks: (Q, strip, W), none below 0.
    """
    if masks.device.type not in _TILED_DEVICES:
        yield (slice(None), slice(None)), torch.arange(probabilities.shape[1], device=masks.device)
        return
    lowest, highest = (_of_tiles(masks, extreme) for extreme in (torch.amin, torch.amax))  # (T, Q), T tiles
    lower, upper = lowest @ probabilities, highest @ probabilities  # (T, K)
    middle, reach = (upper + lower) / 2, (highest - lowest) / 2
    # A sum of Q terms is off by at most Q/2 steps of its size. Two scores and the bound, which has two more sums, are off by
    # less than 1.25 Q + 3 steps of both scores together. Below the smallest normal number a product may become 0.
    number, steps = torch.finfo(upper.dtype), 2 * (len(probabilities) + 4)
    rivals = lower.argmax(dim=1)
    possible = torch.empty_like(upper, dtype=torch.bool)
    for rival in rivals.unique():  # the tiles of one rival share |p(q, k) - p(q, r)|
        tiles = rivals == rival
        lead = middle[tiles] - middle[tiles, rival, None]
        lead += reach[tiles] @ (probabilities - probabilities[:, rival, None]).abs()
        rounding = steps * (number.eps * (upper[tiles] + upper[tiles, rival, None]) + 4 * number.tiny)
        possible[tiles] = ~(lead < -rounding)  # written so that NaN leaves a class in
    corners = product(*(range(0, size, _TILE) for size in masks.shape[1:]))
    found = possible.nonzero()[:, 1].split(possible.sum(dim=1).tolist())
    for (top, left), classes in zip(corners, found, strict=True):
        yield (slice(top, top + _TILE), slice(left, left + _TILE)), classes


def _of_tiles(masks: Tensor, extreme: Callable[..., Tensor]) -> Tensor:
    """``torch.amin`` or ``torch.amax`` of masks (Q, strip, W) within each tile, row by row -> (T, Q)."""
    rows = torch.stack([extreme(band, dim=1) for band in masks.split(_TILE, dim=1)])
    return torch.stack([extreme(block, dim=2) for block in rows.split(_TILE, dim=2)], dim=1).flatten(0, 1)


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
