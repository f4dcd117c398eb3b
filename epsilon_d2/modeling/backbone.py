"""The frozen backbone (Fig. 2, left): an image becomes the token features F.

Shapes: N images, L tokens (the paper's N), D width, h * w = L patches.
"""

from __future__ import annotations

import difflib
from abc import abstractmethod
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.models import is_model_in_modules, load_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from zeroshot_d2.clip.loader import PIXEL_MEAN, PIXEL_STD, DownloadFailed, checked_vision_tower, create_clip, fingerprint
from zeroshot_d2.ranges import about, check_multiple
from zeroshot_d2.weights import check_tensors, read_weights

PixelStats = tuple[tuple[float, ...], tuple[float, ...]]


class FrozenViT(Backbone):
    """A vision transformer that never learns: no gradient, no dropout, and no activation kept for a backward pass.

    Output: ``{"tokens": F (N, L, D)}``.

    Attributes:
        pixel_stats: mean and deviation, RGB in 0..255, that the weights were trained with; None where that is not known.
        patch_size: in pixels.
        cls_token: whether [CLS] is the first of the L tokens.
        identity: a hash of the weights of the blocks that run. Position embeddings are not in it: interpolated ones may
            differ in the last bit between machines.
    """

    identity: str

    def __init__(self, *, width: int, patch_size: int, cls_token: bool, pixel_stats: PixelStats | None) -> None:
        super().__init__()
        self.width, self.patch_size, self.cls_token = width, patch_size, cls_token
        self.pixel_stats = pixel_stats

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        backbone = cfg.MODEL.EPSILON.BACKBONE
        return {
            "name": backbone.NAME,
            "pretrained": backbone.PRETRAINED,
            "tap": backbone.TAP,
            "cls_token": backbone.CLS_TOKEN,
            "image_size": cfg.INPUT.IMAGE_SIZE,
        }

    def freeze(self, blocks: nn.Module) -> None:
        """To be called once the weights are there; ``blocks`` are the transformer's."""
        self.identity = fingerprint(blocks)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenViT:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``images`` (N, 3, H, W), normalised; H and W are the side that the backbone was built for."""
        return {"tokens": self.tokens(images)}

    @abstractmethod
    def tokens(self, images: Tensor) -> Tensor:
        """F (N, L, D)."""

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"tokens": ShapeSpec(channels=self.width, stride=self.patch_size)}


@BACKBONE_REGISTRY.register()
class TimmViT(FrozenViT):
    """A vision transformer of timm: by default the ViT-B/16 of Dosovitskiy et al. (2020), as in the paper."""

    @configurable
    def __init__(self, *, name: str, pretrained: str, image_size: int, tap: int = 0, cls_token: bool = False) -> None:
        """
        Args:
            name: a timm name without tag.
            pretrained: a timm tag, a local weights file, or "" for random weights.
            image_size: side of the images in pixels; position embeddings are interpolated to it.
            tap: number of the block whose output is F; 0 for the last one, behind the final norm.
            cls_token: keep [CLS] among the tokens.

        Raises:
            ValueError: unknown name or tag, weights that do not fit, or ``tap`` beyond the last block.
            DownloadFailed: the weights of a tag cannot be downloaded.
        """
        with about("MODEL.EPSILON.BACKBONE", NAME=name, PRETRAINED=pretrained):
            vit = create_timm_vit(name, pretrained, image_size)
        check_multiple("INPUT.IMAGE_SIZE", image_size, "the backbone's patch size", vit.patch_embed.patch_size[0])
        if cls_token and not vit.has_class_token:
            raise ValueError(f"{name!r} has no [CLS] token: set MODEL.EPSILON.BACKBONE.CLS_TOKEN False")
        super().__init__(
            width=vit.embed_dim,
            patch_size=vit.patch_embed.patch_size[0],
            cls_token=cls_token,
            pixel_stats=_pixel_stats(vit) if pretrained in timm_tags(name) else None,
        )
        del vit.blocks[_checked_tap(tap, len(vit.blocks)) :]
        if tap:
            vit.norm = nn.Identity()
        self.vit = vit
        self.freeze(vit.blocks)

    def tokens(self, images: Tensor) -> Tensor:
        tokens = self.vit.forward_features(images)
        patches = tokens[:, self.vit.num_prefix_tokens :]
        return torch.cat([tokens[:, :1], patches], dim=1) if self.cls_token else patches


@BACKBONE_REGISTRY.register()
class ClipViT(FrozenViT):
    """The image tower of a CLIP, by open_clip's name; "demo-world-clip" is the small one of the demo world."""

    @configurable
    def __init__(self, *, name: str, pretrained: str, image_size: int, tap: int = 0, cls_token: bool = False) -> None:
        """Args as for :class:`TimmViT`, ``name`` and ``pretrained`` as for :func:`zeroshot_d2.clip.loader.create_clip`.

        Raises:
            ValueError: the image tower is no plain vision transformer, or ``tap`` lies beyond its last block.
        """
        with about("MODEL.EPSILON.BACKBONE", NAME=name, PRETRAINED=pretrained):
            visual = checked_vision_tower(create_clip(name, pretrained), name)
        check_multiple("INPUT.IMAGE_SIZE", image_size, "the backbone's patch size", visual.patch_size[0])
        super().__init__(
            width=visual.conv1.out_channels,
            patch_size=visual.patch_size[0],
            cls_token=cls_token,
            pixel_stats=(PIXEL_MEAN, PIXEL_STD) if pretrained else None,
        )
        blocks = visual.transformer.resblocks
        number = _checked_tap(tap, len(blocks))
        self.conv1, self.ln_pre = visual.conv1, visual.ln_pre
        self.class_embedding = visual.class_embedding
        self.positional_embedding = nn.Parameter(
            _resized_positions(visual.positional_embedding.detach(), visual.grid_size, image_size // self.patch_size)
        )
        self.blocks = nn.ModuleList(blocks[:number])
        self.norm: nn.Module = visual.ln_post if tap == 0 else nn.Identity()
        self.freeze(self.blocks)

    def tokens(self, images: Tensor) -> Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(images.shape[0], 1, -1)
        x = self.ln_pre(torch.cat([cls, patches], dim=1) + self.positional_embedding)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x if self.cls_token else x[:, 1:]


def create_timm_vit(name: str, pretrained: str, image_size: int) -> VisionTransformer:
    """A timm vision transformer without its classifier.

    Raises:
        ValueError: unknown name or tag, no vision transformer, or a file that does not hold its weights.
        DownloadFailed: the weights of a tag cannot be downloaded.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models("*vit*"), n=3)
        raise ValueError(
            f"unknown timm model {name!r}" + (f"; did you mean {' or '.join(map(repr, close))}?" if close else "")
        )
    if not is_model_in_modules(name, {"vision_transformer"}):
        raise ValueError(f"{name!r} is not one of timm's plain vision transformers")
    settings: dict[str, Any] = {"num_classes": 0, "img_size": image_size}
    if pretrained == "":
        with torch.random.fork_rng(devices=[]):  # the same random weights in every process
            torch.manual_seed(0)
            return timm.create_model(name, pretrained=False, **settings)
    if (path := Path(pretrained).expanduser()).is_file():
        vit = timm.create_model(name, pretrained=False, **settings)
        _load_weights(vit, path, name)
        return vit
    if pretrained not in timm_tags(name):
        raise ValueError(
            f"PRETRAINED {pretrained!r} is neither a weights file nor a timm tag of {name!r} "
            f"(tags: {', '.join(timm_tags(name))})"
        )
    try:
        return timm.create_model(f"{name}.{pretrained}", pretrained=True, **settings)
    except (OSError, RuntimeError) as error:
        raise DownloadFailed(
            f"the weights {pretrained!r} of {name!r} could not be loaded ({error}). Without a network, fetch them "
            "elsewhere and set MODEL.EPSILON.BACKBONE.PRETRAINED to the file's path."
        ) from error


def _load_weights(vit: VisionTransformer, path: Path, name: str) -> None:
    """Weights of a file, without those of its classifier; position embeddings are interpolated.

    Raises:
        ValueError: a weight is missing, is one too many, or has another shape.
    """
    read_weights(path, f"file of weights of {name!r}", mapped=True)  # says what is wrong with it, if something is
    state = checkpoint_filter_fn(load_state_dict(str(path), weights_only=True), vit)
    state = {key: value for key, value in state.items() if not key.startswith(("head.", "head_dist.", "pre_logits."))}
    try:
        vit.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} does not hold the weights of {name!r}, give a file that does: {reason[:300]}") from error
    check_tensors(vit.state_dict(), str(path))


def timm_tags(name: str) -> list[str]:
    """Tags of the weights that timm knows for the model ``name``."""
    return [entry.partition(".")[2] for entry in timm.list_pretrained(f"{name}.*")]


def _pixel_stats(vit: VisionTransformer) -> PixelStats:
    mean, std = (tuple(255 * value for value in vit.pretrained_cfg[key]) for key in ("mean", "std"))
    return mean, std


def _checked_tap(tap: int, depth: int) -> int:
    """Number of blocks that run."""
    if not 0 <= tap <= depth:
        raise ValueError(f"MODEL.EPSILON.BACKBONE.TAP must be 0 (the last block) or 1 to {depth}, got {tap}")
    return tap or depth


def _resized_positions(positions: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """``positions`` (1 + h*w, D) of a ``grid`` (h, w), [CLS] first -> (1 + side * side, D)."""
    if tuple(grid) == (side, side):
        return positions
    patches = positions[1:].reshape(1, *grid, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], patches.flatten(2).transpose(1, 2)[0]])
