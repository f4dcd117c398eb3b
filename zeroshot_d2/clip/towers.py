"""The image towers of CLIPs: an adapter per family gives tokens, blocks one by one, and the way into the joint space.

Shapes: N images, L patches, (h, w) their grid, C width, D embedding, H heads, E width of a head, Q tokens that read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from timm.layers import apply_rot_embed_cat, build_rotary_pos_embed
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .loader import Clip

# What is tried, in docs/backbones.md: towers that read the image at [CLS] ...
WITH_CLS = (
    "ViT-B-32",
    "ViT-B-16",
    "ViT-L-14",
    "ViT-L-14-336",
    "ViT-H-14",
    "ViT-bigG-14",
    "EVA01-g-14",
    "EVA02-B-16",
    "EVA02-L-14",
    "EVA02-L-14-336",
)
# ... and those that pool their patches.
WITHOUT_CLS = (
    "ViT-L-14-CLIPA",
    "ViT-B-16-SigLIP",
    "ViT-B-16-SigLIP2",
    "ViT-L-16-SigLIP-384",
    "ViT-SO400M-14-SigLIP",
)

VisionTower: TypeAlias = VisionTransformer | TimmModel
"""An image tower of open_clip."""

Projection: TypeAlias = tuple[Tensor, Tensor | None]
"""Weight and bias of a linear map."""


def checked_vision_tower(clip: Clip, name: str, *, cls_token: bool) -> VisionTower:
    """The image tower of a CLIP, where it gives a token per patch.

    Args:
        clip: open_clip's.
        name: of its model.
        cls_token: whether it must have a [CLS] token that becomes the image's vector, as :func:`tower_of` takes it.

    Raises:
        ValueError: it is another network, or has no such token.
    """
    visual = clip.visual
    trunk = visual.trunk if isinstance(visual, TimmModel) else visual
    works = ", ".join([*WITH_CLS, *(() if cls_token else WITHOUT_CLS)]) + " and -quickgelu forms, see docs/backbones.md"
    is_transformer = isinstance(trunk, VisionTransformer | TimmVisionTransformer | Eva)
    # CoCa's final norm comes behind a pooler.
    if not is_transformer or (isinstance(trunk, VisionTransformer) and trunk.attn_pool is not None):
        raise ValueError(
            f"the image tower of {name!r} is a {type(trunk).__name__} that gives no token per patch behind a final norm. "
            f"What works: {works}"
        )
    if cls_token and (reason := why_not_at_cls(visual)):
        raise ValueError(
            f"the image tower of {name!r} cannot be used here: {reason}. Taggers, which read the patches, take it as a "
            f"backbone. What works here: {works}"
        )
    return visual


def why_not_at_cls(visual: VisionTower) -> str:
    """Why open_clip's image tower does not read the image at a [CLS] token that an adapter can copy; "" where it does."""
    if isinstance(visual, VisionTransformer):
        if visual.pool_type != "tok" or visual.final_ln_after_pool:
            return "its vector of the image is a mean over the patches, not its [CLS] token"
        kinds = {type(block) for block in visual.transformer.resblocks} - {ResidualAttentionBlock}
    else:
        trunk = visual.trunk
        if trunk.cls_token is None:
            return "it has no [CLS] token, whose copies would read the proposals"
        if trunk.global_pool != "token" or trunk.num_prefix_tokens != 1:
            return "its vector of the image is pooled from the patches, not its [CLS] token"
        kinds = {type(block) for block in trunk.blocks} - {EvaBlock, EvaBlockPostNorm}
    return f"there is no adapter for its {', '.join(sorted(kind.__name__ for kind in kinds))}" if kinds else ""


@dataclass(frozen=True)
class Tower:
    """The parts of an image tower. A tower is no module: whoever builds upon it registers the parts that it runs.

    Args:
        family: "plain" or "EVA".
        patch_embedding: image -> patches (N, C, h, w).
        class_embedding: [CLS] (C,).
        positional_embedding: (1 + L, C), of [CLS] first.
        norm_pre: of all tokens, ahead of the blocks.
        blocks: to be called by ``run``.
        norm, projection: behind the blocks, from tokens (..., C) to the joint space (..., D).
        grid: (h, w) of the positions.
        num_heads: H of each block.
        output_dim: D.
        rotation: (grid, device) -> the rotary embedding of patches (L, 2 E), sine first; None: the family has none.
        run: (block, tokens (N, 1 + L, C), rotation or None) -> tokens.
        attend: as :func:`cross_attention`'s block, see there.
    """

    family: str
    patch_embedding: nn.Conv2d
    class_embedding: nn.Parameter
    positional_embedding: nn.Parameter
    norm_pre: nn.Module
    blocks: Sequence[nn.Module]
    norm: nn.Module
    projection: nn.Module
    grid: tuple[int, int]
    num_heads: int
    output_dim: int
    rotation: Callable[[tuple[int, int], torch.device], Tensor] | None
    run: Callable[[Any, Tensor, Tensor | None], Tensor]
    attend: Callable[[Any, Tensor, Tensor, Tensor, Tensor | None], Tensor]

    @property
    def patch_size(self) -> int:
        """In pixels."""
        return int(self.patch_embedding.kernel_size[0])

    @property
    def width(self) -> int:
        """C."""
        return self.patch_embedding.out_channels


def tower_of(visual: VisionTower) -> Tower:
    """The adapter of open_clip's image tower; whether it can read at [CLS], :func:`checked_vision_tower` says.

    Raises:
        ValueError: it is of neither family.
    """
    if isinstance(visual, VisionTransformer):
        return _plain_tower(visual)
    if isinstance(visual, TimmModel) and isinstance(visual.trunk, Eva):
        return _eva_tower(visual)
    raise ValueError(f"{type(visual).__name__} is neither open_clip's plain vision transformer nor timm's EVA")


# -------------------------------------------------------------------------------------------- open_clip's plain ViT
class _MatrixProduct(nn.Module):
    """A linear map in the form in which open_clip keeps it, (C, D)."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def _plain_tower(visual: VisionTransformer) -> Tower:
    blocks = list(visual.transformer.resblocks)
    return Tower(
        family="plain",
        patch_embedding=visual.conv1,
        class_embedding=visual.class_embedding,
        positional_embedding=visual.positional_embedding,
        norm_pre=visual.ln_pre,
        blocks=blocks,
        norm=visual.ln_post,
        projection=_MatrixProduct(visual.proj),
        grid=visual.grid_size,
        num_heads=blocks[-1].attn.num_heads,
        output_dim=visual.output_dim,
        rotation=None,
        run=_run_plain,
        attend=_attend_plain,
    )


def _run_plain(block: ResidualAttentionBlock, tokens: Tensor, rotation: Tensor | None) -> Tensor:
    """What the block itself computes. Its ``nn.MultiheadAttention`` transposes the tokens first; where they need a gradient
    and the weights none, torch then multiplies token by token, a third as fast."""
    attn = block.attn
    projected = F.linear(block.ln_1(tokens), attn.in_proj_weight, attn.in_proj_bias)
    q, k, v = projected.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return _with_attended(block, tokens, attended)


def _attend_plain(
    block: ResidualAttentionBlock, proposals: Tensor, patches: Tensor, mask: Tensor, rotation: Tensor | None
) -> Tensor:
    attn = block.attn
    weights, biases = attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3)
    projections = list(zip(weights, biases, strict=True))
    attended = cross_attention(block.ln_1(proposals), block.ln_1(patches), mask, projections, attn.num_heads)
    return _with_attended(block, proposals, attended)


def _with_attended(block: ResidualAttentionBlock, tokens: Tensor, attended: Tensor) -> Tensor:
    """What a block makes of its tokens once its attention is there, ahead of the output projection."""
    tokens = tokens + block.ls_1(block.attn.out_proj(attended))
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


# ------------------------------------------------------------------------------------------------------- timm's EVA
def _eva_tower(visual: TimmModel) -> Tower:
    """EVA-CLIP, first and second series: rotary embeddings of patches, gated perceptrons, norms within the blocks."""
    trunk: Eva = visual.trunk
    attn, rope = trunk.blocks[-1].attn, trunk.rope
    rotation = None
    if rope is not None:
        rotation = partial(
            _rotation,
            dim=trunk.embed_dim // attn.num_heads,
            temperature=rope.temperature,
            ref_feat_shape=rope.ref_feat_shape,
            grid_offset=rope.grid_offset,
            grid_indexing=rope.grid_indexing,
        )
    return Tower(
        family="EVA",
        patch_embedding=trunk.patch_embed.proj,
        class_embedding=nn.Parameter(trunk.cls_token.detach()[0, 0]),
        positional_embedding=nn.Parameter(trunk.pos_embed.detach()[0]),
        norm_pre=trunk.norm_pre,
        blocks=list(trunk.blocks),
        norm=trunk.norm,
        projection=nn.Sequential(trunk.fc_norm, trunk.head, visual.head),
        grid=trunk.patch_embed.grid_size,
        num_heads=attn.num_heads,
        output_dim=trunk.num_classes,
        rotation=rotation,
        run=_run_eva,
        attend=_attend_eva,
    )


def _rotation(grid: tuple[int, int], device: torch.device, **of_tower: Any) -> Tensor:
    """A grid that is not the trained one is laid over the same range of angles."""
    embedded = build_rotary_pos_embed(list(grid), in_pixels=False, device=device, **of_tower)
    return torch.cat(embedded, dim=-1)


def with_unrotated(rotation: Tensor | None, count: int) -> Tensor | None:
    """The rotary embedding of ``count`` tokens without a place, which stay as they are, and of the patches behind them."""
    if rotation is None or count == 0:
        return rotation
    still = rotation.new_zeros(count, rotation.shape[-1])
    still[:, rotation.shape[-1] // 2 :] = 1  # sine 0, cosine 1
    return torch.cat([still, rotation])


def _run_eva(block: EvaBlock, tokens: Tensor, rotation: Tensor | None) -> Tensor:
    return block(tokens, rope=rotation)


def _eva_projections(attn: EvaAttention) -> list[Projection]:
    if attn.qkv is None:
        return [(linear.weight, linear.bias) for linear in (attn.q_proj, attn.k_proj, attn.v_proj)]
    return list(zip(attn.qkv.weight.chunk(3), (attn.q_bias, attn.k_bias, attn.v_bias), strict=True))


def _attend_eva(
    block: EvaBlock | EvaBlockPostNorm, proposals: Tensor, patches: Tensor, mask: Tensor, rotation: Tensor | None
) -> Tensor:
    attn, projections = block.attn, _eva_projections(block.attn)
    if isinstance(block, EvaBlockPostNorm):
        attended = cross_attention(proposals, patches, mask, projections, attn.num_heads, rotation)
        proposals = proposals + block.norm1(attn.proj(attn.norm(attended)))
        return proposals + block.norm2(block.mlp(proposals))
    attended = cross_attention(block.norm1(proposals), block.norm1(patches), mask, projections, attn.num_heads, rotation)
    proposals = proposals + _scaled(attn.proj(attn.norm(attended)), block.gamma_1)
    return proposals + _scaled(block.mlp(block.norm2(proposals)), block.gamma_2)


def _scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    return x if gamma is None else gamma * x


# ---------------------------------------------------------------------------------------------------- what they share
def cross_attention(
    queries: Tensor,
    patches: Tensor,
    mask: Tensor,
    projections: Sequence[Projection],
    num_heads: int,
    rotation: Tensor | None = None,
) -> Tensor:
    """A block's self-attention in the form in which some tokens read the patches and themselves, and nothing reads them.

    Args:
        queries: (N, Q, C), without a place, as [CLS].
        patches: (N, L, C).
        mask: (N, H or 1, Q, L + Q), added to the scaled products.
        projections: of the block, onto queries, keys and values.
        num_heads: H.
        rotation: of the patches.

    Returns:
        (N, Q, C), ahead of the block's output projection.
    """
    seen = torch.cat([patches, queries], dim=1)
    q, k, v = (
        F.linear(x, weight, bias).unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for x, (weight, bias) in zip((queries, seen, seen), projections, strict=True)
    )
    if rotation is not None:
        length = patches.shape[1]
        rotated = apply_rot_embed_cat(k[:, :, :length], rotation).type_as(k)
        k = torch.cat([rotated, k[:, :, length:]], dim=2)
    return _masked_attention(q, k, v, mask.to(q.dtype)).transpose(1, 2).flatten(2)


def _masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Where blocks and tokens are frozen, the mask alone has a gradient. Torch's fused attention on a GPU does not keep what
    that one needs (its backward pass ends with "LSE is not correctly aligned"): there it is computed step by step."""
    of_mask_alone = mask.requires_grad and not (q.requires_grad or k.requires_grad or v.requires_grad)
    with sdpa_kernel(SDPBackend.MATH) if of_mask_alone else contextlib.nullcontext():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def resize_positions(positions: Tensor, grid: tuple[int, int], size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Position embeddings (h0*w0, C) of a grid (h0, w0), interpolated to ``size`` (h, w): (h*w, C).

    ``mode`` is "bicubic" or "bilinear", about the centres of the cells.
    """
    maps = positions.reshape(1, *grid, -1).permute(0, 3, 1, 2)
    return F.interpolate(maps, size=size, mode=mode, align_corners=False).flatten(2).transpose(1, 2)[0]
