"""The losses of Epsilon (Eq. 9-12), as pure functions over a batch.

Shapes: N images, K classes, P positive (image, class) pairs of the batch, G groups (the paper's M), E length of the label
vectors (the paper's d_w).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

RankForm = Literal["paper", "sdl"]
VarianceForm = Literal["groups", "within"]

# (positive, class) pairs compared at once: 1 MB in float32, whatever the vocabulary, so that a CPU's cache holds them.
PAIRS_PER_CHUNK = 1 << 18


def rank_loss(scores: Tensor, positive: Tensor, form: RankForm = "paper", pairs_per_chunk: int = PAIRS_PER_CHUNK) -> Tensor:
    """RankNet loss L_r of each image (Eq. 9 and 10): alpha sum_j sum_k log(1 + exp(n_j - p_k)).

    The form "sdl" is the one in the public code of SDL (semantic diversity learning), which inspired the loss: alpha is not
    divided by the number of absent classes, and where no class is absent each present one is compared with a score of 0.

    Args:
        scores: (N, K), the best group's score of each class (:func:`epsilon_d2.modeling.semantic_fuser.class_scores`).
        positive: (N, K) bool, the classes T that an image shows; all others are T-bar.
        form: "paper": alpha = 1 / (|T| |T-bar|). "sdl": 1 / |T|.
        pairs_per_chunk: bounds the memory.

    Returns:
        (N,); 0 for an image in which no class is present, and in the paper's form where every class is. It can be
        differentiated once.

    Raises:
        ValueError: shapes that differ.
    """
    pairs = pair_sum(scores, positive, pairs_per_chunk=pairs_per_chunk)
    num_positive = positive.sum(dim=1).to(scores.dtype)
    num_negative = scores.shape[1] - num_positive
    if form == "paper":
        return pairs / (num_positive * num_negative).clamp(min=1)
    full = positive.all(dim=1).nonzero()[:, 0]  # images without an absent class, rare
    alone = F.softplus(-scores.index_select(0, full)).sum(dim=1)
    pairs = pairs.index_add(0, full, alone.to(pairs.dtype))  # autocast gives softplus in float32
    return pairs / num_positive.clamp(min=1)


def pair_sum(
    scores: Tensor, positive: Tensor, negative: Tensor | None = None, pairs_per_chunk: int = PAIRS_PER_CHUNK
) -> Tensor:
    """sum over present classes k and absent ones j of log(1 + exp(s_j - s_k)), for each image.

    Args:
        scores: (N, K).
        positive: (N, K) bool, the classes present.
        negative: (N, K) bool, the absent classes that take part; by default all that are not present.
        pairs_per_chunk: bounds the memory.

    Returns:
        (N,); 0 for an image without a pair. It can be differentiated once.

    Raises:
        ValueError: shapes that differ.
    """
    negative = ~positive if negative is None else negative
    if not scores.shape == positive.shape == negative.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and labels {tuple(positive.shape)} differ in shape")
    return _PairSum.apply(scores, positive, negative, max(1, pairs_per_chunk // max(1, scores.shape[1])))


class _PairSum(torch.autograd.Function):
    """:func:`pair_sum` with a gradient of its own.

    The derivative of softplus is the sigmoid of the same difference, so the gradient is summed up along with the loss and no
    pair is kept: autograd would hold several (P, K) matrices, gigabytes where images have hundreds of labels.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, positive: Tensor, negative: Tensor, rows_per_chunk: int) -> Tensor:
        """``scores``, ``positive`` and ``negative`` (N, K) -> (N,)."""
        total, gradient = scores.new_zeros(len(scores)), torch.zeros_like(scores)
        absent = scores.masked_fill(~negative, -torch.inf)  # elsewhere softplus and sigmoid are 0
        image, klass = positive.nonzero(as_tuple=True)  # (P,), (P,)
        for i, k in zip(image.split(rows_per_chunk), klass.split(rows_per_chunk), strict=True):
            difference = absent.index_select(0, i).sub_(scores[i, k][:, None])
            total.index_add_(0, i, _softplus(difference).sum(dim=1))
            slope = difference.sigmoid_()
            gradient.index_add_(0, i, slope)
            gradient[i, k] -= slope.sum(dim=1)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad_output[:, None] * gradient, None, None, None


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) to the last digits, without a gradient of its own.

    With torch.nn.functional.softplus it would take most of the loss's time: on a CPU its log1p is several times as slow as
    log. With u = 1 + t rounded, log(1 + t) = log(u) + (t - (u - 1)) / u, whose last term is what the rounding took away.
    """
    t = x.abs().neg_().exp_()
    u = t + 1
    return x.clamp(min=0).add_(u.log()).add_((t - (u - 1)).div_(u))


def diversity_weight(positive: Tensor, label_vectors: Tensor) -> Tensor:
    """omega (Eq. 11): 1 + the variance of an image's label vectors, summed over their dimensions.

    Args:
        positive: (N, K) bool.
        label_vectors: (K, E).

    Returns:
        (N,); 1 for an image with fewer than two labels, whose variance is not defined.
    """
    image, klass = positive.nonzero(as_tuple=True)  # (P,), (P,): few of an image's classes are present
    vectors, count = label_vectors[klass], positive.sum(dim=1)
    mean = vectors.new_zeros(len(positive), vectors.shape[1]).index_add(0, image, vectors) / count.clamp(min=1)[:, None]
    squares = (vectors - mean[image]).square().sum(dim=1)
    return 1 + squares.new_zeros(len(positive)).index_add(0, image, squares) / (count - 1).clamp(min=1)


def group_variance(semantics: Tensor, form: VarianceForm = "groups") -> Tensor:
    """L_reg (Eq. 12), an unbiased variance.

    Args:
        semantics: S (N, G, E).
        form: "groups": over the groups, summed over the dimensions, as in SDL's code. "within": over the dimensions of each
            group's vector, summed over the groups, as Eq. 12 is printed.

    Returns:
        (N,); 0 with one group in the first form.
    """
    if form == "within":
        return semantics.var(dim=2).sum(dim=1)
    # Written out, since torch.var is slow over any dimension but the last.
    deviation = semantics - semantics.mean(dim=1, keepdim=True)
    return deviation.square().sum(dim=(1, 2)) / max(1, semantics.shape[1] - 1)
