"""LESA (Huynh and Elhamifar, CVPR 2020, "A Shared Multi-Attention Framework for Multi-Label Zero-Shot Learning").

A few attentions, shared by all classes, gather the patches; a class has the score of the attention that suits it best. Three
more losses make the attentions differ, be used, and beat the mean over the image.

Shapes: N images, L = h * w patches, D width of the backbone, T attentions, K classes, E length of the label vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_gather
from torch import Tensor, nn

from baselines_d2.token_tagger import Head, Tokens, TokenTagger, batch_norm, train_with
from epsilon_d2.config import add_tagger_config
from zeroshot_d2.ranges import choice, declare, number, whole
from zeroshot_d2.system import System


@dataclass(frozen=True)
class Attended:
    """What the attentions gather.

    Attributes:
        features: (N, T, D).
        logits: (N, T, L), ahead of the softmax over the patches.
        mean: (N, D), over all patches alike.
    """

    features: Tensor
    logits: Tensor
    mean: Tensor


class SharedAttention(Head):
    """T attentions over the patches, and a bilinear score of what they gather with the unit label vectors."""

    def __init__(
        self, *, width: int, num_attentions: int, label_width: int, convolution: bool = True, separate: bool = False
    ) -> None:
        """
        Args:
            width: D.
            num_attentions: T.
            label_width: E.
            convolution: a 2 x 2 convolution, a batch norm and a ReLU ahead of the attentions.
            separate: a hidden layer for each attention; by default they share one.
        """
        super().__init__()
        self.num_attentions, self.separate = num_attentions, separate
        self.convolution: nn.Module = nn.Identity()
        if convolution:
            conv = nn.Conv2d(width, width, 2, bias=False)
            nn.init.xavier_uniform_(conv.weight)
            self.convolution = nn.Sequential(
                nn.ZeroPad2d(
                    (0, 1, 0, 1)
                ),  # an even kernel keeps the size with a column at the right and a row at the bottom
                conv,
                batch_norm(width, momentum=0.01, eps=1e-3),
                nn.ReLU(),
            )
        # The public code appends a 1 to the inputs of the first two: their biases.
        hidden_layers = num_attentions if separate else 1
        self.hidden = nn.Linear(width, hidden_layers * width)
        self.attention = nn.Linear(width, num_attentions)
        self.classifier = nn.Linear(label_width, width, bias=False)
        _he_normal(hidden_layers * (width + 1), self.hidden.weight, self.hidden.bias)
        _he_normal(width + 1, self.attention.weight, self.attention.bias)
        _he_normal(width, self.classifier.weight)

    def forward(self, tokens: Tokens) -> Attended:
        x = self.convolution(tokens.patches).flatten(2).transpose(1, 2)  # (N, L, D)
        hidden = self.hidden(x).tanh()
        if self.separate:
            hidden = hidden.unflatten(-1, (self.num_attentions, -1))  # (N, L, T, D)
            logits = (hidden * self.attention.weight).sum(dim=-1) + self.attention.bias
        else:
            logits = self.attention(hidden)
        logits = logits.transpose(1, 2)
        return Attended(logits.softmax(dim=-1) @ x, logits, x.mean(dim=1))

    def classifiers(self, label_vectors: Tensor) -> Tensor:
        """Label vectors (K, E), brought to unit length here -> (K, D)."""
        return self.classifier(F.normalize(label_vectors, dim=-1))

    def scores(self, encoded: Attended, label_vectors: Tensor) -> Tensor:
        return (encoded.features @ self.classifiers(label_vectors).T).amax(dim=1)


def _he_normal(fan_in: int, *parameters: Tensor) -> None:
    """He's initialisation, truncated at two deviations, as TensorFlow 1's ``variance_scaling_initializer`` draws it."""
    std = math.sqrt(1.3 * 2 / fan_in)  # 1.3 makes up for the truncation
    for parameter in parameters:
        nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)


# ------------------------------------------------------------------------------------------------------------ losses
def hinge_rank_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """The mean of max(0, 1 + s_n - s_p) over an image's violated pairs of a class p present and a class n absent.

    Args:
        scores: (N, K).
        labels: (N, K): 1 present, -1 absent, 0 not annotated and in no pair.

    Returns:
        (N,); 0 for an image without a violated pair.
    """
    image, present = (labels == 1).nonzero(as_tuple=True)  # (P,), (P,)
    violations = F.relu(1 + scores[image] - scores[image, present][:, None]) * (labels[image] == -1)  # (P, K)
    none = scores.new_zeros(len(scores))
    total = none.index_add(0, image, violations.sum(dim=1))
    count = none.index_add(0, image, (violations > 0).sum(dim=1, dtype=none.dtype))
    return total / (count + 1e-8)


def distribution_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Small where an image's labels are spread over the attentions.

    Args:
        scores: (N, T, K), of each attention.
        labels: (N, K), as for :func:`hinge_rank_loss`.

    Returns:
        (), the mean over images and attentions.
    """
    shares = scores.softmax(dim=1) @ (labels == 1).to(scores.dtype)[..., None]
    return shares.square().mean()


def global_loss(scores: Tensor, global_scores: Tensor, labels: Tensor, margin: float = 0.0) -> Tensor:
    """What the scores lack to be better than those of the mean over the image by the margin; summed, not averaged.

    Args:
        scores, global_scores: (N, K).
        labels: (N, K), as for :func:`hinge_rank_loss`.

    Returns:
        (), in which a class that is not annotated counts the margin.
    """
    return F.relu(margin - (scores - global_scores) * labels).sum()


def span_loss(logits: Tensor) -> Tensor:
    """Small where the attentions look at different patches: the norm of all cosines between two of them.

    Args:
        logits: (N, T, L).

    Returns:
        (), the Frobenius norm over the whole batch, with the images of all processes.
    """
    unit = F.normalize(logits, dim=-1)
    cosines = unit @ unit.transpose(1, 2)
    different = ~torch.eye(cosines.shape[1], dtype=torch.bool, device=cosines.device)
    norms = differentiable_all_gather(torch.linalg.vector_norm(cosines * different))
    return torch.linalg.vector_norm(torch.stack(list(norms)))


def lesa_losses(
    attended: Attended,
    classifiers: Tensor,
    labels: Tensor,
    *,
    distribution_weight: float,
    global_weight: float,
    span_weight: float,
    global_margin: float,
) -> dict[str, Tensor]:
    """The four losses, weighted; ``classifiers`` (K, D), ``labels`` (N, K) as for :func:`hinge_rank_loss`."""
    by_attention = attended.features @ classifiers.T  # (N, T, K)
    scores, global_scores = by_attention.amax(dim=1), attended.mean @ classifiers.T
    return {
        "loss_rank": hinge_rank_loss(scores, labels).mean(),
        "loss_distribution": distribution_weight * distribution_loss(by_attention, labels),
        "loss_global": global_weight * global_loss(scores, global_scores, labels, global_margin),
        "loss_span": span_weight * span_loss(attended.logits),
    }


@META_ARCH_REGISTRY.register()
class LESA(TokenTagger):
    """Shared multi-attention."""

    head: SharedAttention

    @classmethod
    def method_parts(cls, cfg: CfgNode, *, width: int, side: int, label_width: int) -> dict[str, Any]:
        keys = cfg.MODEL.LESA
        head = SharedAttention(
            width=width,
            num_attentions=keys.NUM_ATTENTIONS,
            label_width=label_width,
            convolution=keys.CONVOLUTION,
            separate=keys.SEPARATE,
        )
        names = ("DISTRIBUTION_WEIGHT", "GLOBAL_WEIGHT", "SPAN_WEIGHT", "GLOBAL_MARGIN")
        return {
            "head": head,
            "loss": {name.lower(): keys.LOSS[name] for name in names},
            "skip_unlabelled": keys.SKIP_UNLABELLED,
        }

    def losses(self, encoded: Attended, label_vectors: Tensor, labels: Tensor) -> dict[str, Tensor]:
        losses = lesa_losses(encoded, self.head.classifiers(label_vectors), labels, **self.loss)
        # A sum over the batch, of which processes take the mean.
        return {**losses, "loss_global": comm.get_world_size() * losses["loss_global"]}


def add_lesa_config(cfg: CfgNode) -> None:
    """Add ``cfg.MODEL.LESA``, and set Detectron2's keys to the training of the public code."""
    add_tagger_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "LESA"
    lesa = cfg.MODEL.LESA = CfgNode()
    lesa.NUM_ATTENTIONS = 10  # T
    # A 2 x 2 convolution, a batch norm and a ReLU ahead of the attentions, as in all published experiments.
    lesa.CONVOLUTION = True
    # A hidden layer for each attention instead of one for all.
    lesa.SEPARATE = False
    lesa.LOSS = CfgNode()
    lesa.LOSS.DISTRIBUTION_WEIGHT = 0.1  # of the loss that spreads labels over attentions
    lesa.LOSS.GLOBAL_WEIGHT = 0.001  # of the loss that wants better scores than the mean over the image gives
    lesa.LOSS.SPAN_WEIGHT = 0.01  # of the loss that wants attentions to differ
    lesa.LOSS.GLOBAL_MARGIN = 0.0  # by how much they must be better
    # Learn nothing from images without a label, as the public code does on Open Images.
    lesa.SKIP_UNLABELLED = False

    # The public code also multiplies the rate by 0.8 where the validation score falls.
    train_with(cfg, optimizer="RMSPROP", batch_size=32, base_lr=1e-3)
    cfg.SOLVER.MAX_ITER = 200000
    cfg.SOLVER.MOMENTUM = 0.9
    cfg.SOLVER.RMSPROP_EPS = 1.0


declare(
    "MODEL.LESA",
    {
        "NUM_ATTENTIONS": whole(1),
        "CONVOLUTION": choice(True, False),
        "SEPARATE": choice(True, False),
        "LOSS.DISTRIBUTION_WEIGHT": number(0),
        "LOSS.GLOBAL_WEIGHT": number(0),
        "LOSS.SPAN_WEIGHT": number(0),
        "LOSS.GLOBAL_MARGIN": number(0),
        "SKIP_UNLABELLED": choice(True, False),
    },
)

SYSTEM = System(name="LESA", task="multilabel", add_config=add_lesa_config)
