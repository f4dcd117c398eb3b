"""The training objective (Sec. 3.4, Eq. 8): what is compared with what, and with which weight.

Shapes: N images, Q proposals, T seen classes in an image, C training classes, M matched proposals of the batch, P points,
D embedding, B background prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.projects.point_rend.point_features import point_sample
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from alignzeg_d2.modeling.gepc.background_diversity import diversity_loss
from alignzeg_d2.modeling.gepc.feature_expansion import feature_expansion_loss, sample_mixing
from alignzeg_d2.modeling.losses import bce_loss, dense_points, dice_loss
from alignzeg_d2.modeling.matcher import class_cost, mask_cost, match_all
from alignzeg_d2.modeling.pbc import indicator_loss, select_by_overlap, select_negative_proposals
from zeroshot_d2.segmentation.labels import IGNORE_LABEL
from zeroshot_d2.training_stream import image_generators, image_seeds


@dataclass(frozen=True)
class LossWeights:
    """The coefficients of Eq. 8 and of the matching."""

    bc: float = 1.0
    ce: float = 2.0  # lambda_1
    mask: float = 5.0  # lambda_2, of the binary cross entropy
    dice: float = 5.0  # lambda_2, of the dice loss
    vir: float = 1e-2  # lambda_3
    reg: float = 1e-4  # lambda_4
    no_object: float = 0.1  # weight of the background class within the cross entropy


@dataclass(frozen=True)
class Predictions:
    """What the model says about a batch.

    Attributes:
        class_logits: P (N, Q, C + 1), the background last.
        mask_logits: M (N, Q, h, w).
        refined_features: F_cls (N, Q, D), unit length; None where L_vir is not wanted.
        indicator_logits: logits of I (N, Q), None for a model without PBC.
    """

    class_logits: Tensor
    mask_logits: Tensor
    refined_features: Tensor | None = None
    indicator_logits: Tensor | None = None


class Criterion(nn.Module):
    """L = L_bc + l1 L_ce + l2 L_mask + l3 L_vir + l4 L_reg  (Eq. 8)."""

    @configurable
    def __init__(
        self,
        *,
        weights: LossWeights,
        ignore_label: int,
        num_points: int,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        labels_at_points: str = "pixel",
        exclude_ignored_pixels: bool = False,
        feature_expansion: bool = True,
        mixup_alpha: float = 3.0,
        exclude_same_class: bool = True,
        top_k: int = 50,
        indicator_samples: str = "top_k",
    ) -> None:
        """
        Args:
            weights: coefficients.
            ignore_label: the value of pixels without a seen class.
            num_points: points per mask of the mask loss; 0 takes every pixel, which makes it deterministic.
            oversample_ratio, importance_sample_ratio: of PointRend's sampling.
            labels_at_points: "pixel" reads the label of the pixel in which a point lies, "bilinear" a class's share of the
                four pixels around it.
            exclude_ignored_pixels: leave ignored pixels out of the mask loss instead of counting them as negatives.
            feature_expansion: whether L_vir is part of the objective.
            mixup_alpha: alpha of Eq. 2.
            exclude_same_class: leave pairs of one class out of L_vir.
            top_k: K of PBC's negatives.
            indicator_samples: what the class indicator learns from. "top_k": matched proposals, and those among the K worst
                for every seen class (Sec. 3.3); "overlap": all that lie on seen classes, and all that do not.
        """
        super().__init__()
        self.weights = weights
        self.ignore_label = ignore_label
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.share_at = _SHARE_AT[labels_at_points]
        self.exclude_ignored_pixels = exclude_ignored_pixels
        self.feature_expansion = feature_expansion
        self.mixup_alpha = mixup_alpha
        self.exclude_same_class = exclude_same_class
        self.top_k = top_k
        self.indicator_samples = indicator_samples

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        alignzeg = cfg.MODEL.ALIGNZEG
        loss = alignzeg.LOSS
        return {
            "weights": LossWeights(
                bc=loss.BC_WEIGHT,
                ce=loss.CE_WEIGHT,
                mask=loss.MASK_WEIGHT,
                dice=loss.DICE_WEIGHT,
                vir=loss.VIR_WEIGHT,
                reg=loss.REG_WEIGHT,
                no_object=loss.NO_OBJECT_WEIGHT,
            ),
            "ignore_label": IGNORE_LABEL,
            "num_points": loss.NUM_POINTS,
            "oversample_ratio": loss.OVERSAMPLE_RATIO,
            "importance_sample_ratio": loss.IMPORTANCE_SAMPLE_RATIO,
            "labels_at_points": loss.LABELS_AT_POINTS,
            "exclude_ignored_pixels": loss.EXCLUDE_IGNORED_PIXELS,
            "feature_expansion": alignzeg.GEPC.FEATURE_EXPANSION,
            "mixup_alpha": alignzeg.GEPC.ALPHA,
            "exclude_same_class": alignzeg.GEPC.EXCLUDE_SAME_CLASS,
            "top_k": alignzeg.PBC.TOP_K,
            "indicator_samples": alignzeg.PBC.SAMPLES,
        }

    def forward(
        self,
        predictions: Predictions,
        sem_seg: Tensor,
        *,
        prototypes: Tensor | None = None,
        background_prototypes: Tensor | None = None,
        logit_scale: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """
        Args:
            predictions: of the batch.
            sem_seg: (N, H, W) class indices, ``ignore_label`` elsewhere; covers what the mask logits cover.
            prototypes, logit_scale: T (C, D) of unit length and (), for L_vir.
            background_prototypes: G (B, D); None where L_reg is not wanted.

        Returns:
            weighted losses: loss_ce, loss_mask, loss_dice and, where they are part of the model, loss_reg, loss_vir and
            loss_bc. Each is normalised by counts over all processes, so that their mean over processes is what one
            process with the whole batch would compute; loss_vir, which mixes the proposals of all processes, is the same in
            each. Random numbers belong to the images (:func:`zeroshot_d2.training_stream.image_seeds`).
        """
        # Without autocast: sums over thousands of points, and cosines times 100, are too coarse in half precision.
        with torch.autocast(predictions.mask_logits.device.type, enabled=False):
            seeds = image_seeds(len(sem_seg))
            generators = image_generators(seeds, sem_seg.device)
            matches, costs = self._match(predictions, sem_seg, generators)
            images = torch.cat([torch.full_like(rows, i) for i, (rows, _) in enumerate(matches)])
            proposals = torch.cat([rows for rows, _ in matches])
            labels = torch.cat([classes for _, classes in matches])

            losses = {"loss_ce": self.weights.ce * self._classification(predictions.class_logits, images, proposals, labels)}
            num_targets = sum(cost.shape[1] for cost in costs)
            mask_logits = predictions.mask_logits[images, proposals]
            points = self._mask_points(mask_logits, [len(rows) for rows, _ in matches], sem_seg, generators)
            bce, dice = self._mask(mask_logits, points, sem_seg, images, labels, num_targets)
            losses["loss_mask"], losses["loss_dice"] = self.weights.mask * bce, self.weights.dice * dice
            if self.feature_expansion and predictions.refined_features is not None:
                assert prototypes is not None and logit_scale is not None
                features = predictions.refined_features[images, proposals].float()
                seeds_of_rows = torch.tensor(seeds, device=images.device)[images]
                virtual = self._virtual(features, labels, seeds_of_rows, prototypes, logit_scale)
                losses["loss_vir"] = self.weights.vir * virtual
            if background_prototypes is not None:
                losses["loss_reg"] = self.weights.reg * diversity_loss(background_prototypes)
            if predictions.indicator_logits is not None:
                if self.indicator_samples == "overlap":
                    kinds = self._by_overlap(predictions.mask_logits, sem_seg)
                else:
                    kinds = self._by_match(predictions.indicator_logits, images, proposals, costs)
                losses["loss_bc"] = self.weights.bc * self._indicator(predictions.indicator_logits, *kinds)
            return losses

    @torch.no_grad()
    def _match(
        self, predictions: Predictions, sem_seg: Tensor, generators: Sequence[torch.Generator]
    ) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
        """For each image: matched proposals with their classes, and L_mask of all proposals (Q, T).

        A GPU is waited for twice in a batch, not several times for each image.
        """
        mask_costs, costs = [], []
        classes_of_images = self._present(sem_seg, predictions.class_logits.shape[-1] - 1)
        for class_logits, mask_logits, truth, present, generator in zip(
            predictions.class_logits, predictions.mask_logits, sem_seg, classes_of_images, generators, strict=True
        ):
            points = self._matching_points(truth, generator)
            this = truth.new_zeros(1, dtype=torch.long)
            at_points = _labels_at(truth[None], this, points)[0]
            cost = mask_cost(
                point_sample(mask_logits[None].float(), points, align_corners=False)[0],
                self.share_at(truth[None], this, present[None], points)[0],
                bce_weight=self.weights.mask,
                dice_weight=self.weights.dice,
                valid=self._valid(at_points),
            )
            mask_costs.append(cost)
            costs.append(cost + self.weights.ce * class_cost(class_logits, present))
        matches = [
            (rows, present[columns]) for (rows, columns), present in zip(match_all(costs), classes_of_images, strict=True)
        ]
        return matches, mask_costs

    def _present(self, sem_seg: Tensor, num_classes: int) -> tuple[Tensor, ...]:
        """The classes of each image of ``sem_seg`` (N, H, W), rising."""
        labels = sem_seg.flatten(1)
        found = torch.zeros(len(labels), num_classes + 1, dtype=torch.bool, device=labels.device)
        found.scatter_(1, labels.where(labels != self.ignore_label, num_classes), True)
        images, classes = found[:, :-1].nonzero(as_tuple=True)
        return classes.split(torch.bincount(images, minlength=len(labels)).tolist())

    def _matching_points(self, truth: Tensor, generator: torch.Generator) -> Tensor:
        """(1, P, 2) points at which the masks of an image (H, W) are compared with all of its proposals."""
        if self.num_points == 0:
            return dense_points((truth.shape[0], truth.shape[1]), truth.device)
        return torch.rand(1, self.num_points, 2, generator=generator, dtype=torch.float32, device=truth.device)

    @torch.no_grad()
    def _mask_points(
        self, logits: Tensor, counts: Sequence[int], sem_seg: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """(M, P, 2) points of the mask loss, most of them where a mask is least certain, as PointRend has it.

        ``logits`` (M, h, w), of which each image has one of ``counts``.
        """
        if self.num_points == 0:
            return dense_points((sem_seg.shape[-2], sem_seg.shape[-1]), sem_seg.device).expand(len(logits), -1, -1)

        def draw(number: int) -> Tensor:
            return torch.cat(
                [
                    torch.rand(count, number, 2, generator=generator, dtype=torch.float32, device=logits.device)
                    for count, generator in zip(counts, generators, strict=True)
                ]
            )

        candidates = draw(int(self.num_points * self.oversample_ratio))
        num_uncertain = int(self.num_points * self.importance_sample_ratio)
        certainty = point_sample(logits[:, None].float(), candidates, align_corners=False)[:, 0].abs()
        chosen = certainty.topk(num_uncertain, dim=1, largest=False).indices[..., None].expand(-1, -1, 2)
        return torch.cat([candidates.gather(1, chosen), draw(self.num_points - num_uncertain)], dim=1)

    def _valid(self, labels_at_points: Tensor) -> Tensor | None:
        return (labels_at_points != self.ignore_label).float() if self.exclude_ignored_pixels else None

    def _classification(self, class_logits: Tensor, images: Tensor, proposals: Tensor, labels: Tensor) -> Tensor:
        """L_ce: matched proposals against their class, all others against the background with a small weight."""
        background = class_logits.shape[-1] - 1
        target = torch.full(class_logits.shape[:2], background, device=class_logits.device)
        target[images, proposals] = labels
        weight = torch.ones(background + 1, dtype=torch.float32, device=class_logits.device)
        weight[background] = self.weights.no_object
        total = F.cross_entropy(class_logits.float().flatten(0, 1), target.flatten(), weight, reduction="sum")
        return total / mean_over_processes(weight[target].sum())

    def _mask(
        self, logits: Tensor, points: Tensor, sem_seg: Tensor, images: Tensor, labels: Tensor, num_targets: int
    ) -> tuple[Tensor, Tensor]:
        """Binary cross entropy and dice of the matched masks, ``logits`` (M, h, w) at ``points`` (M, P, 2), over the number
        of ground-truth masks."""
        count = mean_over_processes(torch.tensor(num_targets, dtype=torch.float32, device=logits.device)).clamp(min=1)
        if len(labels) == 0:
            return logits.sum() * 0.0, logits.sum() * 0.0
        logits = logits[:, None].float()
        at_points = _labels_at(sem_seg, images, points)
        valid = self._valid(at_points)
        truth = self.share_at(sem_seg, images, labels[:, None], points)[:, 0]
        predicted = point_sample(logits, points, align_corners=False)[:, 0]
        return bce_loss(predicted, truth, valid).sum() / count, dice_loss(predicted, truth, valid).sum() / count

    def _virtual(self, features: Tensor, labels: Tensor, seeds: Tensor, prototypes: Tensor, logit_scale: Tensor) -> Tensor:
        """L_vir of the matched proposals of all processes: their F_cls (S, D), classes (S,) and images' seeds (S,)."""
        features, labels, seeds = rows_of_all_processes(features, labels, seeds)
        order = seeds.argsort(stable=True)  # in which process an image is makes no difference
        labels = labels[order]
        permutation, beta = sample_mixing(len(labels), self.mixup_alpha, seeds.unique().tolist(), labels.device)
        return feature_expansion_loss(
            features[order],
            labels,
            prototypes,
            permutation=permutation,
            beta=beta,
            logit_scale=logit_scale,
            exclude_same_class=self.exclude_same_class,
        )

    def _by_match(self, logits: Tensor, images: Tensor, proposals: Tensor, costs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Positives and negatives (N, Q) as the paper has them."""
        positives = torch.zeros_like(logits, dtype=torch.bool)
        positives[images, proposals] = True
        negatives = torch.stack(
            [select_negative_proposals(cost, ~matched, self.top_k) for cost, matched in zip(costs, positives, strict=True)]
        )
        return positives, negatives

    @torch.no_grad()
    def _by_overlap(self, mask_logits: Tensor, sem_seg: Tensor) -> tuple[Tensor, Tensor]:
        """Positives and negatives (N, Q) by the pixels on which the masks (N, Q, h, w) lie."""
        height, width = mask_logits.shape[-2:]
        points = dense_points((height, width), sem_seg.device).expand(len(sem_seg), -1, -1)
        every = torch.arange(len(sem_seg), device=sem_seg.device)
        labelled = _labels_at(sem_seg, every, points) != self.ignore_label
        return select_by_overlap(mask_logits.float().sigmoid().flatten(2), labelled)

    def _indicator(self, logits: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        # An image without a seen class says nothing about either kind of proposal.
        count = mean_over_processes((positives | negatives).sum().float())
        if has_event_storage():
            storage = get_event_storage()
            storage.put_scalar("alignzeg/positive_proposals", positives.sum().item() / len(logits))
            storage.put_scalar("alignzeg/negative_proposals", negatives.sum().item() / len(logits))
        return indicator_loss(logits, positives, negatives, count)


def _labels_at(sem_seg: Tensor, images: Tensor, points: Tensor) -> Tensor:
    """The label of the pixel in which each point lies: ``sem_seg`` (N, H, W), ``points`` (M, P, 2) of the images (M,) ->
    (M, P)."""
    height, width = sem_seg.shape[-2:]
    column = (points[..., 0] * width).long().clamp(0, width - 1)
    row = (points[..., 1] * height).long().clamp(0, height - 1)
    return sem_seg[images[:, None], row, column]


def _pixel_share_at(sem_seg: Tensor, images: Tensor, labels: Tensor, points: Tensor) -> Tensor:
    """1 where the pixel in which a point lies has a label, else 0.

    ``sem_seg`` (N, H, W), ``images`` (M,), ``labels`` (M, T), ``points`` (M, P, 2) -> (M, T, P).
    """
    return (_labels_at(sem_seg, images, points)[:, None] == labels[..., None]).float()


def _bilinear_share_at(sem_seg: Tensor, images: Tensor, labels: Tensor, points: Tensor) -> Tensor:
    """As :func:`_pixel_share_at`, but what bilinear interpolation of the label's mask gives at a point: outside is 0."""
    height, width = sem_seg.shape[-2:]
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    share = labels.new_zeros(*labels.shape, points.shape[1], dtype=points.dtype)
    left, above = x.floor(), y.floor()
    for column, row in ((left, above), (left + 1, above), (left, above + 1), (left + 1, above + 1)):
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        weight = (1 - (x - column).abs()) * (1 - (y - row).abs()) * inside
        there = sem_seg[images[:, None], row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()]
        share += weight[:, None] * (there[:, None] == labels[..., None])
    return share


_SHARE_AT = {"pixel": _pixel_share_at, "bilinear": _bilinear_share_at}


def mean_over_processes(count: Tensor) -> Tensor:
    """The mean of a count of each process."""
    if comm.get_world_size() == 1:
        return count
    total = count.clone()
    torch.distributed.all_reduce(total)
    return total / comm.get_world_size()


def rows_of_all_processes(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The rows of all processes, in the order of the ranks; all tensors have as many rows.

    A loss of these rows is the same in all processes, so the mean of its gradients over the processes, which DDP takes,
    lacks a factor: in each, only its own rows have a gradient. They get it times the number of processes.
    """
    world_size = comm.get_world_size()
    if world_size == 1:
        return tensors
    count = torch.tensor([len(tensors[0])], device=tensors[0].device)
    counts = [torch.empty_like(count) for _ in range(world_size)]
    torch.distributed.all_gather(counts, count)
    sizes = torch.cat(counts).tolist()
    return tuple(_gathered(tensor, sizes) for tensor in tensors)


def _gathered(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    torch.distributed.all_gather(parts, padded)
    parts = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    # The value is that of the rows, the slope len(sizes) times theirs.
    parts[comm.get_rank()] = rows + (len(sizes) - 1) * (rows - rows.detach())
    return torch.cat(parts)
