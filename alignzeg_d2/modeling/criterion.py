"""The training objective (Sec. 3.4, Eq. 8): what is compared with what, and with which weight.

Shapes: N images, Q proposals, T seen classes in an image, C training classes, M matched proposals of the batch, P points,
D embedding, B background prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.projects.point_rend.point_features import get_uncertain_point_coords_with_randomness, point_sample
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from alignzeg_d2.modeling.gepc.background_diversity import diversity_loss
from alignzeg_d2.modeling.gepc.feature_expansion import feature_expansion_loss, sample_mixing
from alignzeg_d2.modeling.losses import bce_loss, dense_points, dice_loss
from alignzeg_d2.modeling.matcher import class_cost, mask_cost, match
from alignzeg_d2.modeling.pbc import indicator_loss, select_negative_proposals
from zeroshot_d2.segmentation.labels import IGNORE_LABEL


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
        refined_features: F_cls (N, Q, D), unit length.
        indicator_logits: logits of I (N, Q), None for a model without PBC.
    """

    class_logits: Tensor
    mask_logits: Tensor
    refined_features: Tensor
    indicator_logits: Tensor | None


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
        exclude_ignored_pixels: bool = False,
        feature_expansion: bool = True,
        mixup_alpha: float = 3.0,
        exclude_same_class: bool = True,
        top_k: int = 50,
    ) -> None:
        """
        Args:
            weights: coefficients.
            ignore_label: the value of pixels without a seen class.
            num_points: points per mask of the mask loss; 0 takes every pixel, which makes it deterministic.
            oversample_ratio, importance_sample_ratio: of PointRend's sampling.
            exclude_ignored_pixels: leave ignored pixels out of the mask loss instead of counting them as negatives.
            feature_expansion: whether L_vir is part of the objective.
            mixup_alpha: alpha of Eq. 2.
            exclude_same_class: leave pairs of one class out of L_vir.
            top_k: K of PBC's negatives.
        """
        super().__init__()
        self.weights = weights
        self.ignore_label = ignore_label
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.exclude_ignored_pixels = exclude_ignored_pixels
        self.feature_expansion = feature_expansion
        self.mixup_alpha = mixup_alpha
        self.exclude_same_class = exclude_same_class
        self.top_k = top_k

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
            "exclude_ignored_pixels": loss.EXCLUDE_IGNORED_PIXELS,
            "feature_expansion": alignzeg.GEPC.FEATURE_EXPANSION,
            "mixup_alpha": alignzeg.GEPC.ALPHA,
            "exclude_same_class": alignzeg.GEPC.EXCLUDE_SAME_CLASS,
            "top_k": alignzeg.PBC.TOP_K,
        }

    def forward(
        self,
        predictions: Predictions,
        sem_seg: Tensor,
        *,
        prototypes: Tensor,
        background_prototypes: Tensor,
        logit_scale: Tensor,
    ) -> dict[str, Tensor]:
        """
        Args:
            predictions: of the batch.
            sem_seg: (N, H, W) class indices, ``ignore_label`` elsewhere; covers what the mask logits cover.
            prototypes: T (C, D), unit length.
            background_prototypes: G (B, D).
            logit_scale: ().

        Returns:
            weighted losses: loss_ce, loss_mask, loss_dice, loss_reg and, where they are part of the model, loss_vir and
            loss_bc. Each is normalised by counts over all processes, so that their mean over processes is what one
            process with the whole batch would compute; except loss_vir, which mixes the proposals of one process and is the
            mean over its own pairs.
        """
        # Without autocast: sums over thousands of points, and cosines times 100, are too coarse in half precision.
        with torch.autocast(predictions.mask_logits.device.type, enabled=False):
            matches, costs = self._match(predictions, sem_seg)
            images = torch.cat([torch.full_like(rows, i) for i, (rows, _) in enumerate(matches)])
            proposals = torch.cat([rows for rows, _ in matches])
            labels = torch.cat([classes for _, classes in matches])

            losses = {"loss_ce": self.weights.ce * self._classification(predictions.class_logits, images, proposals, labels)}
            bce, dice = self._mask(predictions.mask_logits[images, proposals], sem_seg, images, labels)
            losses["loss_mask"], losses["loss_dice"] = self.weights.mask * bce, self.weights.dice * dice
            if self.feature_expansion:
                permutation, beta = sample_mixing(len(labels), self.mixup_alpha, labels.device)
                losses["loss_vir"] = self.weights.vir * feature_expansion_loss(
                    predictions.refined_features[images, proposals].float(),
                    labels,
                    prototypes,
                    permutation=permutation,
                    beta=beta,
                    logit_scale=logit_scale,
                    exclude_same_class=self.exclude_same_class,
                )
            losses["loss_reg"] = self.weights.reg * diversity_loss(background_prototypes)
            if predictions.indicator_logits is not None:
                losses["loss_bc"] = self.weights.bc * self._indicator(predictions.indicator_logits, images, proposals, costs)
            return losses

    @torch.no_grad()
    def _match(self, predictions: Predictions, sem_seg: Tensor) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
        """For each image: matched proposals with their classes, and L_mask of all proposals (Q, T)."""
        points = self._random_points(sem_seg)
        matches, costs = [], []
        for class_logits, mask_logits, truth in zip(predictions.class_logits, predictions.mask_logits, sem_seg, strict=True):
            present = truth.unique()
            present = present[present != self.ignore_label]
            at_points = _labels_at(truth[None], points)[0]
            cost = mask_cost(
                point_sample(mask_logits[None].float(), points, align_corners=False)[0],
                at_points[None] == present[:, None],
                bce_weight=self.weights.mask,
                dice_weight=self.weights.dice,
                valid=self._valid(at_points),
            )
            rows, columns = match(cost + self.weights.ce * class_cost(class_logits, present))
            matches.append((rows, present[columns]))
            costs.append(cost)
        return matches, costs

    def _random_points(self, sem_seg: Tensor) -> Tensor:
        """(1, P, 2) points shared by the batch, so that the draw does not depend on how the batch is spread."""
        if self.num_points == 0:
            return dense_points((sem_seg.shape[-2], sem_seg.shape[-1]), sem_seg.device)
        return torch.rand(1, self.num_points, 2, device=sem_seg.device)

    def _valid(self, labels_at_points: Tensor) -> Tensor | None:
        return (labels_at_points != self.ignore_label).float() if self.exclude_ignored_pixels else None

    def _classification(self, class_logits: Tensor, images: Tensor, proposals: Tensor, labels: Tensor) -> Tensor:
        """L_ce: matched proposals against their class, all others against the background with a small weight."""
        background = class_logits.shape[-1] - 1
        target = torch.full(class_logits.shape[:2], background, device=class_logits.device)
        target[images, proposals] = labels
        weight = torch.ones(background + 1, device=class_logits.device)
        weight[background] = self.weights.no_object
        total = F.cross_entropy(class_logits.float().flatten(0, 1), target.flatten(), weight, reduction="sum")
        return total / _mean_over_processes(weight[target].sum())

    def _mask(self, logits: Tensor, sem_seg: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Binary cross entropy and dice of the matched masks: ``logits`` (M, h, w)."""
        count = _mean_over_processes(torch.tensor(float(len(labels)), device=logits.device)).clamp(min=1)
        if len(labels) == 0:
            return logits.sum() * 0.0, logits.sum() * 0.0
        logits = logits[:, None].float()
        if self.num_points == 0:
            points = self._random_points(sem_seg).expand(len(labels), -1, -1)
        else:
            with torch.no_grad():
                points = get_uncertain_point_coords_with_randomness(
                    logits,
                    lambda x: -x.abs(),
                    self.num_points,
                    self.oversample_ratio,
                    self.importance_sample_ratio,
                )
        at_points = _labels_at(sem_seg[images], points)
        valid = self._valid(at_points)
        truth = (at_points == labels[:, None]).float()
        predicted = point_sample(logits, points, align_corners=False)[:, 0]
        return bce_loss(predicted, truth, valid).sum() / count, dice_loss(predicted, truth, valid).sum() / count

    def _indicator(self, logits: Tensor, images: Tensor, proposals: Tensor, costs: list[Tensor]) -> Tensor:
        positives = torch.zeros_like(logits, dtype=torch.bool)
        positives[images, proposals] = True
        negatives = torch.stack(
            [select_negative_proposals(cost, ~matched, self.top_k) for cost, matched in zip(costs, positives, strict=True)]
        )
        # An image without a seen class says nothing about either kind of proposal.
        count = _mean_over_processes((positives | negatives).sum().float())
        if has_event_storage():
            get_event_storage().put_scalar("alignzeg/negative_proposals", negatives.sum().item() / len(logits))
        return indicator_loss(logits, positives, negatives, count)


def _labels_at(sem_seg: Tensor, points: Tensor) -> Tensor:
    """The label of the pixel in which each point lies: ``sem_seg`` (M, H, W), ``points`` (M, P, 2) -> (M, P)."""
    height, width = sem_seg.shape[-2:]
    column = (points[..., 0] * width).long().clamp(0, width - 1)
    row = (points[..., 1] * height).long().clamp(0, height - 1)
    return sem_seg.flatten(1).gather(1, row * width + column)


def _mean_over_processes(count: Tensor) -> Tensor:
    if comm.get_world_size() == 1:
        return count
    total = count.clone()
    torch.distributed.all_reduce(total)
    return total / comm.get_world_size()
