"""Mask proposals, each with a class: what AlignZeg shares with every other segmenter that classifies proposals.

A subclass makes the proposals (:meth:`ProposalSegmenter.extract_proposals`). GEPC's classifier, PBC, the objective and
semantic inference are here.

Shapes: N images, Q proposals, K classes of the vocabulary, D embedding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList
from torch import Tensor

from alignzeg_d2.inference import (
    POSTPROCESSOR_REGISTRY,
    Classification,
    Classified,
    Postprocessor,
    Seen,
    classify,
    correct,
    output_of,
)
from alignzeg_d2.modeling.criterion import Criterion, Predictions
from alignzeg_d2.modeling.gepc.classifier import ProposalClassifier
from alignzeg_d2.modeling.pbc import ClassIndicator
from alignzeg_d2.semantic_inference import CHUNK_PIXELS, Labels, PlacedProposals, best_classes, pixels_at_once
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.clip.frozen_clip import FrozenClip
from zeroshot_d2.ranges import declare, registered
from zeroshot_d2.segmentation.looks import Look, Looks, Place
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
        chunk_pixels: int = CHUNK_PIXELS,
        looks: Looks | None = None,
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
            chunk_pixels: output pixels computed at once; 0: as the device likes.
            looks: windows and sizes at which images are seen at test time; None: each once, as a whole.
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
        self.looks = Looks() if looks is None else looks

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
        width = clip.embedding_dim
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
            "looks": Looks.of_config(cfg),
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
        """Images, or windows of images, of one padded size run together; each image gives what it gives alone.

        Inputs that hold the same tensor, with several vocabularies, share one pass through the network.

        Args:
            batched_inputs: as for :meth:`forward`.
            output: "scores" or "labels"; by default what the config says.
            proposals: whether to return them; by default what the config says.

        Returns:
            a dict per image with

            * ``sem_seg`` (K, H, W), the score of each class of the vocabulary in its order, and ``sem_seg_coverage`` (H, W),
              at least 1, by which a score is divided to be a confidence in [0, 1];
            * or ``sem_seg_labels`` (H, W), the index of the best class, and ``sem_seg_confidence`` (H, W), its confidence,
              see :class:`alignzeg_d2.semantic_inference.Labels`;
            * when asked for ``proposals``: ``mask_logits`` (Q, h, w) covering the image, ``class_logits`` and
              ``corrected_logits`` (Q, K + 1), ``class_indicator`` (Q,) or None, ``features`` (Q, D); None for an image that
              was seen in several windows or sizes (TEST.SLIDE, TEST.AUG).

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
        seen = self._look_at(images)
        results = []
        for inputs, image, vocabulary in zip(batched_inputs, which, vocabularies, strict=True):
            height, width = images[image].shape[-2:]
            size = (inputs.get("height", height), inputs.get("width", width))
            results.append(self.segment(seen[image], vocabulary, output_size=size, output=output, with_proposals=proposals))
        return results

    def _look_at(self, images: list[Tensor]) -> list[list[Seen]]:
        """What the network makes of the windows of each image; it sees as many at a time as there are images."""
        windows = []
        for index, image in enumerate(images):
            for look in self.looks.of_image((image.shape[-2], image.shape[-1])):
                looked_at = look.image(image)
                windows += [(index, place, place.cut(looked_at)) for place in look.places()]
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, (_, _, window) in enumerate(windows):
            groups[self._padded_size(window)].append(number)
        found: dict[int, Seen] = {}
        for padded_size, numbers in groups.items():
            for start in range(0, len(numbers), len(images)):
                together = numbers[start : start + len(images)]
                batch = ImageList.from_tensors([windows[number][2] for number in together], self.size_divisibility)
                mask_logits, features = self._proposals_at_test_time(batch.tensor)
                for row, number in enumerate(together):
                    _, place, window = windows[number]
                    found[number] = Seen(window, features[row], mask_logits[row], padded_size, place)
        of_images: list[list[Seen]] = [[] for _ in images]
        for number, (index, _, _) in enumerate(windows):
            of_images[index].append(found[number])
        return of_images

    def _proposals_at_test_time(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`extract_proposals`, in TEST.PRECISION; what comes of it is float32."""
        with self.mixed():
            mask_logits, features = self.extract_proposals(images)
        return mask_logits.float(), features.float()

    @torch.no_grad()
    def segment_rows(
        self,
        look: Look,
        read: Callable[[Place], Tensor],
        vocabulary: ClassSplit,
        *,
        output_size: tuple[int, int],
    ) -> Iterator[tuple[slice, Labels]]:
        """The labels of an image of any size, some rows of the output after others; windows are read when they are due.

        Args:
            look: how the image is cut into windows. Beside the output's rows, the proposals of one row of windows and of
                those that overlap with it are held.
            read: gives a window of the image (3, h, w), as ``image`` is given to :meth:`forward`.
            vocabulary: K classes.
            output_size: (H, W).

        Yields:
            rows of the output, and their labels.
        """
        height, width = output_size
        step = max(1, 16 * pixels_at_once(self.chunk_pixels, self.device) // width)
        held: list[PlacedProposals] = []
        first = 0
        for row, places in groupby(look.places(), key=lambda place: place.row):
            for place in places:
                window = self.normalised({"image": read(place)})
                batch = ImageList.from_tensors([window], self.size_divisibility)
                (mask_logits,), (features,) = self._proposals_at_test_time(batch.tensor)
                seen = Seen(window, features, mask_logits, self._padded_size(window), place)
                held.append(self.classified(seen, vocabulary).placed)
            is_last = row + 1 == len(look.rows.starts)
            done = height if is_last else look.rows.span(row + 1, height).start
            while first < done:
                rows = slice(first, min(first + step, done))
                yield rows, best_classes(held, output_size=output_size, chunk_pixels=self.chunk_pixels, rows=rows)
                first = rows.stop
            held = [part for part in held if part.place.down(height).stop > done]

    def segment(
        self,
        seen: Sequence[Seen],
        vocabulary: ClassSplit,
        *,
        output_size: tuple[int, int],
        output: str,
        with_proposals: bool,
    ) -> dict[str, Any]:
        """The output of one image from the proposals of its windows, as :meth:`inference` returns it.

        Args:
            seen: its windows.
            vocabulary: K classes.
            output_size: height and width of the output.
            output: "scores" or "labels".
            with_proposals: whether to return them.
        """
        classified = [self.classified(window, vocabulary) for window in seen]
        placed = [of_window.placed for of_window in classified]
        result: dict[str, Any] = {**output_of(placed, output, output_size=output_size, chunk_pixels=self.chunk_pixels)}
        if with_proposals:
            result["proposals"] = classified[0].proposals() if placed[0].place.is_alone else None
        return result

    def classified(self, seen: Seen, vocabulary: ClassSplit) -> Classified:
        """The proposals of one window with their classes, corrected (Eq. 7)."""
        found = self.classify(seen.features, self.prototypes(vocabulary))
        corrected, probabilities = correct(
            found.class_logits.float(),
            found.class_indicator,
            self.seen_mask(vocabulary),
            self.postprocessor,
            background_in_softmax=self.background_in_softmax,
        )
        return Classified(found, corrected, PlacedProposals(probabilities, seen.mask_logits, seen.region, seen.place))

    def _padded_size(self, image: Tensor) -> tuple[int, int]:
        divisor = self.size_divisibility
        height, width = (-(-side // divisor) * divisor for side in image.shape[-2:])
        return height, width
