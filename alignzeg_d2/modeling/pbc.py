"""Predictive Bias Correction (Sec. 3.3): the class indicator, its training samples and the correction.

Shapes: N images, Q proposals, T seen classes present in an image, K classes of the vocabulary, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignzeg_d2.modeling.pixel_decoder import mlp


class ClassIndicator(nn.Module):
    """phi_bc (Eq. 5): two fully connected layers; the sigmoid of their output is I, near 1 for "no seen class here"."""

    def __init__(self, *, width: int, hidden: int | None = None, detach: bool = True) -> None:
        """
        Args:
            width: D.
            hidden: of the first layer; D by default.
            detach: read F without sending gradients into it (Fig. 2).
        """
        super().__init__()
        self.layers = mlp(width, hidden or width, 1)
        self.detach = detach

    def forward(self, features: Tensor) -> Tensor:
        """F (..., D) -> the logit of I (...)."""
        return self.layers(features.detach() if self.detach else features).squeeze(-1)


def select_negative_proposals(mask_costs: Tensor, unmatched: Tensor, top_k: int) -> Tensor:
    """Proposals that most likely hold no seen class (Fig. 4): among the K worst for *every* seen class of the image.

    Args:
        mask_costs: L_mask of each proposal against each seen class's mask (Q, T).
        unmatched: (Q,) bool, the background proposals.
        top_k: the paper's K.

    Returns:
        (Q,) bool; all False for an image without a seen class or an empty intersection.

    Raises:
        ValueError: if ``top_k`` exceeds Q.
    """
    num_proposals, num_classes = mask_costs.shape
    if top_k > num_proposals:
        raise ValueError(f"PBC.TOP_K={top_k} exceeds the number of proposals {num_proposals}")
    if num_classes == 0:
        return torch.zeros_like(unmatched)
    among_worst = torch.zeros_like(mask_costs, dtype=torch.bool)
    among_worst.scatter_(0, mask_costs.topk(top_k, dim=0).indices, True)
    return among_worst.all(dim=1) & unmatched


def select_by_overlap(masks: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """Not in the paper: which proposals lie on seen classes and which do not, whether they were matched or not.

    A proposal that repeats a matched one lies on a seen class, though neither the matching nor the K worst say so. Without
    such proposals, the indicator learns to tell "matched" from "left over".

    Args:
        masks: mask probabilities at P points (N, Q, P).
        labelled: (N, P) bool, whether a seen class is there.

    Returns:
        positives and negatives (N, Q) bool: masks of which more than half, or less, lies on seen classes. A mask that holds
        less than a hundredth of the points is neither.
    """
    mass = masks.sum(dim=-1)
    on_seen = (masks * labelled[:, None]).sum(dim=-1) > 0.5 * mass
    there = mass > 0.01 * masks.shape[-1]
    return there & on_seen, there & ~on_seen


def indicator_loss(logits: Tensor, positives: Tensor, negatives: Tensor, count: Tensor) -> Tensor:
    """L_bc (Eq. 6): binary cross entropy, 0 for seen-class proposals, 1 for negatives, the others left out.

    Args:
        logits: of I (N, Q).
        positives, negatives: (N, Q) bool, disjoint.
        count: N_bc, the number of selected proposals per process; clamped at 1.
    """
    selected = positives | negatives
    losses = F.binary_cross_entropy_with_logits(logits.float(), negatives.float(), reduction="none")
    return (losses * selected).sum() / count.clamp(min=1)


def correct_bias(logits: Tensor, class_indicator: Tensor, seen: Tensor, gamma: float) -> Tensor:
    """Eq. 7: where I > gamma, the logits of the seen classes drop to v_min.

    Args:
        logits: P (..., Q, K + 1), the background last; leading dimensions are images.
        class_indicator: I (..., Q) in [0, 1].
        seen: (K,) bool.
        gamma: the threshold.

    Returns:
        P_bc (..., Q, K + 1). v_min is the least class logit of the image. A vocabulary without unseen classes is returned as
        it is: with every class at v_min, a flagged proposal would be spread evenly over all of them.
    """
    v_min = logits[..., :-1].amin(dim=(-2, -1), keepdim=True)
    suppressed = (class_indicator > gamma)[..., None] & F.pad(seen & ~seen.all(), (0, 1), value=False)
    return torch.where(suppressed, v_min, logits)
