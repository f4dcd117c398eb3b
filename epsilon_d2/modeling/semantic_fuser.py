"""The Semantic Fuser (Eq. 7 and 8) and the class scores (Eq. 9).

Shapes: N images, G groups (the paper's M), K classes, D width, E length of the label vectors (the paper's d_w).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CLASSES_PER_CHUNK = 1024  # 3 MB of products of 96 images with 8 groups in float32


class SemanticFuser(nn.Module):
    """S = Linear([GoS; GrS]); with one module alone, a linear map of what there is."""

    def __init__(self, *, width: int, num_parts: int, label_width: int) -> None:
        """
        Args:
            width: D.
            num_parts: 2 for GoS and GrS, 1 for an ablation.
            label_width: E.
        """
        super().__init__()
        self.project = nn.Linear(num_parts * width, label_width)

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        """``parts``: (N, G, D) each -> S (N, G, E)."""
        return self.project(torch.cat(list(parts), dim=-1))


def class_scores(semantics: Tensor, label_vectors: Tensor) -> Tensor:
    """A class's score is that of the group nearest to it: max over g of S_g . w_k, as in Eq. 9.

    ``semantics`` S (N, G, E), ``label_vectors`` (K, E) -> (N, K). It can be differentiated once.
    """
    if torch.is_grad_enabled() and (semantics.requires_grad or label_vectors.requires_grad):
        return _BestGroup.apply(semantics, label_vectors)
    return (semantics @ label_vectors.T).amax(dim=1)  # what exporters can follow, for any number of classes


class _BestGroup(torch.autograd.Function):
    """:func:`class_scores` with a gradient of its own.

    Only the nearest group of a class has a gradient. Autograd writes it among G - 1 zeros and multiplies all of them with
    the label vectors; here the rows that take part are added up, which costs the same for any G.
    """

    @staticmethod
    def forward(ctx: Any, semantics: Tensor, label_vectors: Tensor) -> Tensor:
        """``semantics`` (N, G, E), ``label_vectors`` (K, E) -> (N, K)."""
        # Some classes at a time: a CPU's cache then holds the (N, G, K) products until their best is taken.
        parts = [(semantics @ vectors.T).max(dim=1) for vectors in label_vectors.split(CLASSES_PER_CHUNK)]
        scores, nearest = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        ctx.save_for_backward(semantics, label_vectors, nearest)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None]:
        semantics, label_vectors, nearest = ctx.saved_tensors
        images, groups = semantics.shape[:2]
        weight = grad_output.to(label_vectors.dtype)
        # Which of all N * G groups has the gradient, for each image and class.
        group = nearest + groups * torch.arange(images, device=nearest.device)[:, None]
        for_semantics = for_vectors = None
        if ctx.needs_input_grad[0]:
            order = group.int().flatten().argsort(stable=True)  # the classes of a group side by side
            count = group.flatten().bincount(minlength=images * groups)
            classes = torch.arange(len(label_vectors), device=nearest.device).repeat(images)
            for_semantics = F.embedding_bag(
                classes.index_select(0, order),
                label_vectors,
                count.cumsum(0) - count,
                mode="sum",
                per_sample_weights=weight.flatten().index_select(0, order),
            ).view_as(semantics)
        if ctx.needs_input_grad[1]:
            vectors = semantics.to(label_vectors.dtype).flatten(0, 1)
            for_vectors = F.embedding_bag(group.T, vectors, mode="sum", per_sample_weights=weight.T)
        return for_semantics, for_vectors
