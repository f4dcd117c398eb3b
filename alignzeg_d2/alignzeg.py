"""AlignZeg (Fig. 2): the meta-architecture.

Shapes: N images, Q proposals, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from torch import Tensor, nn

from alignzeg_d2.modeling.clip_image_encoder import ClipImageEncoder
from alignzeg_d2.modeling.feature_fusion import FeatureFusion
from alignzeg_d2.modeling.pixel_decoder import PIXEL_DECODER_REGISTRY
from alignzeg_d2.modeling.semantic_decoder import SEMANTIC_DECODER_REGISTRY
from alignzeg_d2.proposal_segmenter import ProposalSegmenter
from zeroshot_d2.clip.frozen_clip import FrozenClip
from zeroshot_d2.clip.towers import tower_of
from zeroshot_d2.defaults import plain_defaults
from zeroshot_d2.frozen import leave_out_frozen
from zeroshot_d2.ranges import check_ranges, declare, registered

declare(
    "MODEL.ALIGNZEG",
    {
        "PIXEL_DECODER.NAME": registered(PIXEL_DECODER_REGISTRY),
        "SEMANTIC_DECODER.NAME": registered(SEMANTIC_DECODER_REGISTRY),
    },
)


@META_ARCH_REGISTRY.register()
class AlignZeg(ProposalSegmenter):
    """Zero-shot semantic segmentation with mutually-refined proposals (MRPE), generalization-enhanced classification
    (GEPC) and predictive bias correction (PBC)."""

    compiled_parts = ("image_encoder", "clip_image_encoder")

    @plain_defaults()
    @configurable
    def __init__(
        self,
        *,
        image_encoder: Backbone,
        clip_image_encoder: ClipImageEncoder,
        clip_resolution: float,
        feature_fusion: FeatureFusion,
        pixel_decoder: nn.Module,
        semantic_decoder: nn.Module,
        clip_identity: dict[str, str],
        **parts: Any,
    ) -> None:
        """
        Args:
            image_encoder: gives Z_enc.
            clip_image_encoder: gives Z_clip and the tokens for the semantic decoder.
            clip_resolution: side of CLIP's input as a share of the image's.
            feature_fusion, pixel_decoder, semantic_decoder: the boxes of Fig. 2 that make proposals and their features.
            clip_identity: name, tag and fingerprint of CLIP; written into checkpoints and compared when they are loaded.
            parts: what classifies the proposals, as for :class:`~alignzeg_d2.proposal_segmenter.ProposalSegmenter`.

        Raises:
            ValueError: a ``clip_resolution`` that does not bring whole patches to CLIP, or as ``ProposalSegmenter``.
        """
        super().__init__(**parts)
        if not (clip_image_encoder.patch_size / clip_resolution).is_integer():
            raise ValueError(
                f"MODEL.ALIGNZEG.CLIP.RESOLUTION={clip_resolution} does not bring whole patches to CLIP: its patch size "
                f"{clip_image_encoder.patch_size} divided by it must be an integer, as with 1.0, 0.5 or 0.25"
            )
        self.image_encoder = image_encoder
        self.clip_image_encoder = clip_image_encoder
        self.clip_resolution = clip_resolution
        self.feature_fusion = feature_fusion
        self.pixel_decoder = pixel_decoder
        self.semantic_decoder = semantic_decoder
        leave_out_frozen(self, ["clip_image_encoder", "semantic_decoder"], {"CLIP": clip_identity})

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_ranges(cfg)
        alignzeg = cfg.MODEL.ALIGNZEG
        clip = FrozenClip.of_config(cfg, "ALIGNZEG")
        image_encoder = build_backbone(cfg)
        width = image_encoder.output_shape()["z_enc"].channels
        blocks = len(tower_of(clip.visual).blocks)
        before = blocks - alignzeg.SEMANTIC_DECODER.NUM_LAYERS
        if not 1 <= alignzeg.CLIP.TAP <= before:
            raise ValueError(
                f"MODEL.ALIGNZEG.CLIP.TAP {alignzeg.CLIP.TAP} must be one of the blocks before the semantic decoder: CLIP "
                f"has {blocks}, and MODEL.ALIGNZEG.SEMANTIC_DECODER.NUM_LAYERS {alignzeg.SEMANTIC_DECODER.NUM_LAYERS} leave "
                f"{before}"
            )
        clip_image_encoder = ClipImageEncoder(
            clip.visual,
            num_layers=before,
            tap=alignzeg.CLIP.TAP,
            num_prompts=alignzeg.CLIP.NUM_PROMPTS,
            prompt_projection=alignzeg.CLIP.PROMPT_PROJECTION,
            prompt_dropout=alignzeg.CLIP.PROMPT_DROPOUT,
            train_positions=alignzeg.CLIP.TRAIN_POSITIONS,
            checkpoint_activations=alignzeg.CLIP.CHECKPOINT_ACTIVATIONS,
        )
        semantic_decoder = SEMANTIC_DECODER_REGISTRY.get(alignzeg.SEMANTIC_DECODER.NAME)(cfg, visual=clip.visual)
        return {
            "image_encoder": image_encoder,
            "clip_image_encoder": clip_image_encoder,
            "clip_resolution": alignzeg.CLIP.RESOLUTION,
            "feature_fusion": FeatureFusion(clip_width=clip_image_encoder.width, width=width),
            "pixel_decoder": PIXEL_DECODER_REGISTRY.get(alignzeg.PIXEL_DECODER.NAME)(
                cfg,
                width=width,
                num_bias_heads=semantic_decoder.num_heads if alignzeg.SEMANTIC_DECODER.BIAS_PER_HEAD else 1,
            ),
            "semantic_decoder": semantic_decoder,
            "clip_identity": clip.identity,
            **cls.parts_of_config(cfg, clip, num_queries=alignzeg.PIXEL_DECODER.NUM_QUERIES),
        }

    @property
    def size_divisibility(self) -> int:
        """Image sides are padded to a multiple of this: both encoders then see whole patches."""
        return math.lcm(self.image_encoder.size_divisibility, self.clip_stride)

    @property
    def clip_stride(self) -> int:
        """Pixels of the image to one patch of CLIP."""
        return round(self.clip_image_encoder.patch_size / self.clip_resolution)

    def extract_proposals(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Everything that does not depend on a vocabulary.

        ``images`` (N, 3, H, W), normalised -> mask logits M (N, Q, h, w) and proposal features F (N, Q, D).
        """
        height, width = images.shape[-2:]
        patch, stride = self.clip_image_encoder.patch_size, self.clip_stride
        clip_size = (height // stride * patch, width // stride * patch)
        clip_images = images
        if clip_size != (height, width):
            clip_images = F.interpolate(images, size=clip_size, mode="bilinear", align_corners=False)
        z_clip, tokens = self.clip_image_encoder(clip_images)
        z_enc = self.image_encoder(images)["z_enc"]
        proposals = self.pixel_decoder(self.feature_fusion(z_enc, z_clip))
        features = self.semantic_decoder(tokens, proposals.attention_bias, (z_clip.shape[-2], z_clip.shape[-1]))
        return proposals.mask_logits, features
