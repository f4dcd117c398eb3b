"""The training objective (Eq. 13).

Shapes: N images, G groups (the paper's M), K classes, E length of the label vectors (the paper's d_w).
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from epsilon_d2.modeling.losses import RankForm, VarianceForm, diversity_weight, group_variance, rank_loss
from epsilon_d2.modeling.semantic_fuser import class_scores


class Criterion(nn.Module):
    """L = 1/B sum_i (omega (1 - lambda) L_r + lambda L_reg)  (Eq. 13); twice that in the form "sdl", as in SDL's code."""

    def __init__(self, *, reg_weight: float, rank_form: RankForm = "paper", variance_form: VarianceForm = "groups") -> None:
        """
        Args:
            reg_weight: lambda.
            rank_form: alpha of Eq. 10, and the factor of the whole.
            variance_form: of Eq. 12.

        Raises:
            ValueError: lambda is not in [0, 1], or the form is unknown.
        """
        super().__init__()
        if rank_form not in get_args(RankForm):
            raise ValueError(f"MODEL.EPSILON.LOSS.RANK_FORM must be one of {get_args(RankForm)}, got {rank_form!r}")
        if variance_form not in get_args(VarianceForm):
            raise ValueError(f"MODEL.EPSILON.LOSS.VARIANCE must be one of {get_args(VarianceForm)}, got {variance_form!r}")
        if not 0 <= reg_weight <= 1:
            raise ValueError(f"MODEL.EPSILON.LOSS.LAMBDA must be in [0, 1], got {reg_weight}")
        self.reg_weight, self.rank_form, self.variance_form = reg_weight, rank_form, variance_form
        self.factor = 2.0 if rank_form == "sdl" else 1.0

    def forward(self, semantics: Tensor, label_vectors: Tensor, positive: Tensor) -> dict[str, Tensor]:
        """
        Args:
            semantics: S (N, G, E).
            label_vectors: (K, E) of the training vocabulary.
            positive: (N, K) bool; a class that is not annotated counts as absent.

        Returns:
            loss_rank and loss_reg, weighted.
        """
        with torch.autocast(semantics.device.type, enabled=False):  # half precision would round scores to three digits
            semantics = semantics.float()
            omega = diversity_weight(positive, label_vectors)
            rank = rank_loss(class_scores(semantics, label_vectors), positive, self.rank_form)
        return {
            "loss_rank": self.factor * (1 - self.reg_weight) * (omega * rank).mean(),
            "loss_reg": self.factor * self.reg_weight * group_variance(semantics, self.variance_form).mean(),
        }
