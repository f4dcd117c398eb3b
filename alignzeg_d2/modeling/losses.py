"""Mask losses on sampled points (Sec. 3.4, as in Mask2Former), as pure functions.

Shapes: M masks, Q predictions, T targets, P points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dice_loss(logits: Tensor, labels: Tensor, valid: Tensor | None = None) -> Tensor:
    """1 - 2 |A B| / (|A| + |B|) per mask, with one added above and below so that empty masks are defined.

    ``logits``, ``labels`` and ``valid`` (M, P) -> (M,). Points with ``valid`` 0 do not count.
    """
    probabilities = logits.sigmoid()
    if valid is not None:
        probabilities, labels = probabilities * valid, labels * valid
    return 1 - (2 * (probabilities * labels).sum(-1) + 1) / (probabilities.sum(-1) + labels.sum(-1) + 1)


def bce_loss(logits: Tensor, labels: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean binary cross entropy per mask: ``logits``, ``labels`` and ``valid`` (M, P) -> (M,)."""
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    if valid is None:
        return losses.mean(-1)
    return (losses * valid).sum(-1) / valid.sum(-1).clamp(min=1)


def pairwise_dice_cost(logits: Tensor, labels: Tensor, valid: Tensor | None = None) -> Tensor:
    """:func:`dice_loss` of all pairs: ``logits`` (Q, P), ``labels`` (T, P), ``valid`` (P,) -> (Q, T)."""
    probabilities = logits.sigmoid()
    if valid is not None:
        probabilities, labels = probabilities * valid, labels * valid
    overlap = probabilities @ labels.T
    return 1 - (2 * overlap + 1) / (probabilities.sum(-1)[:, None] + labels.sum(-1)[None, :] + 1)


def pairwise_bce_cost(logits: Tensor, labels: Tensor, valid: Tensor | None = None) -> Tensor:
    """:func:`bce_loss` of all pairs: ``logits`` (Q, P), ``labels`` (T, P), ``valid`` (P,) -> (Q, T)."""
    # bce(x, y) = softplus(x) - x y, so two products serve all pairs
    weight = torch.ones_like(logits[0]) if valid is None else valid
    weight = weight / weight.sum().clamp(min=1)
    return (F.softplus(logits) @ weight)[:, None] - (logits * weight) @ labels.T


def dense_points(size: tuple[int, int], device: torch.device) -> Tensor:
    """(1, h * w, 2) centres (x, y) in [0, 1] of all cells of a grid of ``size`` (h, w)."""
    y, x = (((torch.arange(side, dtype=torch.float32, device=device) + 0.5) / side) for side in size)
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).reshape(1, -1, 2)
