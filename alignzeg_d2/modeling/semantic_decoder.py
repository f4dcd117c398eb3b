"""The semantic decoder (Sec. 3.2 and suppl. Sec. 1): CLIP's last blocks, in which Q copies of [CLS] each read one proposal.

Shapes: N images, Q proposals, L patches, C width of CLIP, D embedding, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from fvcore.common.registry import Registry
from torch import Tensor, nn

from zeroshot_d2.clip.towers import VisionTower, tower_of

SEMANTIC_DECODER_REGISTRY = Registry("SEMANTIC_DECODER")
SEMANTIC_DECODER_REGISTRY.__doc__ = """
Semantic decoders: ``@configurable`` modules built as ``decoder(cfg, visual=...)`` from CLIP's image tower, called
with CLIP's tokens (N, 1 + h*w, C), the attention bias (N, Hb, Q, H, W) and the grid (h, w), returning the proposal features
F (N, Q, D). Their ``num_heads`` is the number of heads that a bias of its own per head has.
"""


@SEMANTIC_DECODER_REGISTRY.register()
class SemanticDecoder(nn.Module):
    """Blocks 10-12 of CLIP, frozen.

    A proposal token sees the patches, under its bias, and itself; nothing sees it. So the patches run on as in CLIP itself,
    the proposals are cross-attention beside them, and the last block need not compute the patches at all. Without a bias
    a proposal token is exactly [CLS].
    """

    @configurable
    def __init__(
        self,
        *,
        visual: VisionTower,
        num_layers: int,
        bias_per_block: bool = False,
        learnt_scale: bool = True,
        pooling: str = "max",
    ) -> None:
        """
        Args:
            visual: open_clip's image tower with [CLS]; its last blocks are used as they are.
            num_layers: how many.
            bias_per_block: whether each block has an attention bias of its own, or all share one.
            learnt_scale: whether a learnt number multiplies the bias; otherwise the bias comes scaled.
            pooling: how the bias is brought to CLIP's grid, a name of :data:`POOLING`.

        Raises:
            ValueError: CLIP has fewer blocks, none is asked for, or there is no such pooling.
        """
        super().__init__()
        tower = tower_of(visual)
        if not 1 <= num_layers <= len(tower.blocks):
            raise ValueError(f"the semantic decoder needs 1 to {len(tower.blocks)} of CLIP's blocks, got {num_layers}")
        if pooling not in POOLING:
            raise ValueError(f"the bias is pooled by one of {sorted(POOLING)}, got {pooling!r}")
        self.bias_per_block, self.pool = bias_per_block, POOLING[pooling]
        self.blocks = nn.ModuleList(tower.blocks[len(tower.blocks) - num_layers :])
        self.num_heads = tower.num_heads
        self.ln_post, self.projection = tower.norm, tower.projection
        self._run, self._attend, self._rotation = tower.run, tower.attend, tower.rotation
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        # One number that lets training set the strength of the bias against CLIP's own attention.
        self.bias_scale = nn.Parameter(torch.ones(())) if learnt_scale else None

    @classmethod
    def from_config(cls, cfg: CfgNode, *, visual: VisionTower) -> dict[str, Any]:
        return {"visual": visual, "num_layers": cfg.MODEL.ALIGNZEG.SEMANTIC_DECODER.NUM_LAYERS}

    def train(self, mode: bool = True) -> SemanticDecoder:
        """CLIP's own blocks stay in evaluation mode."""
        super().train(mode)
        self.blocks.eval()
        return self

    def forward(self, tokens: Tensor, attention_bias: Tensor, grid: tuple[int, int]) -> Tensor:
        """
        Args:
            tokens: (N, 1 + L, C) of the CLIP image encoder, [CLS] first.
            attention_bias: B (N, Hb, Q, H, W) at any resolution; Hb is 1 or the number of heads, or with ``bias_per_block``
                that times the number of blocks, block after block.
            grid: (h, w) of CLIP's patches, h * w = L.

        Returns:
            F (N, Q, D), not normalised.
        """
        n, heads, num_queries = attention_bias.shape[:3]
        bias = self.pool(attention_bias.flatten(1, 2), grid)
        if self.bias_scale is not None:
            bias = bias * self.bias_scale
        bias = bias.flatten(2).unflatten(1, (heads, num_queries))
        others = ~torch.eye(num_queries, dtype=torch.bool, device=bias.device)
        alone = bias.new_zeros(num_queries, num_queries).masked_fill(others, float("-inf"))
        mask = torch.cat([bias, alone.expand(n, heads, -1, -1)], dim=-1)  # (N, Hb, Q, L + Q)
        masks = mask.chunk(len(self.blocks), dim=1) if self.bias_per_block else [mask] * len(self.blocks)

        rotation = None if self._rotation is None else self._rotation(grid, tokens.device)
        proposals = self.first_tokens(tokens[:, :1], num_queries)
        for number, (block, block_mask) in enumerate(zip(self.blocks, masks, strict=True), start=1):
            proposals = self._attend(block, proposals, tokens[:, 1:], block_mask, rotation)
            if number < len(self.blocks):
                tokens = self._run(block, tokens, rotation)
        return self.projection(self.ln_post(proposals))

    def first_tokens(self, cls: Tensor, num_queries: int) -> Tensor:
        """What the proposals start from (N, Q, C): copies of [CLS], (N, 1, C)."""
        return cls.expand(-1, num_queries, -1)


def _max_pool_to(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Adaptive max pooling of (N, C, H, W) to ``grid``; where the cells are all of one size, by ordinary pooling, which
    also exists in ONNX."""
    (height, width), (rows, columns) = x.shape[-2:], grid
    if height % rows == 0 and width % columns == 0:
        return F.max_pool2d(x, (height // rows, width // columns))
    return F.adaptive_max_pool2d(x, grid)


POOLING: dict[str, Callable[[Tensor, tuple[int, int]], Tensor]] = {
    "max": _max_pool_to,
    "avg": F.adaptive_avg_pool2d,
    "bilinear": partial(F.interpolate, mode="bilinear", align_corners=False),
    "bicubic": partial(F.interpolate, mode="bicubic", align_corners=False),
}
"""How a map (N, C, H, W) is brought to a grid (h, w)."""
