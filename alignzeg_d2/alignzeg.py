"""AlignZeg (Fig. 2): the meta-architecture.

Shapes: N images, Q proposals, K classes of the vocabulary, C training classes, D embedding.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from alignzeg_d2.inference import (
    POSTPROCESSOR_REGISTRY,
    Classification,
    Postprocessor,
    classify,
    segment,
)
from alignzeg_d2.modeling.clip_image_encoder import ClipImageEncoder
from alignzeg_d2.modeling.criterion import Criterion, Predictions
from alignzeg_d2.modeling.feature_fusion import FeatureFusion
from alignzeg_d2.modeling.gepc.classifier import ProposalClassifier
from alignzeg_d2.modeling.pbc import ClassIndicator
from alignzeg_d2.modeling.pixel_decoder import PIXEL_DECODER_REGISTRY
from alignzeg_d2.modeling.semantic_decoder import SEMANTIC_DECODER_REGISTRY
from zeroshot_d2.checkpoint import Knowledge
from zeroshot_d2.class_split import ClassSplit, Names
from zeroshot_d2.clip.loader import checked_vision_tower, create_clip, fingerprint
from zeroshot_d2.clip.text import ClipTextEmbeddings, get_templates
from zeroshot_d2.frozen import leave_out_frozen
from zeroshot_d2.segmentation.labels import IGNORE_LABEL, check_range
from zeroshot_d2.vocabulary import is_registered, split_of_dataset, training_vocabulary, vocabulary_of

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
        postprocessor: Postprocessor,
        text_embeddings: ClipTextEmbeddings,
        names: Names,
        clip_identity: dict[str, str],
        trained_classes: Collection[str],
        default_vocabulary: ClassSplit | None,
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
            names: which texts of a vocabulary they are made of.
            clip_identity: name, tag and fingerprint of CLIP; written into checkpoints and compared when they are loaded.
            trained_classes: names and prompt texts of the classes that the model is trained on; they are "seen".
            default_vocabulary: of inputs that name neither a data set nor a vocabulary.
            pixel_mean, pixel_std: per channel.
            output: "scores" or "labels", unless a call of :meth:`inference` says otherwise.
            background_in_softmax: drop the background behind the softmax rather than before it.
            return_proposals: also return masks, logits and class indicator of the proposals, unless a call says otherwise.
            chunk_pixels: output pixels computed at once.

        Raises:
            ValueError: unknown ``output``; a ``clip_resolution`` that does not bring whole patches to CLIP; a postprocessor
                that reads a class indicator and a model without one.
        """
        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(f"MODEL.ALIGNZEG.TEST.OUTPUT must be one of {OUTPUTS}, got {output!r}")
        if postprocessor.uses_class_indicator and class_indicator is None:
            raise ValueError(f"{type(postprocessor).__name__} reads a class indicator, and the model has none")
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
        self.text_embeddings, self.names = text_embeddings, names
        self.result_facts = {"class_names": names, "templates": list(text_embeddings.templates)}
        self.trained_classes = frozenset(trained_classes)
        self.default_vocabulary = default_vocabulary
        self.output = output
        self.background_in_softmax = background_in_softmax
        self.return_proposals = return_proposals
        self.chunk_pixels = chunk_pixels
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        leave_out_frozen(self, ["clip_image_encoder", "semantic_decoder"], {"CLIP": clip_identity})

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        alignzeg = cfg.MODEL.ALIGNZEG
        if alignzeg.CLIP.NAMES not in get_args(Names):
            raise ValueError(f"MODEL.ALIGNZEG.CLIP.NAMES must be one of {get_args(Names)}, got {alignzeg.CLIP.NAMES!r}")
        clip = create_clip(alignzeg.CLIP.NAME, alignzeg.CLIP.PRETRAINED)
        visual = checked_vision_tower(clip, alignzeg.CLIP.NAME)
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
        for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            if is_registered(dataset):
                # while the text tower is at hand
                text_embeddings(split_of_dataset(dataset).prompts_for(alignzeg.CLIP.NAMES), clip=clip)
        knowledge = Knowledge.of_config(cfg, {"CLIP": identity})

        image_encoder = build_backbone(cfg)
        width = image_encoder.output_shape()["z_enc"].channels
        num_layers = len(visual.transformer.resblocks) - alignzeg.SEMANTIC_DECODER.NUM_LAYERS
        clip_image_encoder = ClipImageEncoder(
            visual,
            num_layers=num_layers,
            tap=alignzeg.CLIP.TAP,
            num_prompts=alignzeg.CLIP.NUM_PROMPTS,
            prompt_projection=alignzeg.CLIP.PROMPT_PROJECTION,
            prompt_dropout=alignzeg.CLIP.PROMPT_DROPOUT,
            train_positions=alignzeg.CLIP.TRAIN_POSITIONS,
        )
        semantic_decoder = SEMANTIC_DECODER_REGISTRY.get(alignzeg.SEMANTIC_DECODER.NAME)(cfg, visual=visual)
        postprocessor = POSTPROCESSOR_REGISTRY.get(alignzeg.PBC.POSTPROCESSOR)(cfg)
        num_queries = alignzeg.PIXEL_DECODER.NUM_QUERIES
        if postprocessor.uses_class_indicator and num_queries < alignzeg.PBC.TOP_K:
            raise ValueError(
                f"MODEL.ALIGNZEG.PBC.TOP_K={alignzeg.PBC.TOP_K} exceeds PIXEL_DECODER.NUM_QUERIES={num_queries}"
            )
        embedding = visual.output_dim
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
            "classifier": ProposalClassifier(
                width=embedding,
                num_background_prototypes=alignzeg.GEPC.NUM_BACKGROUND_PROTOTYPES,
                logit_scale=clip.logit_scale.exp().item(),
            ),
            "class_indicator": (
                ClassIndicator(width=embedding, detach=alignzeg.PBC.DETACH) if postprocessor.uses_class_indicator else None
            ),
            "criterion": Criterion(cfg),
            "postprocessor": postprocessor,
            "text_embeddings": text_embeddings,
            "names": alignzeg.CLIP.NAMES,
            "clip_identity": identity,
            "trained_classes": knowledge.trained,
            "default_vocabulary": knowledge.vocabulary,
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
                  is used; else the model's default vocabulary.

        Returns:
            in training a dict of weighted losses; otherwise what :meth:`inference` returns.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = ImageList.from_tensors([self._normalise(x) for x in batched_inputs], self.size_divisibility)
        sem_seg = ImageList.from_tensors(
            [x["sem_seg"].to(self.device) for x in batched_inputs], self.size_divisibility, pad_value=IGNORE_LABEL
        )
        vocabulary = training_vocabulary(batched_inputs, self.default_vocabulary)
        check_range(sem_seg.tensor, len(vocabulary))
        prototypes = self.prototypes(vocabulary)

        mask_logits, features = self.extract_proposals(images.tensor)
        found = self.classify(features, prototypes)
        return self.criterion(
            Predictions(found.class_logits, mask_logits, found.features, found.indicator_logits),
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

    def classify(self, features: Tensor, prototypes: Tensor) -> Classification:
        """Proposal features F (..., Q, D) and text prototypes T (K, D) -> what the network says about their classes."""
        return classify(features, prototypes, self.classifier, self.class_indicator)

    @torch.no_grad()
    def inference(
        self, batched_inputs: list[dict[str, Any]], *, output: str | None = None, proposals: bool | None = None
    ) -> list[dict[str, Any]]:
        """Images of one padded size run together; each gives what it gives alone.

        Args:
            batched_inputs: as for :meth:`forward`.
            output: "scores" or "labels"; by default what the config says.
            proposals: whether to return them; by default what the config says.

        Returns:
            a dict per image with ``sem_seg`` (K, H, W), the score of each class of the vocabulary in its order, or
            ``sem_seg_labels`` (H, W), the index of the best, and ``sem_seg_best`` (H, W), its score; and ``proposals`` when
            asked for: ``mask_logits`` (Q, h, w) covering the image, ``class_logits`` and ``corrected_logits`` (Q, K + 1),
            ``class_indicator`` (Q,) or None, ``features`` (Q, D).

        Raises:
            ValueError: unknown ``output``, or an input without a vocabulary.
        """
        output = self.output if output is None else output
        if output not in OUTPUTS:
            raise ValueError(f"the output must be one of {OUTPUTS}, got {output!r}")
        proposals = self.return_proposals if proposals is None else proposals
        images = [self._normalise(x) for x in batched_inputs]
        vocabularies = [vocabulary_of(x, self.default_vocabulary) for x in batched_inputs]
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            groups[self._padded_size(image)].append(index)
        results: dict[int, dict[str, Any]] = {}
        for padded_size, indices in groups.items():
            batch = ImageList.from_tensors([images[i] for i in indices], self.size_divisibility)
            mask_logits, features = self.extract_proposals(batch.tensor)
            for i, image_masks, image_features in zip(indices, mask_logits, features, strict=True):
                inputs, image_size = batched_inputs[i], images[i].shape[-2:]
                results[i] = segment(
                    self.classify(image_features, self.prototypes(vocabularies[i])),
                    image_masks.float(),
                    seen=self.seen_mask(vocabularies[i]),
                    postprocessor=self.postprocessor,
                    background_in_softmax=self.background_in_softmax,
                    image_size=(image_size[0], image_size[1]),
                    padded_size=padded_size,
                    output_size=(inputs.get("height", image_size[0]), inputs.get("width", image_size[1])),
                    chunk_pixels=self.chunk_pixels,
                    output=output,
                    with_proposals=proposals,
                )
        return [results[i] for i in range(len(images))]

    def seen_mask(self, vocabulary: ClassSplit) -> Tensor:
        """(K,) bool: classes the model was trained on, by name or synonym, unless the vocabulary calls them unseen."""
        trained = torch.from_numpy(vocabulary.trained_mask(self.trained_classes))
        return (trained & torch.from_numpy(vocabulary.seen_mask)).to(self.device)

    def prototypes(self, vocabulary: ClassSplit) -> Tensor:
        """Text prototypes T (K, D) of a vocabulary."""
        return self.text_embeddings(vocabulary.prompts_for(self.names)).to(self.device)

    def _normalise(self, inputs: dict[str, Any]) -> Tensor:
        return (inputs["image"].to(self.device) - self.pixel_mean) / self.pixel_std

    def _padded_size(self, image: Tensor) -> tuple[int, int]:
        divisor = self.size_divisibility
        height, width = (-(-side // divisor) * divisor for side in image.shape[-2:])
        return height, width
