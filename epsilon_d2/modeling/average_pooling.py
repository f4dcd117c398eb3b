"""What stands in for GPA and GFP when both are left out ("Backbone Only", Table 3).

Shapes: N images, L tokens, G groups (the paper's M), D width.
"""

from __future__ import annotations

from torch import Tensor, nn


class AveragePooling(nn.Module):
    """G linear maps of the mean token. The paper does not say how its backbone-only model gets M semantic vectors."""

    def __init__(self, *, width: int, num_groups: int) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.project = nn.Linear(width, num_groups * width)

    def forward(self, tokens: Tensor) -> Tensor:
        """``tokens`` F (N, L, D) -> (N, G, D)."""
        return self.project(tokens.mean(dim=1)).unflatten(-1, (self.num_groups, -1))
