"""The frozen backbone (Fig. 2, left): an image becomes the token features F.

Shapes: N images, L tokens (the paper's N), D width, h * w = L patches.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from open_clip.timm_model import TimmModel
from timm.models import eva, get_pretrained_cfg, is_model_in_modules, load_state_dict, vision_transformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from zeroshot_d2.clip.loader import DownloadFailed, create_clip, fingerprint, is_tag, pixel_stats
from zeroshot_d2.clip.towers import Tower, checked_vision_tower, resize_positions, tower_of
from zeroshot_d2.pixel_stats import PixelStats
from zeroshot_d2.ranges import about, check_multiple
from zeroshot_d2.weights import check_tensors, read_weights

# What is tried of timm's, in docs/backbones.md.
TRIED = (
    "vit_base_patch16_224",
    "deit3_base_patch16_224",
    "vit_base_patch14_dinov2",
    "vit_base_patch14_reg4_dinov2",
    "eva02_base_patch14_224",
    "vit_base_patch16_siglip_224",
)


class FrozenViT(Backbone):
    """A vision transformer that never learns: no gradient, no dropout, and no activation kept for a backward pass.

    Output: ``{"tokens": F (N, L, D)}``.

    Attributes:
        pixel_stats: those that the weights may have been trained with; none where that is not known.
        known_weights: whether it is certain that the weights were trained with one of them.
        patch_size: in pixels.
        cls_token: whether [CLS] is the first of the L tokens.
        identity: a hash of the weights of the blocks that run. Position embeddings are not in it: interpolated ones may
            differ in the last bit between machines.
    """

    def __init__(
        self,
        vit: Any,
        *,
        name: str,
        patch_size: int,
        image_size: int,
        tap: int,
        cls_token: bool,
        pixel_stats: Sequence[PixelStats],
        known_weights: bool,
    ) -> None:
        """
        Args:
            vit: of timm, or with its interface, built for ``image_size``.
            name: of it, for messages.
            patch_size: in pixels.
            image_size: side of the images in pixels.
            tap: number of the block whose output is F; 0 for the last one, behind the final norm.
            cls_token: keep [CLS] among the tokens.
            pixel_stats, known_weights: see above.

        Raises:
            ValueError: ``tap`` lies beyond the last block, patches do not fill the image, or there is no [CLS] to keep.
        """
        super().__init__()
        self.patch_size = patch_size
        check_multiple("INPUT.IMAGE_SIZE", image_size, "the backbone's patch size", self.patch_size)
        if cls_token and vit.cls_token is None:
            raise ValueError(f"{name!r} has no [CLS] token: set MODEL.EPSILON.BACKBONE.CLS_TOKEN False")
        self.width, self.cls_token = int(vit.embed_dim), cls_token
        self.pixel_stats, self.known_weights = pixel_stats, known_weights
        del vit.blocks[_checked_tap(tap, len(vit.blocks)) :]
        if tap:
            vit.norm = nn.Identity()
        self.vit = vit
        self.identity = fingerprint(vit.blocks)
        self.requires_grad_(False)
        self.eval()

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

    def train(self, mode: bool = True) -> FrozenViT:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``images`` (N, 3, H, W), normalised; H and W are the side that the backbone was built for."""
        tokens = self.vit.forward_features(images)
        patches = tokens[:, self.vit.num_prefix_tokens :]  # without registers, which tell nothing of a place
        return {"tokens": torch.cat([tokens[:, :1], patches], dim=1) if self.cls_token else patches}

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
            image_size, tap, cls_token: as for :class:`FrozenViT`.

        Raises:
            ValueError: unknown name or tag, weights that do not fit, or as :class:`FrozenViT`.
            DownloadFailed: the weights of a tag cannot be downloaded.
        """
        with about("MODEL.EPSILON.BACKBONE", NAME=name, PRETRAINED=pretrained):
            vit = create_timm_vit(name, pretrained, image_size)
        tags = timm_tags(name)
        known_weights = pretrained in tags
        used = [pretrained] if known_weights else tags if pretrained else []
        stats = [PixelStats.of_pretrained(get_pretrained_cfg(f"{name}.{tag}").to_dict()) for tag in used]
        super().__init__(
            vit,
            name=name,
            patch_size=vit.patch_embed.patch_size[0],
            image_size=image_size,
            tap=tap,
            cls_token=cls_token,
            pixel_stats=list(dict.fromkeys(stats)),
            known_weights=known_weights,
        )


@BACKBONE_REGISTRY.register()
class ClipViT(FrozenViT):
    """The image tower of a CLIP, by open_clip's name; "demo-world-clip" is the small one of the demo world."""

    @configurable
    def __init__(self, *, name: str, pretrained: str, image_size: int, tap: int = 0, cls_token: bool = False) -> None:
        """Args as for :class:`TimmViT`, ``name`` and ``pretrained`` as for :func:`zeroshot_d2.clip.loader.create_clip`.

        Raises:
            ValueError: the image tower gives no tokens, or ``tap`` lies beyond its last block.
        """
        with about("MODEL.EPSILON.BACKBONE", NAME=name, PRETRAINED=pretrained):
            visual = checked_vision_tower(create_clip(name, pretrained), name, cls_token=False)
        # timm's own forward pass serves its plain vision transformers, such as SigLIP's.
        is_timm = isinstance(visual, TimmModel) and isinstance(visual.trunk, VisionTransformer)
        trunk: Any = visual.trunk if is_timm else ClipTokens(tower_of(visual))
        trunk.set_input_size(image_size)
        super().__init__(
            trunk,
            name=name,
            patch_size=trunk.patch_embed.patch_size[0] if is_timm else trunk.patch_size,
            image_size=image_size,
            tap=tap,
            cls_token=cls_token,
            pixel_stats=pixel_stats(name, pretrained),
            known_weights=is_tag(name, pretrained),
        )


class ClipTokens(nn.Module):
    """An image tower with [CLS] with as much of timm's interface as a backbone needs."""

    num_prefix_tokens = 1

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.embed_dim = tower.width
        self.patch_embed, self.patch_size = tower.patch_embedding, tower.patch_size
        self.cls_token, self.positional_embedding = tower.class_embedding, tower.positional_embedding
        self.norm_pre, self.blocks, self.norm = tower.norm_pre, nn.ModuleList(tower.blocks), tower.norm
        self.grid, self._run, self._rotation = tower.grid, tower.run, tower.rotation

    def set_input_size(self, img_size: int) -> None:
        """Lay the positions out for images of this side."""
        size = (img_size // self.patch_size, img_size // self.patch_size)
        if size != tuple(self.grid):
            positions = self.positional_embedding.detach()
            patches = resize_positions(positions[1:], self.grid, size)
            self.positional_embedding, self.grid = nn.Parameter(torch.cat([positions[:1], patches])), size

    def forward_features(self, images: Tensor) -> Tensor:
        """``images`` (N, 3, H, W) -> (N, 1 + L, D), [CLS] first."""
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        cls = self.cls_token.expand(images.shape[0], 1, -1)
        x = self.norm_pre(torch.cat([cls, patches], dim=1) + self.positional_embedding)
        rotation = None if self._rotation is None else self._rotation(self.grid, x.device)
        for block in self.blocks:
            x = self._run(block, x, rotation)
        return self.norm(x)


def create_timm_vit(name: str, pretrained: str, image_size: int) -> VisionTransformer | Eva:
    """A timm vision transformer without its classifier.

    Raises:
        ValueError: unknown name or tag, no vision transformer, or a file that does not hold its weights.
        DownloadFailed: the weights of a tag cannot be downloaded.
    """
    base, _, tag = name.partition(".")
    if tag and timm.is_model(base):
        raise ValueError(f"{name!r} has its tag in its name: set NAME {base!r} and PRETRAINED {tag!r}")
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models("*vit*"), n=3)
        raise ValueError(
            f"unknown timm model {name!r}" + (f"; did you mean {' or '.join(map(repr, close))}?" if close else "")
        )
    if not is_model_in_modules(name, {"vision_transformer", "deit", "eva"}):
        raise ValueError(
            f"{name!r} is not one of timm's vision transformers that give a token per patch. What works: "
            f"{', '.join(TRIED)} and their kin, see docs/backbones.md"
        )
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


def _load_weights(vit: VisionTransformer | Eva, path: Path, name: str) -> None:
    """Weights of a file, without those of its classifier; position embeddings are interpolated.

    Raises:
        ValueError: a weight is missing, is one too many, or has another shape.
    """
    read_weights(path, f"file of weights of {name!r}", mapped=True)  # says what is wrong with it, if something is
    checkpoint_filter_fn = eva.checkpoint_filter_fn if isinstance(vit, Eva) else vision_transformer.checkpoint_filter_fn
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


def _checked_tap(tap: int, depth: int) -> int:
    """Number of blocks that run."""
    if not 0 <= tap <= depth:
        raise ValueError(f"MODEL.EPSILON.BACKBONE.TAP must be 0 (the last block) or 1 to {depth}, got {tap}")
    return tap or depth
