"""Mask proposals, each with a class: what AlignZeg shares with every other segmenter that classifies proposals.

A subclass makes the proposals (:meth:`ProposalSegmenter.extract_proposals`). GEPC's classifier, PBC, the objective and
semantic inference are here.

Shapes: N images, Q proposals, K classes of the vocabulary, D embedding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList
from torch import Tensor

from alignzeg_d2.inference import POSTPROCESSOR_REGISTRY, Classification, Postprocessor, classify, segment
from alignzeg_d2.modeling.criterion import Criterion, Predictions
from alignzeg_d2.modeling.gepc.classifier import ProposalClassifier
from alignzeg_d2.modeling.pbc import ClassIndicator
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.clip.frozen_clip import FrozenClip
from zeroshot_d2.ranges import declare, registered
from zeroshot_d2.segmentation.text_segmenter import TextSegmenter
from zeroshot_d2.shared_pass import distinct_images
from zeroshot_d2.vocabulary import vocabulary_of

OUTPUTS = ("scores", "labels")

declare("MODEL.ALIGNZEG", {"PBC.POSTPROCESSOR": registered(POSTPROCESSOR_REGISTRY)})


class ProposalSegmenter(TextSegmenter):
    """A segmenter by mask proposals, each with a class by CLIP's text prototypes."""

    classifies_features_alone: ClassVar[bool] = True
    """Whether a proposal's class depends on its features alone, and not on other views of the image as well."""

    def __init__(
        self,
        *,
        classifier: ProposalClassifier,
        class_indicator: ClassIndicator | None,
        criterion: Criterion,
        postprocessor: Postprocessor,
        output: str = "scores",
        background_in_softmax: bool = True,
        return_proposals: bool = False,
        chunk_pixels: int = 262144,
        **texts: Any,
    ) -> None:
        """
        Args:
            classifier: gives the logits of classes and background (GEPC, Sec. 3.2).
            class_indicator: None for a model without PBC.
            criterion: Eq. 8.
            postprocessor: corrects class logits at test time.
            output: "scores" or "labels", unless a call of :meth:`inference` says otherwise.
            background_in_softmax: drop the background behind the softmax rather than before it.
            return_proposals: also return masks, logits and class indicator of the proposals, unless a call says otherwise.
            chunk_pixels: output pixels computed at once.
            texts: as for :class:`zeroshot_d2.segmentation.text_segmenter.TextSegmenter`.

        Raises:
            ValueError: unknown ``output``; a postprocessor that reads a class indicator and a model without one.
        """
        super().__init__(**texts)
        if output not in OUTPUTS:
            raise ValueError(f"MODEL.ALIGNZEG.TEST.OUTPUT must be one of {OUTPUTS}, got {output!r}")
        if postprocessor.uses_class_indicator and class_indicator is None:
            raise ValueError(f"{type(postprocessor).__name__} reads a class indicator, and the model has none")
        self.classifier = classifier
        self.class_indicator = class_indicator
        self.criterion = criterion
        self.postprocessor = postprocessor
        self.output = output
        self.background_in_softmax = background_in_softmax
        self.return_proposals = return_proposals
        self.chunk_pixels = chunk_pixels

    @staticmethod
    def parts_of_config(cfg: CfgNode, clip: FrozenClip, *, num_queries: int) -> dict[str, Any]:
        """The arguments of this class that a config gives: MODEL.ALIGNZEG's GEPC, PBC, LOSS and TEST.

        Args:
            cfg: with these keys, whichever system it is for.
            clip: the CLIP of that system.
            num_queries: Q.

        Raises:
            ValueError: PBC looks for negatives among more proposals than there are.
        """
        alignzeg = cfg.MODEL.ALIGNZEG
        postprocessor = POSTPROCESSOR_REGISTRY.get(alignzeg.PBC.POSTPROCESSOR)(cfg)
        if postprocessor.uses_class_indicator and num_queries < alignzeg.PBC.TOP_K:
            raise ValueError(
                f"MODEL.ALIGNZEG.PBC.TOP_K={alignzeg.PBC.TOP_K} exceeds NUM_QUERIES={num_queries}: lower it, or raise that"
            )
        width = clip.visual.output_dim
        return {
            "classifier": ProposalClassifier(
                width=width,
                num_background_prototypes=alignzeg.GEPC.NUM_BACKGROUND_PROTOTYPES,
                logit_scale=clip.logit_scale,
                refinement=alignzeg.GEPC.REFINEMENT,
            ),
            "class_indicator": (
                ClassIndicator(width=width, detach=alignzeg.PBC.DETACH) if postprocessor.uses_class_indicator else None
            ),
            "criterion": Criterion(cfg),
            "postprocessor": postprocessor,
            **TextSegmenter.text_parts(cfg, clip),
            "output": alignzeg.TEST.OUTPUT,
            "background_in_softmax": alignzeg.TEST.BACKGROUND_IN_SOFTMAX,
            "return_proposals": alignzeg.TEST.RETURN_PROPOSALS or alignzeg.TEST.ORACLE,
            "chunk_pixels": alignzeg.TEST.CHUNK_PIXELS,
        }

    @abstractmethod
    def extract_proposals(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Everything that does not depend on a vocabulary.

        ``images`` (N, 3, H, W), normalised -> mask logits M (N, Q, h, w) and proposal features F (N, Q, D).
        """

    def losses(self, images: Tensor, sem_seg: Tensor, vocabulary: ClassSplit) -> dict[str, Tensor]:
        return self.proposal_losses(*self.extract_proposals(images), sem_seg, self.prototypes(vocabulary))

    def proposal_losses(
        self, mask_logits: Tensor, features: Tensor, sem_seg: Tensor, prototypes: Tensor
    ) -> dict[str, Tensor]:
        """The weighted losses of proposals: M (N, Q, h, w) and F (N, Q, D)."""
        found = self.classify(features, prototypes)
        return self.criterion(
            Predictions(found.class_logits, mask_logits, found.features, found.indicator_logits),
            sem_seg,
            prototypes=prototypes,
            background_prototypes=self.classifier.background_prototypes,
            logit_scale=self.classifier.logit_scale,
        )

    def classify(self, features: Tensor, prototypes: Tensor) -> Classification:
        """Proposal features F (..., Q, D) and text prototypes T (K, D) -> what the network says about their classes."""
        return classify(features, prototypes, self.classifier, self.class_indicator)

    @torch.no_grad()
    def inference(
        self, batched_inputs: list[dict[str, Any]], *, output: str | None = None, proposals: bool | None = None
    ) -> list[dict[str, Any]]:
        """Images of one padded size run together; each gives what it gives alone.

        Inputs that hold the same tensor, with several vocabularies, share one pass through the network.

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
        vocabularies = [vocabulary_of(x, self.default_vocabulary) for x in batched_inputs]
        first, which = distinct_images(batched_inputs)
        images = [self.normalised(batched_inputs[i]) for i in first]
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            groups[self._padded_size(image)].append(index)
        results: dict[int, dict[str, Any]] = {}
        for padded_size, indices in groups.items():
            batch = ImageList.from_tensors([images[i] for i in indices], self.size_divisibility)
            mask_logits, features = self.extract_proposals(batch.tensor)
            place = {index: row for row, index in enumerate(indices)}
            for i, inputs in enumerate(batched_inputs):
                row = place.get(which[i])
                if row is None:
                    continue
                image = images[which[i]]
                height, width = image.shape[-2:]
                results[i] = self.segment(
                    image,
                    features[row],
                    mask_logits[row].float(),
                    vocabularies[i],
                    padded_size=padded_size,
                    output_size=(inputs.get("height", height), inputs.get("width", width)),
                    output=output,
                    with_proposals=proposals,
                )
        return [results[i] for i in range(len(batched_inputs))]

    def segment(
        self,
        image: Tensor,
        features: Tensor,
        mask_logits: Tensor,
        vocabulary: ClassSplit,
        *,
        padded_size: tuple[int, int],
        output_size: tuple[int, int],
        **wanted: Any,
    ) -> dict[str, Any]:
        """The output of one image from its proposals.

        Args:
            image: (3, H, W), normalised.
            features: F (Q, D).
            mask_logits: M (Q, h, w), covering the padded image.
            vocabulary: K classes.
            padded_size: height and width with padding.
            output_size: height and width of the output.
            wanted: output, with_proposals and reweigh, as for :func:`alignzeg_d2.inference.segment`.
        """
        return segment(
            self.classify(features, self.prototypes(vocabulary)),
            mask_logits,
            seen=self.seen_mask(vocabulary),
            postprocessor=self.postprocessor,
            background_in_softmax=self.background_in_softmax,
            padded_size=padded_size,
            image_size=(image.shape[-2], image.shape[-1]),
            output_size=output_size,
            chunk_pixels=self.chunk_pixels,
            **wanted,
        )

    def _padded_size(self, image: Tensor) -> tuple[int, int]:
        divisor = self.size_divisibility
        height, width = (-(-side // divisor) * divisor for side in image.shape[-2:])
        return height, width
