"""Mutually-Refined Proposal Extraction (Sec. 3.1, Eq. 1): mask queries and visual features refine each other.

Shapes: N images, Q queries (the paper's N), L = h*w positions, D width, Hb bias heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from alignzeg_d2.modeling.pixel_decoder import PIXEL_DECODER_REGISTRY, Proposals, mlp


class CrossAttention(nn.Module):
    """Eq. 1: softmax(X W_Q (Y W_K)^T / sqrt(D)) Y W_V, single-headed as printed.

    With more heads, D under the root is a head's width, and an output map mixes the heads.
    """

    def __init__(self, width: int, num_heads: int = 1) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(
                f"MODEL.ALIGNZEG.PIXEL_DECODER.NUM_HEADS {num_heads} must divide the width: {width} is not divisible by "
                f"{num_heads}"
            )
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out: nn.Module = nn.Linear(width, width) if num_heads > 1 else nn.Identity()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``x`` (N, A, D) asks, ``y`` (N, B, D) answers: (N, A, D)."""
        q, k, v = (
            tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tokens in (self.query(x), self.key(y), self.value(y))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@PIXEL_DECODER_REGISTRY.register()
class MRPE(nn.Module):
    """Mutually-Refined Proposal Extraction.

    ::

        Q'  = MLP(Q + attn(Q, Z_f))         query refinement
        Z'  = MLP(Z_f + attn(Z_f, Q'))      image refinement
        Q'' = attn(Q', Z')                  final queries
        M   = Q'' Z'^T                      mask proposals
        B   = Q'' (MLP Z')^T                attention bias (suppl. Sec. 1)

    With ``residual``, as in any transformer, the MLPs and the last attention add to what they read: MLP(x) above stands for
    x + MLP(x), and Q'' for Q' + attn(Q', Z'). Without, the lines above are meant literally.
    """

    @configurable
    def __init__(
        self,
        *,
        width: int,
        num_queries: int,
        num_bias_heads: int = 1,
        num_heads: int = 1,
        mlp_ratio: float = 4.0,
        residual: bool = True,
    ) -> None:
        """
        Args:
            width: D.
            num_queries: Q.
            num_bias_heads: Hb, 1 for one bias map per proposal.
            num_heads: of the three attentions; 1 as in Eq. 1.
            mlp_ratio: hidden width of the MLPs as a multiple of D.
            residual: whether the MLPs and the last attention add to what they read.
        """
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.num_bias_heads = num_bias_heads
        self.residual = residual
        self.queries = nn.Parameter(torch.randn(num_queries, width))
        self.norm_queries, self.norm_features = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_attention = CrossAttention(width, num_heads)
        self.query_mlp = nn.Sequential(nn.LayerNorm(width), mlp(width, hidden, width))
        self.image_attention = CrossAttention(width, num_heads)
        self.image_mlp = nn.Sequential(nn.LayerNorm(width), mlp(width, hidden, width))
        self.norm_refined_queries, self.norm_refined_features = nn.LayerNorm(width), nn.LayerNorm(width)
        self.final_attention = CrossAttention(width, num_heads)
        self.bias_mlp = mlp(width, width, width * num_bias_heads)

    @classmethod
    def from_config(cls, cfg: CfgNode, *, width: int, num_bias_heads: int) -> dict[str, Any]:
        decoder = cfg.MODEL.ALIGNZEG.PIXEL_DECODER
        return {
            "width": width,
            "num_queries": decoder.NUM_QUERIES,
            "num_bias_heads": num_bias_heads,
            "num_heads": decoder.NUM_HEADS,
            "mlp_ratio": decoder.MLP_RATIO,
            "residual": decoder.RESIDUAL,
        }

    def forward(self, z_f: Tensor) -> Proposals:
        """``z_f`` (N, D, h, w) -> :class:`Proposals` of Q masks."""
        height, width = z_f.shape[-2:]
        z = self.norm_features(z_f.flatten(2).transpose(1, 2))
        q = self.norm_queries(self.queries).expand(z.shape[0], -1, -1)

        q = self._transform(q + self.query_attention(q, z), self.query_mlp)
        z = self._transform(z + self.image_attention(z, q), self.image_mlp)
        z, q = self.norm_refined_features(z), self.norm_refined_queries(q)
        q = self._add(q, self.final_attention(q, z))
        return proposals_from(q, z, self.bias_mlp(z), self.num_bias_heads, (height, width))

    def _transform(self, x: Tensor, perceptron: nn.Module) -> Tensor:
        return self._add(x, perceptron(x))

    def _add(self, x: Tensor, update: Tensor) -> Tensor:
        return x + update if self.residual else update


def proposals_from(q: Tensor, z: Tensor, bias_features: Tensor, num_bias_heads: int, size: tuple[int, int]) -> Proposals:
    """M = Q Z^T and B = Q (MLP Z)^T.

    Args:
        q: (N, Q, D) final queries.
        z: (N, L, D) refined features.
        bias_features: (N, L, Hb * D).
        num_bias_heads: Hb.
        size: (h, w) with h * w = L.
    """
    # As plain products: onnxruntime's einsum ends the process where there is no image.
    masks = q @ z.mT
    bias = q[:, None] @ bias_features.unflatten(-1, (num_bias_heads, -1)).permute(0, 2, 3, 1)  # (N, Hb, Q, L)
    return Proposals(mask_logits=masks.unflatten(-1, size), attention_bias=bias.unflatten(-1, size))
