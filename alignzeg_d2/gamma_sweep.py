"""The threshold of Predictive Bias Correction, varied over one pass through a data set (Sec. 4.4, Fig. 6 left).

The network runs once per image; for every threshold only Eq. 7 and semantic inference are repeated on its proposals.
Shapes: Q proposals, K classes, G thresholds, (h, w) the masks' grid, (H, W) the image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.utils import comm
from torch import Tensor

from alignzeg_d2.inference import PBC, NoCorrection, correct
from alignzeg_d2.semantic_inference import CHUNK_PIXELS, Labels, PlacedProposals, best_classes
from zeroshot_d2.metrics import numbers_only
from zeroshot_d2.segmentation.evaluation import ZeroShotSemSegEvaluator, protocol_results
from zeroshot_d2.segmentation.metrics import confusion_matrix, sum_confusions

Proposals = Mapping[str, Any]
"""What the model returns as "proposals" with MODEL.ALIGNZEG.TEST.RETURN_PROPOSALS."""

OFF = 1.0
"""A threshold that no class indicator exceeds: without correction."""

DEFAULT_GAMMAS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, OFF)


def segment_with_gamma(
    proposals: Proposals,
    seen: Tensor,
    gamma: float,
    output_size: tuple[int, int],
    *,
    background_in_softmax: bool = True,
    chunk_pixels: int = CHUNK_PIXELS,
) -> Tensor:
    """What the model would have predicted with another threshold.

    Args and errors as for :func:`correct_and_segment`.

    Returns:
        (H, W) long, vocabulary indices.
    """
    _, best = correct_and_segment(
        proposals, seen, gamma, output_size, background_in_softmax=background_in_softmax, chunk_pixels=chunk_pixels
    )
    return best.labels


def correct_and_segment(
    proposals: Proposals,
    seen: Tensor,
    gamma: float | None,
    output_size: tuple[int, int],
    *,
    background_in_softmax: bool = True,
    chunk_pixels: int = CHUNK_PIXELS,
) -> tuple[Tensor, Labels]:
    """Eq. 7 with another threshold, and the semantic inference that follows it.

    Args:
        proposals: of one image: "mask_logits" (Q, h, w), "class_logits" (Q, K + 1), "class_indicator" (Q,).
        seen: (K,) bool, as ``AlignZeg.seen_mask`` gives it.
        gamma: the threshold; :data:`OFF` leaves every score as it is, and None does without a class indicator.
        output_size: (H, W).
        background_in_softmax, chunk_pixels: as in MODEL.ALIGNZEG.TEST.

    Returns:
        corrected logits (Q, K + 1), and the best vocabulary index of each pixel with its confidence. They are exact where
        the masks' grid divides the image; else the outermost cell, which the proposals hold rounded to whole cells, may
        differ from the model's own output by less than a cell.

    Raises:
        ValueError: there is a threshold, and the proposals come from a model without a class indicator.
    """
    masks: Tensor = proposals["mask_logits"]
    logits, probabilities = correct(
        proposals["class_logits"],
        None if gamma is None else _indicator(proposals),
        seen.to(masks.device),
        NoCorrection() if gamma is None else PBC(gamma=gamma),
        background_in_softmax=background_in_softmax,
    )
    placed = PlacedProposals.of_image(probabilities, masks)
    return logits, best_classes([placed], output_size=output_size, chunk_pixels=chunk_pixels)


def _indicator(proposals: Proposals) -> Tensor:
    indicator = proposals.get("class_indicator")
    if indicator is None:
        raise ValueError("the proposals have no class indicator: train with MODEL.ALIGNZEG.PBC.POSTPROCESSOR PBC")
    return indicator


class GammaSweepEvaluator(ZeroShotSemSegEvaluator):
    """Counts a confusion matrix per threshold. Needs ``output["proposals"]``."""

    def __init__(
        self,
        dataset_name: str,
        seen: Tensor,
        gammas: Sequence[float] = DEFAULT_GAMMAS,
        *,
        distributed: bool = True,
        background_in_softmax: bool = True,
    ) -> None:
        """
        Args:
            dataset_name: as for :class:`~zeroshot_d2.segmentation.evaluation.ZeroShotSemSegEvaluator`.
            seen: (K,) bool, as ``AlignZeg.seen_mask`` gives it.
            gammas: the G thresholds.
            distributed: add up the counts of all processes.
            background_in_softmax: as in MODEL.ALIGNZEG.TEST.

        Raises:
            ValueError: there is no threshold, or one lies outside [0, 1].
        """
        outside = [gamma for gamma in gammas if not 0 <= gamma <= 1]
        if outside or not gammas:
            raise ValueError(f"gammas must be thresholds in [0, 1], got {outside or list(gammas)}")
        self._gammas = sorted(set(gammas))
        self._seen = seen
        self._background_in_softmax = background_in_softmax
        super().__init__(dataset_name, distributed)

    def reset(self) -> None:
        super().reset()
        side = self._num_classes + 1
        self._confusions = np.zeros((len(self._gammas), side, side), dtype=np.int64)
        self._flagged = np.zeros(len(self._gammas), dtype=np.int64)
        self._num_proposals = 0

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count a batch with every threshold.

        Raises:
            ValueError: an output has no proposals, or they have no class indicator.
        """
        for record, output in zip(inputs, outputs, strict=True):
            if output.get("proposals") is None:
                raise ValueError(
                    "an output has no proposals: set MODEL.ALIGNZEG.TEST.RETURN_PROPOSALS True, and TEST.SLIDE.ENABLED and "
                    "TEST.AUG.ENABLED False"
                )
            proposals = output["proposals"]
            indicator = _indicator(proposals)
            truth = self._ground_truth(record["file_name"])
            counted: dict[int, np.ndarray] = {}  # thresholds that flag the same proposals predict the same
            for index, gamma in enumerate(self._gammas):
                flagged = int((indicator > gamma).sum())
                if flagged not in counted:  # the flagged are always the highest ones, so their number tells which
                    labels = segment_with_gamma(
                        proposals,
                        self._seen,
                        gamma,
                        (truth.shape[0], truth.shape[1]),
                        background_in_softmax=self._background_in_softmax,
                    )
                    counted[flagged] = confusion_matrix(labels.cpu().numpy(), truth, self._num_classes)
                self._confusions[index] += counted[flagged]
                self._flagged[index] += flagged
            self._num_proposals += len(indicator)
            self._num_images += 1

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """{"gamma_sweep": {"hIoU@<gamma>", "mIoU_seen@<gamma>", ...}}; :attr:`details` has the points of :meth:`report`."""
        self.details = self.report()
        if self.details is None:
            return None
        points = {point["gamma"]: numbers_only(point) for point in self.details["gamma_sweep"]}
        return OrderedDict(
            gamma_sweep={f"{key}@{gamma:g}": value for gamma, point in points.items() for key, value in point.items()}
        )

    def report(self) -> dict[str, Any] | None:
        """Numbers per threshold, over all processes.

        Returns:
            {"gamma_sweep": [{"gamma", "flagged", and the numbers of ``ZeroShotSemSegEvaluator.report``}]}, ascending;
            "flagged" is the share of all proposals whose indicator exceeds the threshold, in percent. On other processes
            than the main one: None.
        """
        confusions, flagged = self._confusions, self._flagged
        num_proposals, num_images = self._num_proposals, self._num_images
        if self._distributed:
            comm.synchronize()
            parts = comm.gather((confusions, flagged, num_proposals, num_images))
            if not comm.is_main_process():
                return None
            confusions = sum_confusions(part[0] for part in parts)
            flagged = np.sum([part[1] for part in parts], axis=0)
            num_proposals, num_images = (sum(part[i] for part in parts) for i in (2, 3))
        points = [
            {
                "gamma": gamma,
                "flagged": 100.0 * float(count) / max(1, num_proposals),
                **protocol_results(confusion, self._split, self._protocol, num_images),
            }
            for gamma, count, confusion in zip(self._gammas, flagged, confusions, strict=True)
        ]
        return {"gamma_sweep": points}
