"""From proposals to a segmentation: score correction (Sec. 3.3) and semantic inference, in bounded memory.

Shapes: Q proposals, K classes, (h, w) the masks' grid, (H, W) the output.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from fvcore.common.registry import Registry
from torch import Tensor

from alignzeg_d2.modeling.pbc import correct_bias

POSTPROCESSOR_REGISTRY = Registry("POSTPROCESSOR")
POSTPROCESSOR_REGISTRY.__doc__ = """
Score corrections: classes built as ``postprocessor(gamma=...)``, called with the logits P (Q, K + 1), the class indicator
I (Q,) or None, and which classes are seen (K,); they return corrected logits (Q, K + 1). The exported model calls them
with a batch: P (N, Q, K + 1) and I (N, Q).
"""


@POSTPROCESSOR_REGISTRY.register()
class NoCorrection:
    """Leaves the scores as they are."""

    def __init__(self, *, gamma: float) -> None:
        del gamma  # part of the interface; there is no threshold here

    def __call__(self, logits: Tensor, class_indicator: Tensor | None, seen: Tensor) -> Tensor:
        return logits


@POSTPROCESSOR_REGISTRY.register()
class PBC:
    """Predictive Bias Correction, Eq. 7."""

    def __init__(self, *, gamma: float) -> None:
        """``gamma`` is the threshold on the class indicator."""
        self.gamma = gamma

    def __call__(self, logits: Tensor, class_indicator: Tensor | None, seen: Tensor) -> Tensor:
        if class_indicator is None:
            raise ValueError("PBC needs a class indicator: train with MODEL.ALIGNZEG.PBC.ENABLED, or use NoCorrection")
        return correct_bias(logits, class_indicator, seen, self.gamma)


def class_probabilities(logits: Tensor, *, background_in_softmax: bool = True) -> Tensor:
    """P (..., Q, K + 1) -> (..., Q, K). "The background score is not considered" (Sec. 4.2): it is dropped after the
    softmax, so that background proposals weigh little, or before it."""
    if background_in_softmax:
        return logits.softmax(dim=-1)[..., :-1]
    return logits[..., :-1].softmax(dim=-1)


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
        # straight into the result: the scores are by far the largest tensor here, and a copy would cost as much as the sum
        torch.mm(probabilities.T, masks.sigmoid_().flatten(1), out=flat[:, rows.start * width : rows.stop * width])
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
