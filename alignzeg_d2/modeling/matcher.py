"""Bipartite matching of proposals and ground-truth masks (suppl. Sec. 1).

Shapes: Q proposals, T classes in the image, P points, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alignzeg_d2.modeling.losses import pairwise_bce_cost, pairwise_dice_cost


def mask_cost(
    mask_logits: Tensor, masks: Tensor, *, bce_weight: float, dice_weight: float, valid: Tensor | None = None
) -> Tensor:
    """L_mask of every proposal against every ground-truth mask, at the sampled points.

    ``mask_logits`` (Q, P), ``masks`` (T, P), ``valid`` (P,) -> (Q, T). In float32 whatever the model's precision.
    """
    logits, labels = mask_logits.float(), masks.float()
    return bce_weight * pairwise_bce_cost(logits, labels, valid) + dice_weight * pairwise_dice_cost(logits, labels, valid)


def class_cost(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the probability of each ground-truth class: ``class_logits`` (Q, C + 1), ``labels`` (T,) -> (Q, T)."""
    return -class_logits.float().softmax(-1)[:, labels]


@torch.no_grad()
def match_all(costs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """:func:`match` of several costs (Q, T) of one device, which is waited for once for all of them."""
    if not costs:
        return []
    device = costs[0].device
    flat = torch.cat([cost.flatten() for cost in costs]).cpu()
    found = [match(part.view(cost.shape)) for part, cost in zip(flat.split([c.numel() for c in costs]), costs, strict=True)]
    sizes = [len(rows) for rows, _ in found]
    rows, columns = torch.stack([torch.cat(indices) for indices in zip(*found, strict=True)]).to(device)
    return list(zip(rows.split(sizes), columns.split(sizes), strict=True))


@torch.no_grad()
def match(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The assignment of least total cost.

    ``cost`` (Q, T) -> indices of proposals and of targets, both (min(Q, T),), ordered by proposal. A cost that is not
    finite (an overflow under AMP) counts as the worst possible instead of stopping the training.
    """
    from scipy.optimize import linear_sum_assignment  # a quarter of a second to import, and training alone needs it

    device, cost = cost.device, cost.cpu()  # Apple's GPUs have no float64
    finite = cost.isfinite()
    largest = cost[finite].abs().max().item() if finite.any() else 0.0
    # Above what any exchange of finite costs can gain, yet of their order: a huge number would drown them in rounding.
    worst = 2 * (min(cost.shape) + 1) * (largest + 1)
    usable = torch.where(finite, cost.double(), worst)
    rows, columns = linear_sum_assignment(usable.numpy())
    return (torch.as_tensor(rows, device=device), torch.as_tensor(columns, device=device))
