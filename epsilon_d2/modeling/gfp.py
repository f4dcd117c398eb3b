"""Global Forward Propagation (Eq. 4-6): several weighted sums over all tokens, each with weights of its own.

Shapes: N images, L tokens (the paper's N), G feature blocks (the paper's M), D width, E hidden width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GlobalForwardPropagation(nn.Module):
    """FG^1..FG^M = Linear(F);  W = MLP(FG);  A = softmax(W);  S = Sum(FG * A).

    The softmax runs over the tokens, for each channel by itself. Block g has an MLP of its own; all run as one batched
    product.
    """

    def __init__(self, *, width: int, num_groups: int, mlp_ratio: float = 1.0) -> None:
        """
        Args:
            width: D.
            num_groups: G.
            mlp_ratio: E / D.

        Raises:
            ValueError: it leaves no hidden unit.
        """
        super().__init__()
        hidden = round(width * mlp_ratio)
        if hidden < 1:
            raise ValueError(
                f"MODEL.EPSILON.GFP.MLP_RATIO {mlp_ratio} leaves no hidden unit: it must be at least {1 / width:g}"
            )
        self.num_groups = num_groups
        self.blocks = nn.Linear(width, num_groups * width)
        self.weight1, self.bias1 = _grouped_linear(num_groups, width, hidden)
        self.weight2, self.bias2 = _grouped_linear(num_groups, hidden, width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``tokens`` F (N, L, D) -> GoS (N, G, D), and the weights A (N, G, L), averaged over the channels."""
        blocks = self.blocks(tokens).unflatten(-1, (self.num_groups, -1)).movedim(2, 0)  # (G, N, L, D)
        flat = blocks.flatten(1, 2)
        hidden = F.gelu(torch.baddbmm(self.bias1, flat, self.weight1))
        weights = torch.baddbmm(self.bias2, hidden, self.weight2).view_as(blocks).softmax(dim=2)
        semantics = (blocks * weights).sum(dim=2)
        return semantics.transpose(0, 1), weights.mean(dim=-1).transpose(0, 1)


def _grouped_linear(groups: int, fan_in: int, fan_out: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights (G, fan_in, fan_out) and biases (G, 1, fan_out) of G linear maps, initialised as nn.Linear's are."""
    bound = 1 / math.sqrt(fan_in)
    weight = nn.Parameter(torch.empty(groups, fan_in, fan_out).uniform_(-bound, bound))
    return weight, nn.Parameter(torch.empty(groups, 1, fan_out).uniform_(-bound, bound))
