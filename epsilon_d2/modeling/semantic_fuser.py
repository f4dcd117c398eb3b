"""The Semantic Fuser (Eq. 7 and 8) and the class scores (Eq. 9).

Shapes: N images, G groups (the paper's M), K classes, D width, E length of the label vectors (the paper's d_w).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SemanticFuser(nn.Module):
    """S = Linear([GoS; GrS]); with one module alone, a linear map of what there is."""

    def __init__(self, *, width: int, num_parts: int, label_width: int) -> None:
        """
        Args:
            width: D.
            num_parts: 2 for GoS and GrS, 1 for an ablation.
            label_width: E.
        """
        super().__init__()
        self.project = nn.Linear(num_parts * width, label_width)

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        """``parts``: (N, G, D) each -> S (N, G, E)."""
        return self.project(torch.cat(list(parts), dim=-1))


def class_scores(semantics: Tensor, label_vectors: Tensor) -> Tensor:
    """A class's score is that of the group nearest to it: max over g of S_g . w_k, as in Eq. 9.

    ``semantics`` S (N, G, E), ``label_vectors`` (K, E) -> (N, K).
    """
    return (semantics @ label_vectors.T).max(dim=1).values
