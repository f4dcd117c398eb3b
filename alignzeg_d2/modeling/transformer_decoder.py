"""The baseline's pixel decoder (Sec. 4.4, Table 5): a straightforward transformer decoder akin to MaskFormer's."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from alignzeg_d2.modeling.mrpe import proposals_from
from alignzeg_d2.modeling.pixel_decoder import PIXEL_DECODER_REGISTRY, Proposals, mlp


class QueryDecoder(nn.Module):
    """Mask queries attend to one another and to the features, layer by layer; the features stay as they are."""

    def __init__(
        self, *, width: int, num_queries: int, num_heads: int = 8, num_layers: int = 6, mlp_ratio: float = 4.0
    ) -> None:
        """``width`` is D, ``num_queries`` Q; the rest are the decoder's own."""
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, width))
        layer = nn.TransformerDecoderLayer(
            width, num_heads, int(width * mlp_ratio), dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, num_layers, norm=nn.LayerNorm(width))
        self.norm_features = nn.LayerNorm(width)
        self.mask_mlp = mlp(width, width, width, layers=3)

    def decode(self, z_f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``z_f`` (N, D, h, w) -> the decoded queries and MLP of them, (N, Q, D), and normalised features (N, h*w, D)."""
        z = self.norm_features(z_f.flatten(2).transpose(1, 2))
        decoded = self.decoder(self.queries.expand(z.shape[0], -1, -1), z)
        return decoded, self.mask_mlp(decoded), z


@PIXEL_DECODER_REGISTRY.register()
class TransformerPixelDecoder(QueryDecoder):
    """M = MLP(Q) Z_f^T and B = MLP(Q) (MLP Z_f)^T of the decoded queries."""

    @configurable
    def __init__(self, *, width: int, num_bias_heads: int = 1, **decoder: Any) -> None:
        """``width`` is D, ``num_bias_heads`` Hb; the rest as for :class:`QueryDecoder`."""
        super().__init__(width=width, **decoder)
        self.num_bias_heads = num_bias_heads
        self.bias_mlp = mlp(width, width, width * num_bias_heads)

    @classmethod
    def from_config(cls, cfg: CfgNode, *, width: int, num_bias_heads: int) -> dict[str, Any]:
        decoder = cfg.MODEL.ALIGNZEG.PIXEL_DECODER
        return {
            "width": width,
            "num_queries": decoder.NUM_QUERIES,
            "num_bias_heads": num_bias_heads,
            "num_heads": decoder.DECODER_HEADS,
            "num_layers": decoder.DECODER_LAYERS,
            "mlp_ratio": decoder.MLP_RATIO,
        }

    def forward(self, z_f: Tensor) -> Proposals:
        """``z_f`` (N, D, h, w) -> :class:`Proposals` of Q masks."""
        _, q, z = self.decode(z_f)
        return proposals_from(q, z, self.bias_mlp(z), self.num_bias_heads, (z_f.shape[-2], z_f.shape[-1]))
