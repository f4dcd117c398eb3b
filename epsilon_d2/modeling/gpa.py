"""Group Prompts Aggregation (Eq. 1-3): learnt group prompts gather the tokens into local semantics.

Shapes: N images, L tokens (the paper's N), G groups (the paper's M), D width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class GroupPromptsAggregation(nn.Module):
    """GT^Q = E([GT; F])[:M];  GrS = softmax(F^K GT^Q) F^V.

    The second step is a cross attention from the aggregated prompts to the tokens; its softmax runs over the tokens.
    """

    def __init__(
        self,
        *,
        width: int,
        num_groups: int,
        encoder_layers: int = 1,
        encoder_heads: int = 8,
        encoder_ffn: int = 2048,
        dropout: float = 0.1,
        scaled: bool = True,
    ) -> None:
        """
        Args:
            width: D.
            num_groups: G.
            encoder_layers, encoder_heads, encoder_ffn, dropout: of the transformer encoder E.
            scaled: divide by sqrt(D) ahead of the softmax of Eq. 3, which is printed without.

        Raises:
            ValueError: a width that the heads do not divide, or no group or layer.
        """
        super().__init__()
        if width % encoder_heads:
            raise ValueError(
                f"MODEL.EPSILON.GPA.ENCODER_HEADS {encoder_heads} does not divide the backbone's width {width}: it must"
            )
        if num_groups < 1 or encoder_layers < 1:
            raise ValueError(f"need at least one group and one encoder layer, got {num_groups} and {encoder_layers}")
        # GT, as large as the tokens: small prompts would leave the encoder all alike, and their groups with them.
        self.prompts = nn.Parameter(torch.randn(num_groups, width))
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(width, encoder_heads, encoder_ffn, dropout, batch_first=True)
            for _ in range(encoder_layers)
        )
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.scale = width**-0.5 if scaled else 1.0

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``tokens`` F (N, L, D) -> GrS (N, G, D), and the attention (N, G, L) of each group over the tokens."""
        queries = self.aggregate(tokens)
        attention = (self.scale * queries @ self.key(tokens).transpose(1, 2)).softmax(dim=-1)
        return attention @ self.value(tokens), attention

    def aggregate(self, tokens: Tensor) -> Tensor:
        """GT^Q (N, G, D), Eq. 1 and 2.

        Nothing reads the image tokens that leave the last layer, so it runs for the prompts alone: its attention still
        sees all tokens, and the rows that Eq. 2 keeps are the same.
        """
        x = torch.cat([self.prompts.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], dim=1)
        for layer in self.encoder[:-1]:
            x = layer(x)
        return _encode_first(cast(nn.TransformerEncoderLayer, self.encoder[-1]), x, len(self.prompts))


def _encode_first(layer: nn.TransformerEncoderLayer, x: Tensor, count: int) -> Tensor:
    """``layer(x)[:, :count]`` without computing the other rows; ``x`` (N, L, D) -> (N, count, D)."""
    first = x[:, :count]
    attended, _ = layer.self_attn(first, x, x, need_weights=False)
    first = layer.norm1(first + layer.dropout1(attended))
    fed = layer.linear2(layer.dropout(layer.activation(layer.linear1(first))))
    return layer.norm2(first + layer.dropout2(fed))
