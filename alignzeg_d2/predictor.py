"""AlignZeg for people: any vocabulary, with its proposals where they are wanted.

Shapes: Q proposals, K classes of the vocabulary, D embedding, (h, w) the masks' grid, (H, W) an image.
"""

from __future__ import annotations

from typing import Any

from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.segmentation.predictor import Segmentation, SegmentationPredictor, segmentation_of


class AlignZegPredictor(SegmentationPredictor):
    """Calls take ``scores=True`` for the scores of all classes (K, H, W), and ``proposals=True``.

    Proposals are a dict of ``mask_logits`` (Q, h, w) covering the image, ``class_logits`` and ``corrected_logits`` (Q, K +
    1), before and after Predictive Bias Correction, the background last, ``class_indicator`` I (Q,) or None, and
    ``features`` (Q, D); None where the image was seen in several windows or sizes. The score of a pixel's class is the sum
    over proposals of class probability times mask. Eq. 7 favours the vocabulary's unseen classes.
    """

    options = ("scores", "proposals")

    def results(self, inputs: list[dict[str, Any]], vocabulary: ClassSplit, wanted: frozenset[str]) -> list[Segmentation]:
        scores = "scores" in wanted
        outputs = self.model.inference(inputs, output="scores" if scores else "labels", proposals="proposals" in wanted)
        return [segmentation_of(output, vocabulary, scores=scores) for output in outputs]


def proposals_of(found: Segmentation) -> dict[str, Any]:
    """The proposals of a result, where a picture or report is about them.

    Raises:
        ValueError: it has none, since the image was seen in several windows or sizes.
    """
    if found.proposals is None:
        raise ValueError(
            "proposals are those of an image that is seen once, as a whole: set TEST.SLIDE.ENABLED and TEST.AUG.ENABLED to "
            "False"
        )
    return found.proposals
