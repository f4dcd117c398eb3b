"""How a segmenter with proposals is biased to seen classes, and what a correction could bring at most.

    python -m zeroshot_d2 bias-report --model output/demo
    python -m zeroshot_d2 bias-report --model output/demo --dataset demo_world_held_out --output output/bias

One pass over a data set of GZS3 gives the pixels that go to the wrong kind of class, how far ZS3, where seen classes are no
answer, lies above GZS3, how much of the proposals' masks goes to the background, how well the class indicator tells unseen
from seen proposals, and the numbers of other corrections of the same proposals: none, the model's own, a perfect class
indicator (Eq. 7 where most of a mask lies on unseen classes), perfect both ways, and calibrated stacking, which subtracts a
constant from the logits of the seen classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import MetadataCatalog
from scipy.stats import rankdata
from tabulate import tabulate
from torch import Tensor

from alignzeg_d2.inference import class_probabilities
from alignzeg_d2.modeling.pbc import correct_bias
from alignzeg_d2.oracle import masks_at
from alignzeg_d2.predictor import proposals_of
from alignzeg_d2.proposal_segmenter import ProposalSegmenter
from alignzeg_d2.semantic_inference import CHUNK_PIXELS, PlacedProposals, best_classes
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.cli import Parser, add_model_arguments, folder, positive
from zeroshot_d2.pictures.command import first_records, load_models, predictions
from zeroshot_d2.segmentation.evaluation import protocol_results
from zeroshot_d2.segmentation.figures import read_truth
from zeroshot_d2.segmentation.metrics import confusion_matrix
from zeroshot_d2.segmentation.registration import EVALUATOR_TYPE
from zeroshot_d2.storage import write_json

MOST = 0.5
"""A proposal is one of unseen classes where more than this share of its mask's labelled part lies on them."""

PURE = 0.7
"""The class indicator is judged on proposals of which at least this share lies on one class."""

CONSTANTS = (0.5, 1.0, 2.0, 4.0)
"""What calibrated stacking subtracts, in units of the logits."""

NO_CORRECTION, OWN, PERFECT, BOTH = "no correction", "as the model does", "perfect indicator", "perfect, both ways"

IntArray = npt.NDArray[np.int64]


def bottom(logits: Tensor, flagged: Tensor, classes: Tensor) -> Tensor:
    """Eq. 7 with any flags and classes: where ``flagged`` (Q,), the logits of ``classes`` (K,) drop to the image's least."""
    return correct_bias(logits, flagged.float(), classes, 0.5)


def stacked(logits: Tensor, seen: Tensor, constant: float) -> Tensor:
    """Calibrated stacking: P (Q, K + 1) with ``constant`` subtracted from the logits of the seen classes."""
    result = logits.clone()
    result[:, :-1][:, seen] -= constant
    return result


def overlaps(mask_logits: Tensor, truth: IntArray, num_classes: int) -> Tensor:
    """Mask probability of each proposal on the pixels of each class: (Q, h, w), (H, W) -> (Q, K)."""
    labels = torch.from_numpy(truth).to(mask_logits.device)
    kept = labels < num_classes
    of_class = torch.nn.functional.one_hot(labels[kept], num_classes).float()  # (P, K)
    size = (truth.shape[0], truth.shape[1])
    return torch.cat([masks[:, kept] @ of_class for masks in masks_at(mask_logits, size)])


def pure_ones(overlap: Tensor) -> tuple[Tensor, Tensor]:
    """Which proposals lie on one class, by :data:`PURE`, and on which: (Q, K) -> (Q,) bool and (P,) of those."""
    mass = overlap.sum(dim=1)
    pure = (mass > 1) & (overlap.max(dim=1).values >= PURE * mass)  # more than a pixel
    return pure, overlap[pure].argmax(dim=1)


def area_under_curve(scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> float | None:
    """The chance that a positive scores above a negative, ties counting half, in percent; None without both kinds."""
    count = int(positive.sum())
    others = len(positive) - count
    if not count or not others:
        return None
    return float(100 * (rankdata(scores)[positive].sum() - count * (count + 1) / 2) / (count * others))


@dataclass
class BiasCounts:
    """What one pass counts.

    Args:
        split: K classes of GZS3, some unseen.
        seen: (K,) bool, the classes that count as seen for the model.
        gamma: of the model's own correction; None without one.
        background_in_softmax: as in MODEL.ALIGNZEG.TEST.
        constants: of calibrated stacking.
    """

    split: ClassSplit
    seen: Tensor
    gamma: float | None
    background_in_softmax: bool = True
    constants: Sequence[float] = CONSTANTS
    images: int = 0
    confusions: dict[str, IntArray] = field(default_factory=dict)
    zs3: IntArray | None = None
    mask_weight: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 2)))
    """Sums of mask probability on pixels of (seen, unseen) classes: all of it, and what the background takes."""
    indicator: list[npt.NDArray[np.float64]] = field(default_factory=list)
    of_unseen: list[npt.NDArray[np.bool_]] = field(default_factory=list)

    def add(self, proposals: Mapping[str, Any], truth: IntArray) -> Tensor:
        """Count an image; its :func:`overlaps`.

        Args:
            proposals: "mask_logits" (Q, h, w), "class_logits" (Q, K + 1), "class_indicator" (Q,) or None.
            truth: (H, W) vocabulary indices, K where ignored.
        """
        classes = len(self.split)
        masks, logits = proposals["mask_logits"], proposals["class_logits"].float()
        unseen = ~self.seen.to(logits.device)
        overlap = overlaps(masks, truth, classes)
        mass = overlap.sum(dim=1)
        of_kinds = torch.stack([overlap[:, ~unseen].sum(dim=1), overlap[:, unseen].sum(dim=1)], dim=1)  # (Q, 2)
        background = logits.softmax(dim=-1)[:, -1:]
        self.mask_weight += torch.stack([of_kinds, background * of_kinds], dim=2).sum(dim=0).cpu().numpy()
        known = mass > 1  # a pixel
        share = of_kinds[:, 1] / mass.clamp(min=1e-6)
        on_unseen, on_seen = known & (share > MOST), known & (share <= MOST)

        variants = {NO_CORRECTION: logits, PERFECT: bottom(logits, on_unseen, ~unseen)}
        variants[BOTH] = bottom(variants[PERFECT], on_seen, unseen)
        indicator = proposals.get("class_indicator")
        if indicator is not None and self.gamma is not None:
            variants[OWN] = correct_bias(logits, indicator, ~unseen, self.gamma)
            pure, classes_of_pure = pure_ones(overlap)
            self.indicator.append(indicator[pure].cpu().double().numpy())
            self.of_unseen.append(unseen[classes_of_pure].cpu().numpy())
        variants |= {f"seen - {constant:g}": stacked(logits, ~unseen, constant) for constant in self.constants}
        for name, changed in variants.items():
            self._count(name, changed, masks, truth)
        self._count_zs3(logits, masks, truth, unseen)
        self.images += 1
        return overlap

    def _labels(self, logits: Tensor, masks: Tensor, truth: IntArray) -> IntArray:
        probabilities = class_probabilities(logits, background_in_softmax=self.background_in_softmax)
        size = (truth.shape[0], truth.shape[1])
        best = best_classes([PlacedProposals.of_image(probabilities, masks)], output_size=size, chunk_pixels=CHUNK_PIXELS)
        return best.labels.cpu().numpy()

    def _count(self, name: str, logits: Tensor, masks: Tensor, truth: IntArray) -> None:
        found = confusion_matrix(self._labels(logits, masks, truth), truth, len(self.split))
        self.confusions[name] = self.confusions.get(name, 0) + found

    def _count_zs3(self, logits: Tensor, masks: Tensor, truth: IntArray, unseen: Tensor) -> None:
        """ZS3 of the same proposals: the unseen classes and the background are all there is."""
        kept = torch.cat([unseen, unseen.new_ones(1)])
        place = np.full(len(self.split) + 1, int(unseen.sum()), dtype=np.int64)
        place[np.flatnonzero(unseen.cpu().numpy())] = np.arange(int(unseen.sum()))
        labels = self._labels(logits[:, kept], masks, truth)
        found = confusion_matrix(labels, place[truth], int(unseen.sum()))
        self.zs3 = found if self.zs3 is None else self.zs3 + found

    def report(self) -> dict[str, Any]:
        """Percent throughout.

        Returns:
            {"num_images", "unseen_pixels_to_seen", "unseen_pixels_to_other_unseen", "seen_pixels_to_unseen", "ZS3_mIoU",
            "GZS3_mIoU_unseen", "ZS3_minus_GZS3", "background_on_unseen", "background_on_seen", "indicator": {"AUC",
            "proposals", "gamma", "flagged_of_unseen", "flagged_of_seen"} or None, "corrections": {name: the numbers of
            GZS3}}. The background's are shares of the masks' weight on pixels of such classes.

        Raises:
            ValueError: no image was counted.
        """
        if self.zs3 is None:
            raise ValueError("there is no image to report on")
        unseen = (~self.seen).cpu().numpy()
        names = [name for name, is_unseen in zip(self.split.names, unseen, strict=True) if is_unseen]
        split = ClassSplit(self.split.names, unseen=tuple(names))
        corrections = {
            name: protocol_results(confusion, split, "GZS3", self.images) for name, confusion in self.confusions.items()
        }
        before = self.confusions[NO_CORRECTION][:-1, :-1]
        of_unseen, of_seen = before[:, unseen], before[:, ~unseen]
        wrong = of_unseen[unseen].sum() - np.trace(of_unseen[unseen])
        zs3 = protocol_results(self.zs3, ClassSplit(tuple(names), unseen=tuple(names)), "ZS3", self.images)["mIoU"]
        gzs3 = corrections[NO_CORRECTION]["mIoU_unseen"]
        of_masks, of_background = self.mask_weight.T
        return {
            "num_images": self.images,
            "unseen_pixels_to_seen": _percent(of_unseen[~unseen].sum(), of_unseen.sum()),
            "unseen_pixels_to_other_unseen": _percent(wrong, of_unseen.sum()),
            "seen_pixels_to_unseen": _percent(of_seen[unseen].sum(), of_seen.sum()),
            "ZS3_mIoU": zs3,
            "GZS3_mIoU_unseen": gzs3,
            "ZS3_minus_GZS3": None if zs3 is None or gzs3 is None else zs3 - gzs3,
            "background_on_unseen": _percent(of_background[1], of_masks[1]),
            "background_on_seen": _percent(of_background[0], of_masks[0]),
            "indicator": self._indicator_report(),
            "corrections": corrections,
        }

    def _indicator_report(self) -> dict[str, Any] | None:
        if not self.indicator or self.gamma is None:
            return None
        scores, positive = np.concatenate(self.indicator), np.concatenate(self.of_unseen)
        flagged = scores > self.gamma
        return {
            "AUC": area_under_curve(scores, positive),
            "proposals": len(scores),
            "gamma": self.gamma,
            "flagged_of_unseen": _percent(flagged[positive].sum(), positive.sum()),
            "flagged_of_seen": _percent(flagged[~positive].sum(), (~positive).sum()),
        }


def _percent(part: Any, whole: Any) -> float | None:
    return 100 * float(part) / float(whole) if whole else None


def format_report(report: Mapping[str, Any]) -> str:
    """The report as text."""

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    lines = [
        f"{report['num_images']} images, without correction:",
        f"  pixels of unseen classes given to seen ones       {shown(report['unseen_pixels_to_seen'])} %",
        f"  pixels of unseen classes given to other unseen    {shown(report['unseen_pixels_to_other_unseen'])} %",
        f"  pixels of seen classes given to unseen ones       {shown(report['seen_pixels_to_unseen'])} %",
        f"  masks' weight given to the background: {shown(report['background_on_unseen'])} % on unseen classes, "
        f"{shown(report['background_on_seen'])} % on seen ones",
        f"  ZS3 mIoU {shown(report['ZS3_mIoU'])}, GZS3 mIoU(U) {shown(report['GZS3_mIoU_unseen'])}",
    ]
    indicator = report["indicator"]
    if indicator is None:
        lines.append("  the model has no class indicator")
    else:
        lines.append(
            f"  class indicator, {indicator['proposals']} proposals that lie on one class: AUC {shown(indicator['AUC'])} %; "
            f"at {indicator['gamma']:g} it flags {shown(indicator['flagged_of_unseen'])} % of the unseen and "
            f"{shown(indicator['flagged_of_seen'])} % of the seen"
        )
    keys = {"mIoU_seen": "mIoU(S)", "mIoU_unseen": "mIoU(U)", "hIoU": "hIoU", "pAcc": "pAcc"}
    rows = [[name, *(shown(numbers[key]) for key in keys)] for name, numbers in report["corrections"].items()]
    align = ["left", *["right"] * len(keys)]
    table = tabulate(rows, headers=["correction", *keys.values()], tablefmt="github", colalign=align, disable_numparse=True)
    return "\n".join([*lines, "", table])


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the command-line arguments ``argv``.

    Raises:
        FileNotFoundError, ValueError: as :func:`zeroshot_d2.cli.model_config`; the data set is not one of GZS3, or the
            system has no proposals.
    """
    parser = Parser("python -m zeroshot_d2 bias-report", __doc__)
    add_model_arguments(parser)
    parser.add_argument("--dataset", metavar="NAME", help="a data set of GZS3; default: the config's first test data set")
    parser.add_argument("--num-images", type=positive, metavar="N", help="only the first N images")
    parser.add_argument("--constants", type=float, nargs="+", default=list(CONSTANTS), help="of calibrated stacking")
    parser.add_argument("--output", type=folder, help="folder of bias_report.json")
    args = parser.parse(argv)
    args.name = None
    dataset, models = load_models(args, EVALUATOR_TYPE)
    (predictor,) = models.values()
    split: ClassSplit = MetadataCatalog.get(dataset).class_split
    model = predictor.model
    if not isinstance(model, ProposalSegmenter) or not model.classifies_features_alone:
        raise ValueError(
            f"{predictor.cfg.MODEL.META_ARCHITECTURE} does not classify proposals by their features alone: the report is "
            "for AlignZeg, SAN and other systems that do"
        )
    seen = model.seen_mask(split)
    if seen.all() or not seen.any():
        raise ValueError(f"the data set {dataset!r} has no seen, or no unseen classes for this model: choose one of GZS3")
    counts = BiasCounts(
        split,
        seen,
        getattr(model.postprocessor, "gamma", None),
        background_in_softmax=model.background_in_softmax,
        constants=args.constants,
    )
    for record, _, found in predictions(predictor, first_records(dataset, args.num_images), proposals=True):
        truth = read_truth(record)
        counts.add(proposals_of(found), np.where(truth < len(split), truth, len(split)))
    report = counts.report()
    print(f"{dataset}\n{format_report(report)}")
    if args.output is not None:
        write_json(Path(args.output) / "bias_report.json", {"dataset": dataset, **report})
        print(f"written: {args.output / 'bias_report.json'}")
    return 0
