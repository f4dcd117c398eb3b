"""AlignZeg (Fig. 2): the meta-architecture.

Shapes: N images, Q proposals, K classes of the vocabulary, C training classes, D embedding.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from alignzeg_d2.modeling.clip_image_encoder import ClipImageEncoder
from alignzeg_d2.modeling.criterion import Criterion, LossWeights, Predictions
from alignzeg_d2.modeling.feature_fusion import FeatureFusion
from alignzeg_d2.modeling.gepc.classifier import ProposalClassifier
from alignzeg_d2.modeling.pbc import ClassIndicator
from alignzeg_d2.modeling.pixel_decoder import PIXEL_DECODER_REGISTRY
from alignzeg_d2.modeling.semantic_decoder import SEMANTIC_DECODER_REGISTRY
from alignzeg_d2.postprocessing import (
    POSTPROCESSOR_REGISTRY,
    best_classes,
    class_probabilities,
    semantic_scores,
    upsampled_strips,
)
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.clip_loader import create_clip, fingerprint
from zeroshot_d2.datasets.sem_seg import IGNORE_LABEL
from zeroshot_d2.frozen import guard_checkpoints
from zeroshot_d2.label_embeddings import ClipTextEmbeddings, get_templates
from zeroshot_d2.vocabulary import split_of_dataset, training_vocabulary, vocabulary_of

logger = logging.getLogger(__name__)

OUTPUTS = ("scores", "labels")


@META_ARCH_REGISTRY.register()
class AlignZeg(nn.Module):
    """Zero-shot semantic segmentation with mutually-refined proposals (MRPE), generalization-enhanced classification
    (GEPC) and predictive bias correction (PBC)."""

    pixel_mean: Tensor
    pixel_std: Tensor

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
        classifier: ProposalClassifier,
        class_indicator: ClassIndicator | None,
        criterion: Criterion,
        postprocessor: Any,
        text_embeddings: ClipTextEmbeddings,
        clip_identity: dict[str, str],
        trained_classes: Collection[str],
        default_dataset: str | None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        output: str = "scores",
        background_in_softmax: bool = True,
        return_proposals: bool = False,
        chunk_pixels: int = 262144,
    ) -> None:
        """
        Args:
            image_encoder: gives Z_enc.
            clip_image_encoder: gives Z_clip and the tokens for the semantic decoder.
            clip_resolution: side of CLIP's input as a share of the image's.
            feature_fusion, pixel_decoder, semantic_decoder, classifier, class_indicator: the boxes of Fig. 2;
                ``class_indicator`` is None for a model without PBC.
            criterion: Eq. 8.
            postprocessor: corrects class logits at test time.
            text_embeddings: prompts -> T (K, D).
            clip_identity: name, tag and fingerprint of CLIP; written into checkpoints and compared when they are loaded.
            trained_classes: names (and prompt texts) of the classes that training knows; they are "seen".
            default_dataset: whose vocabulary inputs get that name neither a data set nor a vocabulary.
            pixel_mean, pixel_std: per channel.
            output: "scores" or "labels".
            background_in_softmax: drop the background behind the softmax rather than before it.
            return_proposals: also return masks, logits and class indicator of the proposals.
            chunk_pixels: output pixels computed at once.

        Raises:
            ValueError: unknown ``output``, or a ``clip_resolution`` that does not bring whole patches to CLIP.
        """
        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(f"MODEL.ALIGNZEG.TEST.OUTPUT must be one of {OUTPUTS}, got {output!r}")
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
        self.classifier = classifier
        self.class_indicator = class_indicator
        self.criterion = criterion
        self.postprocessor = postprocessor
        self.text_embeddings = text_embeddings
        self.trained_classes = frozenset(trained_classes)
        self.default_dataset = default_dataset
        self.output = output
        self.background_in_softmax = background_in_softmax
        self.return_proposals = return_proposals
        self.chunk_pixels = chunk_pixels
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        guard_checkpoints(self, ["clip_image_encoder", "semantic_decoder"], {"CLIP": clip_identity})

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        alignzeg = cfg.MODEL.ALIGNZEG
        clip = create_clip(alignzeg.CLIP.NAME, alignzeg.CLIP.PRETRAINED)
        identity = {
            "name": alignzeg.CLIP.NAME,
            "pretrained": alignzeg.CLIP.PRETRAINED,
            "sha256": fingerprint(clip),
        }
        text_embeddings = ClipTextEmbeddings(
            name=alignzeg.CLIP.NAME,
            pretrained=alignzeg.CLIP.PRETRAINED,
            templates=get_templates(alignzeg.CLIP.TEMPLATES),
            weights_hash=identity["sha256"],
        )
        training = [split_of_dataset(name) for name in cfg.DATASETS.TRAIN]
        for split in [*training, *(split_of_dataset(name) for name in cfg.DATASETS.TEST)]:
            text_embeddings(split.prompts, clip)  # while the text tower is at hand

        image_encoder = build_backbone(cfg)
        width = image_encoder.output_shape()["z_enc"].channels
        num_layers = len(clip.visual.transformer.resblocks) - alignzeg.SEMANTIC_DECODER.NUM_LAYERS
        clip_image_encoder = ClipImageEncoder(
            clip.visual, num_layers=num_layers, tap=alignzeg.CLIP.TAP, num_prompts=alignzeg.CLIP.NUM_PROMPTS
        )
        semantic_decoder = SEMANTIC_DECODER_REGISTRY.get(alignzeg.SEMANTIC_DECODER.NAME)(
            clip.visual, num_layers=alignzeg.SEMANTIC_DECODER.NUM_LAYERS
        )
        num_queries = alignzeg.PIXEL_DECODER.NUM_QUERIES
        if alignzeg.PBC.ENABLED and num_queries < alignzeg.PBC.TOP_K:
            raise ValueError(
                f"MODEL.ALIGNZEG.PBC.TOP_K={alignzeg.PBC.TOP_K} exceeds PIXEL_DECODER.NUM_QUERIES={num_queries}"
            )
        embedding = clip.visual.output_dim
        return {
            "image_encoder": image_encoder,
            "clip_image_encoder": clip_image_encoder,
            "clip_resolution": alignzeg.CLIP.RESOLUTION,
            "feature_fusion": FeatureFusion(clip_width=clip_image_encoder.width, width=width),
            "pixel_decoder": PIXEL_DECODER_REGISTRY.get(alignzeg.PIXEL_DECODER.NAME).build(
                width=width,
                num_queries=num_queries,
                num_bias_heads=semantic_decoder.num_heads if alignzeg.SEMANTIC_DECODER.BIAS_PER_HEAD else 1,
                cfg=alignzeg.PIXEL_DECODER,
            ),
            "semantic_decoder": semantic_decoder,
            "classifier": ProposalClassifier(
                width=embedding,
                num_background_prototypes=alignzeg.GEPC.NUM_BACKGROUND_PROTOTYPES,
                logit_scale=clip.logit_scale.exp().item(),
            ),
            "class_indicator": (
                ClassIndicator(width=embedding, detach=alignzeg.PBC.DETACH) if alignzeg.PBC.ENABLED else None
            ),
            "criterion": Criterion(
                weights=LossWeights(
                    bc=alignzeg.LOSS.BC_WEIGHT,
                    ce=alignzeg.LOSS.CE_WEIGHT,
                    mask=alignzeg.LOSS.MASK_WEIGHT,
                    dice=alignzeg.LOSS.DICE_WEIGHT,
                    vir=alignzeg.LOSS.VIR_WEIGHT,
                    reg=alignzeg.LOSS.REG_WEIGHT,
                    no_object=alignzeg.LOSS.NO_OBJECT_WEIGHT,
                ),
                ignore_label=IGNORE_LABEL,
                num_points=alignzeg.LOSS.NUM_POINTS,
                oversample_ratio=alignzeg.LOSS.OVERSAMPLE_RATIO,
                importance_sample_ratio=alignzeg.LOSS.IMPORTANCE_SAMPLE_RATIO,
                exclude_ignored_pixels=alignzeg.LOSS.EXCLUDE_IGNORED_PIXELS,
                feature_expansion=alignzeg.GEPC.FEATURE_EXPANSION,
                mixup_alpha=alignzeg.GEPC.ALPHA,
                exclude_same_class=alignzeg.GEPC.EXCLUDE_SAME_CLASS,
                top_k=alignzeg.PBC.TOP_K,
            ),
            "postprocessor": POSTPROCESSOR_REGISTRY.get(alignzeg.PBC.POSTPROCESSOR)(gamma=alignzeg.PBC.GAMMA),
            "text_embeddings": text_embeddings,
            "clip_identity": identity,
            "trained_classes": {text for split in training for text in _texts_of(split)},
            "default_dataset": cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else None,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "output": alignzeg.TEST.OUTPUT,
            "background_in_softmax": alignzeg.TEST.BACKGROUND_IN_SOFTMAX,
            "return_proposals": alignzeg.TEST.RETURN_PROPOSALS or alignzeg.TEST.ORACLE,
            "chunk_pixels": alignzeg.TEST.CHUNK_PIXELS,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def size_divisibility(self) -> int:
        """Image sides are padded to a multiple of this: both encoders then see whole patches."""
        return math.lcm(self.image_encoder.size_divisibility, self.clip_stride)

    @property
    def clip_stride(self) -> int:
        """Pixels of the image to one patch of CLIP."""
        return round(self.clip_image_encoder.patch_size / self.clip_resolution)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """
        Args:
            batched_inputs: a dict per image with

                * ``image``: (3, H, W) in the format of cfg.INPUT.FORMAT;
                * ``sem_seg``: (H, W) class indices, for training;
                * ``height``, ``width``: size of the output, by default that of ``image``;
                * ``vocabulary``: class names or a ClassSplit; else ``dataset_name``: a registered data set, whose vocabulary
                  is used; else that of cfg.DATASETS.TEST[0].

        Returns:
            in training a dict of weighted losses; otherwise a dict per image with ``sem_seg`` (K, H, W), the score of each
            class of the vocabulary in its order, or ``sem_seg_labels`` (H, W), the index of the best, and ``sem_seg_best``
            (H, W), its score; and ``proposals`` when asked for: ``mask_logits`` (Q, h, w) covering the image,
            ``class_logits`` and ``corrected_logits`` (Q, K + 1), ``class_indicator`` (Q,) or None, ``features`` (Q, D).
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = ImageList.from_tensors([self._normalise(x) for x in batched_inputs], self.size_divisibility)
        sem_seg = ImageList.from_tensors(
            [x["sem_seg"].to(self.device) for x in batched_inputs], self.size_divisibility, pad_value=IGNORE_LABEL
        )
        prototypes = self._prototypes(training_vocabulary(batched_inputs, self.default_dataset))

        mask_logits, features = self.extract_proposals(images.tensor)
        refined = self.classifier.refine(features)
        predictions = Predictions(
            class_logits=self.classifier(refined, prototypes),
            mask_logits=mask_logits,
            refined_features=refined,
            indicator_logits=self.class_indicator(features) if self.class_indicator is not None else None,
        )
        return self.criterion(
            predictions,
            sem_seg.tensor,
            prototypes=prototypes,
            background_prototypes=self.classifier.background_prototypes,
            logit_scale=self.classifier.logit_scale,
        )

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

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Images of one padded size run together; each gives what it gives alone."""
        images = [self._normalise(x) for x in batched_inputs]
        vocabularies = [vocabulary_of(x, self.default_dataset) for x in batched_inputs]
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            groups[self._padded_size(image)].append(index)
        results: dict[int, dict[str, Any]] = {}
        for padded_size, indices in groups.items():
            batch = ImageList.from_tensors([images[i] for i in indices], self.size_divisibility)
            mask_logits, features = self.extract_proposals(batch.tensor)
            for i, image_masks, image_features in zip(indices, mask_logits, features, strict=True):
                results[i] = self._segment(
                    batched_inputs[i],
                    vocabularies[i],
                    image_masks.float(),
                    image_features,
                    image_size=(images[i].shape[-2], images[i].shape[-1]),
                    padded_size=padded_size,
                )
        return [results[i] for i in range(len(images))]

    def _segment(
        self,
        inputs: dict[str, Any],
        vocabulary: ClassSplit,
        mask_logits: Tensor,
        features: Tensor,
        *,
        image_size: tuple[int, int],
        padded_size: tuple[int, int],
    ) -> dict[str, Any]:
        """One image: ``mask_logits`` (Q, h, w) and ``features`` (Q, D) -> its output."""
        logits = self.classifier(self.classifier.refine(features), self._prototypes(vocabulary)).float()
        indicator = self.class_indicator(features).float().sigmoid() if self.class_indicator is not None else None
        corrected = self.postprocessor(logits, indicator, self.seen_mask(vocabulary))
        probabilities = class_probabilities(corrected, background_in_softmax=self.background_in_softmax)
        region = (
            mask_logits.shape[-2] * image_size[0] / padded_size[0],
            mask_logits.shape[-1] * image_size[1] / padded_size[1],
        )
        output_size = (inputs.get("height", image_size[0]), inputs.get("width", image_size[1]))
        where: dict[str, Any] = {"region": region, "output_size": output_size, "chunk_pixels": self.chunk_pixels}
        result: dict[str, Any] = {}
        if self.output == "scores":
            result["sem_seg"] = semantic_scores(probabilities, mask_logits, **where)
        else:
            result["sem_seg_labels"], result["sem_seg_best"] = best_classes(probabilities, mask_logits, **where)
        if self.return_proposals:
            cells = (max(1, round(region[0])), max(1, round(region[1])))
            ((_, masks),) = upsampled_strips(mask_logits, region, cells, chunk_pixels=cells[0] * cells[1])
            result["proposals"] = {
                "mask_logits": masks,
                "class_logits": logits,
                "corrected_logits": corrected,
                "class_indicator": indicator,
                "features": self.classifier.refine(features).float(),
            }
        return result

    def seen_mask(self, vocabulary: ClassSplit) -> Tensor:
        """(K,) bool: classes that training knew, by name or synonym, and that the vocabulary does not call unseen."""
        trained = torch.from_numpy(vocabulary.trained_mask(self.trained_classes))
        return (trained & torch.from_numpy(vocabulary.seen_mask)).to(self.device)

    def _prototypes(self, vocabulary: ClassSplit) -> Tensor:
        return self.text_embeddings(vocabulary.prompts).to(self.device)

    def _normalise(self, inputs: dict[str, Any]) -> Tensor:
        return (inputs["image"].to(self.device) - self.pixel_mean) / self.pixel_std

    def _padded_size(self, image: Tensor) -> tuple[int, int]:
        divisor = self.size_divisibility
        height, width = (-(-side // divisor) * divisor for side in image.shape[-2:])
        return height, width


def _texts_of(split: ClassSplit) -> set[str]:
    return {*split.names, *(synonym for synonyms in split.synonyms for synonym in synonyms)}
