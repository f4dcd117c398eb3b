"""Background diversity strategy (Sec. 3.2): several background prototypes give one background logit.

Shapes: B background prototypes (the paper's M), D embedding.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def background_logit(logits: Tensor) -> Tensor:
    """p_g = sum(softmax(p_mg) * p_mg): the prototypes' logits weighted by their own softmax.

    ``logits`` (..., B) -> (...). With B = 1 it is that prototype's logit.
    """
    return (logits.softmax(dim=-1) * logits).sum(dim=-1)


def diversity_loss(prototypes: Tensor) -> Tensor:
    """L_reg (Eq. 4): the mean cosine of all pairs of background prototypes.

    The prototypes are normalised first: on raw vectors Eq. 4 has no lower bound. One prototype has no pair and gives 0.

    ``prototypes`` (B, D) -> scalar in [-1 / (B - 1), 1].
    """
    count = len(prototypes)
    if count < 2:
        return prototypes.sum() * 0.0
    unit = F.normalize(prototypes.float(), dim=-1)
    cosines = unit @ unit.T
    return (cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))
