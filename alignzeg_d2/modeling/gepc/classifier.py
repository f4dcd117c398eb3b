"""Proposal classification (Sec. 3.2): phi_cls, class prototypes and background prototypes.

Shapes: N images, Q proposals, C classes, B background prototypes, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignzeg_d2.modeling.gepc.background_diversity import background_logit
from alignzeg_d2.modeling.pixel_decoder import mlp


class ProposalClassifier(nn.Module):
    """F_cls = phi_cls(F);  P = [F_cls T^T, p_g].

    Features and prototypes have unit length and are multiplied by CLIP's own, frozen, logit scale.
    """

    logit_scale: Tensor

    def __init__(
        self,
        *,
        width: int,
        num_background_prototypes: int,
        logit_scale: float,
        hidden: int | None = None,
        refinement: bool = True,
    ) -> None:
        """
        Args:
            width: D.
            num_background_prototypes: B; 1 is a single background token (the strategy off).
            logit_scale: CLIP's, about 100.
            hidden: of phi_cls; D by default.
            refinement: whether there is a phi_cls; without it F_cls is F.
        """
        super().__init__()
        self.phi_cls = mlp(width, hidden or width, width) if refinement else None
        if self.phi_cls is not None:
            # Residual with a last layer of zeros: training starts from CLIP's own features.
            for parameter in self.phi_cls[-1].parameters():
                nn.init.zeros_(parameter)
        self.background_prototypes = nn.Parameter(torch.randn(num_background_prototypes, width) * width**-0.5)
        self.register_buffer("logit_scale", torch.tensor(float(logit_scale)), persistent=False)

    def refine(self, features: Tensor) -> Tensor:
        """F (..., D) -> F_cls (..., D), unit length."""
        return F.normalize(features if self.phi_cls is None else features + self.phi_cls(features), dim=-1)

    def forward(self, refined: Tensor, prototypes: Tensor) -> Tensor:
        """F_cls (..., D) and T (C, D) of unit length -> P (..., C + 1), the background last."""
        classes = self.logit_scale * refined @ prototypes.to(refined.dtype).T
        backgrounds = self.logit_scale * refined @ F.normalize(self.background_prototypes, dim=-1).to(refined.dtype).T
        return torch.cat([classes, background_logit(backgrounds)[..., None]], dim=-1)
