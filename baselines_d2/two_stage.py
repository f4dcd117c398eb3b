"""SimBaseline (Xu et al., ECCV 2022) and ZegFormer (Ding et al., CVPR 2022) in their common form: two stages.

First a network proposes masks, each with features in CLIP's space that are compared with the text prototypes. Then CLIP
looks at the crop of each mask, and both classifications are combined: a seen class is mostly the network's to judge, an
unseen one CLIP's. Decoder and objective are those of AlignZeg's baseline, so that a comparison is one of how proposals are
classified.

Shapes: N images, Q proposals, V of them with pixels, K classes of the vocabulary, D width, E embedding, (H, W) the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from torch import Tensor
from torchvision.ops import masks_to_boxes

from alignzeg_d2.config import add_image_encoder_config, add_proposal_config, leave_out_gepc_and_pbc
from alignzeg_d2.inference import Classified, Seen, of_scores
from alignzeg_d2.modeling.pixel_decoder import mlp
from alignzeg_d2.modeling.transformer_decoder import QueryDecoder
from alignzeg_d2.proposal_segmenter import ProposalSegmenter
from alignzeg_d2.system import build_evaluator
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.clip.frozen_clip import FrozenClip
from zeroshot_d2.clip.text import template_set
from zeroshot_d2.clip.towers import VisionTower
from zeroshot_d2.defaults import plain_defaults
from zeroshot_d2.frozen import leave_out_frozen
from zeroshot_d2.ranges import check_multiple, check_ranges, choice, declare, number, whole
from zeroshot_d2.segmentation.config import add_segmentation_config
from zeroshot_d2.system import System

ENSEMBLES = ("simbaseline", "zegformer", "none")


# ------------------------------------------------------------------------------------------------------------ config
def add_two_stage_config(cfg: CfgNode) -> None:
    """Add ``cfg.MODEL.TWO_STAGE``, and below ``cfg.MODEL.ALIGNZEG`` what the network shares with AlignZeg."""
    add_segmentation_config(cfg)
    add_proposal_config(cfg)
    leave_out_gepc_and_pbc(cfg)
    add_image_encoder_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "TwoStage"

    two_stage = cfg.MODEL.TWO_STAGE = CfgNode()

    # ---- CLIP: the text prototypes, and the second stage ----
    two_stage.CLIP = CfgNode()
    # An open_clip model name. OpenAI's weights need QuickGELU, hence "-quickgelu".
    two_stage.CLIP.NAME = "ViT-B-16-quickgelu"
    # An open_clip tag, a local weights file, "bundled" (the demo world's CLIP) or "" (random weights).
    two_stage.CLIP.PRETRAINED = "openai"
    # What stands for a class in the templates, and the templates, as for MODEL.ALIGNZEG.CLIP.
    two_stage.CLIP.NAMES = "released"
    two_stage.CLIP.TEMPLATES = "vild"

    # ---- proposals: queries in a transformer decoder ----
    two_stage.DECODER = CfgNode()
    two_stage.DECODER.NUM_QUERIES = 100
    two_stage.DECODER.LAYERS = 6
    two_stage.DECODER.HEADS = 8

    # ---- the second stage, at test time ----
    two_stage.CROPS = CfgNode()
    # How CLIP's view of the crops is combined with the network's: "simbaseline", "zegformer" (CLIP does not tell seen
    # classes apart: each gets their mean), or "none" for the first stage alone.
    two_stage.CROPS.ENSEMBLE = "simbaseline"
    # The exponent of the network's probability of a seen class, and of CLIP's of an unseen one; the other of the two has the
    # rest up to 1. SimBaseline: 0.8 on COCO-Stuff, 0.7 on VOC; ZegFormer: 2/3.
    two_stage.CROPS.WEIGHT = 0.8
    # A pixel belongs to a proposal's crop where the mask is above this.
    two_stage.CROPS.THRESHOLD = 0.5

    # Taken from a pixel's scores of the seen classes: 0.1 in ZegFormer.
    two_stage.SEEN_DISCOUNT = 0.0


declare(
    "MODEL.TWO_STAGE",
    {
        "CLIP.NAMES": choice("released", "reworded"),
        "CLIP.TEMPLATES": template_set(),
        "DECODER.NUM_QUERIES": whole(1),
        "DECODER.LAYERS": whole(1),
        "DECODER.HEADS": whole(1),
        "CROPS.ENSEMBLE": choice(*ENSEMBLES),
        "CROPS.WEIGHT": number(0, 1),
        "CROPS.THRESHOLD": number(0, below=1),
        "SEEN_DISCOUNT": number(0),
    },
)


# ------------------------------------------------------------------------------------------------------- first stage
class ProposalDecoder(QueryDecoder):
    """Masks, and features in CLIP's space, of what the queries have become."""

    def __init__(self, *, width: int, embedding: int, **decoder: Any) -> None:
        """``width`` is D, ``embedding`` E; the rest as for ``QueryDecoder``."""
        super().__init__(width=width, **decoder)
        self.class_mlp = mlp(width, width, embedding)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``z`` (N, D, h, w) -> mask logits (N, Q, h, w) and features (N, Q, E)."""
        decoded, mask_queries, features = self.decode(z)
        masks = torch.einsum("nqd,nld->nql", mask_queries, features).unflatten(-1, z.shape[-2:])
        return masks, self.class_mlp(decoded)


# ------------------------------------------------------------------------------------------------------ second stage
def masked_crops(image: Tensor, masks: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What each mask shows: its box of the image, of which the pixels outside of the mask are the mean colour.

    Args:
        image: (3, H, W), normalised, so that the mean colour is 0.
        masks: (Q, H, W) bool.
        size: height and width of the crops.

    Returns:
        crops (V, 3, *size) of the masks that have pixels, and which these are (Q,).
    """
    present = masks.flatten(1).any(dim=1)
    crops = image.new_empty(int(present.sum()), len(image), *size)
    # masks_to_boxes gives the first and the last pixel
    for crop, mask, box in zip(crops, masks[present], masks_to_boxes(masks[present]).long().tolist(), strict=True):
        where = (..., slice(box[1], box[3] + 1), slice(box[0], box[2] + 1))
        shown = image[where] * mask[where]
        crop[:] = F.interpolate(shown[None], size=size, mode="bicubic", align_corners=False)[0]
    return crops, present


def ensemble(network: Tensor, clip: Tensor, seen: Tensor, weight: float) -> Tensor:
    """The geometric mean of two classifications, with other weights for seen classes than for unseen ones.

    Args:
        network, clip: probabilities (Q, K).
        seen: (K,) bool.
        weight: of the network for seen classes, and of CLIP for unseen ones.
    """
    return torch.where(seen, network**weight * clip ** (1 - weight), network ** (1 - weight) * clip**weight)


# ------------------------------------------------------------------------------------------------- meta-architecture
@META_ARCH_REGISTRY.register()
class TwoStage(ProposalSegmenter):
    """Proposals by a network, whose classes CLIP judges too."""

    classifies_features_alone = False

    @plain_defaults()
    @configurable
    def __init__(
        self,
        *,
        image_encoder: Backbone,
        decoder: ProposalDecoder,
        clip_visual: VisionTower,
        clip_identity: dict[str, str],
        ensemble_form: str,
        weight: float,
        threshold: float = 0.5,
        seen_discount: float = 0.0,
        **parts: Any,
    ) -> None:
        """
        Args:
            image_encoder: gives {"z_enc": (N, D, h, w)}.
            decoder: makes proposals of it.
            clip_visual: CLIP's image tower, for the crops.
            clip_identity: name, tag and fingerprint of CLIP; written into checkpoints and compared when they are loaded.
            ensemble_form: "simbaseline", "zegformer" or "none".
            weight, threshold: MODEL.TWO_STAGE.CROPS.
            seen_discount: taken from the scores of seen classes.
            parts: what classifies the proposals, as for :class:`~alignzeg_d2.proposal_segmenter.ProposalSegmenter`.
        """
        super().__init__(**parts)
        self.image_encoder, self.decoder = image_encoder, decoder
        self.clip_visual = clip_visual
        for parameter in clip_visual.parameters():
            parameter.requires_grad_(False)
        self.ensemble_form, self.weight, self.threshold = ensemble_form, weight, threshold
        self.seen_discount = seen_discount
        leave_out_frozen(self, ["clip_visual"], {"CLIP": clip_identity})

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_ranges(cfg)
        two_stage = cfg.MODEL.TWO_STAGE
        clip = FrozenClip.of_config(cfg, "TWO_STAGE", cls_token=False)
        image_encoder = build_backbone(cfg)
        width, heads = image_encoder.output_shape()["z_enc"].channels, two_stage.DECODER.HEADS
        check_multiple("the image encoder's width", width, "MODEL.TWO_STAGE.DECODER.HEADS", heads)
        return {
            "image_encoder": image_encoder,
            "decoder": ProposalDecoder(
                width=width,
                embedding=clip.embedding_dim,
                num_queries=two_stage.DECODER.NUM_QUERIES,
                num_layers=two_stage.DECODER.LAYERS,
                num_heads=heads,
            ),
            "clip_visual": clip.visual,
            "clip_identity": clip.identity,
            "ensemble_form": two_stage.CROPS.ENSEMBLE,
            "weight": two_stage.CROPS.WEIGHT,
            "threshold": two_stage.CROPS.THRESHOLD,
            "seen_discount": two_stage.SEEN_DISCOUNT,
            **cls.parts_of_config(cfg, clip, num_queries=two_stage.DECODER.NUM_QUERIES),
        }

    def train(self, mode: bool = True) -> TwoStage:
        """CLIP stays in evaluation mode."""
        super().train(mode)
        self.clip_visual.eval()
        return self

    @property
    def size_divisibility(self) -> int:
        return self.image_encoder.size_divisibility

    def extract_proposals(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.decoder(self.image_encoder(images)["z_enc"])

    def classified(self, seen: Seen, vocabulary: ClassSplit) -> Classified:
        by_network = super().classified(seen, vocabulary)
        if self.ensemble_form == "none":
            return by_network
        height, width = seen.image.shape[-2:]
        masks = F.interpolate(seen.mask_logits[None], size=seen.padded_size, mode="bilinear", align_corners=False)[0]
        masks = masks[:, :height, :width].sigmoid() > self.threshold
        by_clip = self.clip_probabilities(seen.image, masks, by_network.found.class_logits[:, -1], vocabulary)
        probabilities = ensemble(
            by_network.placed.probabilities, by_clip, seen=self.seen_mask(vocabulary), weight=self.weight
        )
        return replace(by_network, placed=replace(by_network.placed, probabilities=probabilities))

    def segment(self, seen: Sequence[Seen], vocabulary: ClassSplit, *, output: str, **wanted: Any) -> dict[str, Any]:
        if self.seen_discount == 0:
            return super().segment(seen, vocabulary, output=output, **wanted)
        result = super().segment(seen, vocabulary, output="scores", **wanted)
        scores = result.pop("sem_seg") - self.seen_discount * self.seen_mask(vocabulary).float()[:, None, None]
        return {**of_scores(scores, result.pop("sem_seg_coverage"), output), **result}

    def clip_probabilities(self, image: Tensor, masks: Tensor, background: Tensor, vocabulary: ClassSplit) -> Tensor:
        """What CLIP makes of the masked crops, all in one pass: (Q, K); 1 for a mask without pixels.

        Args:
            image: (3, H, W), normalised.
            masks: (Q, H, W) bool.
            background: (Q,) logits of the network, which "zegformer" sets against CLIP's of the classes.
            vocabulary: K classes.
        """
        height, width = self.clip_visual.image_size
        crops, present = masked_crops(image, masks, (height, width))
        found = image.new_ones(len(masks), len(vocabulary))
        if len(crops) == 0:
            return found
        with self.mixed():
            features = self.clip_visual(crops)
        unit = F.normalize(features.float(), dim=-1)
        logits = self.classifier.logit_scale * unit @ self.prototypes(vocabulary).T
        if self.ensemble_form == "simbaseline":
            found[present] = logits.softmax(dim=-1)
            return found
        probabilities = torch.cat([logits, background[present, None].float()], dim=-1).softmax(dim=-1)[:, :-1]
        seen = self.seen_mask(vocabulary)
        if seen.any():
            probabilities[:, seen] = probabilities[:, seen].mean(dim=1, keepdim=True)
        found[present] = probabilities
        return found


SYSTEM = System(
    name="TwoStage",
    task="segmentation",
    add_config=add_two_stage_config,
    evaluator=build_evaluator,
    parts={"predictor": "alignzeg_d2.predictor:AlignZegPredictor"},
)
