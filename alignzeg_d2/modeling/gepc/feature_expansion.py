"""Feature expansion strategy (Sec. 3.2, Eq. 2 and 3): virtual features between the seen classes.

Shapes: S matched (seen) proposals of the mini-batch, C classes, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def mix(x: Tensor, permutation: Tensor, beta: Tensor) -> Tensor:
    """Eq. 2: beta x + (1 - beta) x[permutation], brought back to unit length.

    ``x`` (S, D), ``permutation`` (S,), ``beta`` () -> (S, D).
    """
    return F.normalize(beta * x + (1 - beta) * x[permutation], dim=-1)


def virtual_logits(virtual_features: Tensor, virtual_prototypes: Tensor, prototypes: Tensor) -> Tensor:
    """Eq. 3: each virtual feature against all class prototypes and, last, against its own virtual prototype.

    ``virtual_features`` and ``virtual_prototypes`` (S, D), ``prototypes`` (C, D) -> cosines (S, C + 1).
    """
    own = (virtual_features * virtual_prototypes).sum(dim=-1, keepdim=True)
    return torch.cat([virtual_features @ prototypes.T, own], dim=-1)


def feature_expansion_loss(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    permutation: Tensor,
    beta: Tensor,
    logit_scale: Tensor,
    exclude_same_class: bool = True,
) -> Tensor:
    """L_vir: cross entropy of Eq. 3 against the label C + 1.

    Args:
        features: F_cls of the matched proposals (S, D), unit length.
        labels: their classes (S,).
        prototypes: T (C, D), unit length.
        permutation: the shuffle (S,).
        beta: () in [0, 1].
        logit_scale: (), multiplies the cosines as in the classification itself.
        exclude_same_class: leave out pairs of one class. Their virtual prototype *is* a seen prototype, so they would
            push features away from their own class.

    Returns:
        scalar; 0, with a gradient, when no pair is left.
    """
    kept = (labels != labels[permutation]) | (not exclude_same_class)
    if not kept.any():
        return features.sum() * 0.0
    virtual_features = mix(features, permutation, beta)[kept]
    virtual_prototypes = mix(prototypes[labels], permutation, beta)[kept]
    logits = logit_scale * virtual_logits(virtual_features, virtual_prototypes, prototypes)
    virtual_class = torch.full((len(logits),), len(prototypes), device=logits.device)
    return F.cross_entropy(logits, virtual_class)


def sample_mixing(count: int, alpha: float, seeds: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """A shuffle of ``count`` proposals and beta ~ Beta(alpha, alpha), one for the mini-batch, from its images' seeds."""
    rng = np.random.default_rng(list(seeds))
    beta = torch.tensor(rng.beta(alpha, alpha), dtype=torch.float32, device=device)
    return torch.from_numpy(rng.permutation(count)).to(device), beta
