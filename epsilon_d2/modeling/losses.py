"""The losses of Epsilon (Eq. 9-12), as pure functions over a batch.

Shapes: N images, K classes, P positive (image, class) pairs of the batch, G groups (the paper's M), E length of the label
vectors (the paper's d_w).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

RankForm = Literal["paper", "sdl"]

# (positive, class) pairs compared at once. 2^22 of them take 16 MB in float32, whatever the vocabulary.
PAIRS_PER_CHUNK = 1 << 22


def rank_loss(scores: Tensor, positive: Tensor, form: RankForm = "paper", pairs_per_chunk: int = PAIRS_PER_CHUNK) -> Tensor:
    """RankNet loss L_r of each image (Eq. 9 and 10): alpha sum_j sum_k log(1 + exp(n_j - p_k)).

    Args:
        scores: (N, K), the best group's score of each class (:func:`epsilon_d2.modeling.semantic_fuser.class_scores`).
        positive: (N, K) bool, the classes T that an image shows; all others are T-bar.
        form: "paper": alpha = 1 / (|T| |T-bar|). "sdl": 2 / |T|.
        pairs_per_chunk: beyond it pairs are recomputed in the backward pass rather than kept.

    Returns:
        (N,); 0 for an image in which no class, or every class, is present.

    Raises:
        ValueError: shapes that differ.
    """
    if scores.shape != positive.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and labels {tuple(positive.shape)} differ in shape")
    image, klass = positive.nonzero(as_tuple=True)  # (P,), (P,)
    rows_per_chunk = max(1, pairs_per_chunk // max(1, scores.shape[1]))
    if len(image) <= rows_per_chunk:
        per_positive = _against_negatives(scores, positive, image, klass)
    else:
        parts = zip(image.split(rows_per_chunk), klass.split(rows_per_chunk), strict=True)
        per_positive = torch.cat(
            [checkpoint(_against_negatives, scores, positive, i, k, use_reentrant=False) for i, k in parts]
        )
    num_positive = positive.sum(dim=1).to(scores.dtype)
    num_negative = scores.shape[1] - num_positive
    alpha = 1 / (num_positive * num_negative).clamp(min=1) if form == "paper" else 2 / num_positive.clamp(min=1)
    return alpha * torch.zeros_like(num_positive).index_add(0, image, per_positive)


def _against_negatives(scores: Tensor, positive: Tensor, image: Tensor, klass: Tensor) -> Tensor:
    """For each positive (``image``, ``klass``) (P,): the sum over its image's absent classes, (P,)."""
    difference = scores[image] - scores[image, klass][:, None]
    return F.softplus(difference).masked_fill(positive[image], 0.0).sum(dim=1)


def diversity_weight(positive: Tensor, label_vectors: Tensor) -> Tensor:
    """omega (Eq. 11): 1 + the variance of an image's label vectors, summed over their dimensions.

    Args:
        positive: (N, K) bool.
        label_vectors: (K, E).

    Returns:
        (N,); 1 for an image with fewer than two labels, whose variance is not defined.
    """
    present = positive.to(label_vectors.dtype)
    count = present.sum(dim=1)
    # Shifted by the mean over the vocabulary: the difference of two squares below then loses no digits.
    vectors = label_vectors - label_vectors.mean(dim=0)
    mean = present @ vectors / count.clamp(min=1)[:, None]
    squares = present @ vectors.square().sum(dim=1)
    variance = (squares - count * mean.square().sum(dim=1)) / (count - 1).clamp(min=1)
    return 1 + torch.where(count > 1, variance.clamp(min=0), torch.zeros_like(variance))


def group_variance(semantics: Tensor) -> Tensor:
    """L_reg (Eq. 12): unbiased variance over the groups, summed over the dimensions.

    ``semantics`` S (N, G, E) -> (N,); 0 with one group.
    """
    if semantics.shape[1] == 1:
        return semantics.sum(dim=(1, 2)) * 0.0
    return semantics.var(dim=1).sum(dim=1)
