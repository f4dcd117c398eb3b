"""Fast0Tag (Zhang et al., CVPR 2016, "Fast Zero-Shot Image Tagging").

An image is one vector in the space of the label vectors, its *principal direction*; a class's score is its product with the
class's label vector. RankNet's loss ranks the classes present before those absent. The authors' code is not public; the
public copies differ in the network and in how pairs are weighted, and keys choose between them.

Shapes: N images, D width of the backbone, K classes, E length of the label vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from baselines_d2.token_tagger import Head, Tokens, TokenTagger, train_with
from epsilon_d2.config import add_tagger_config
from epsilon_d2.modeling.losses import diversity_weight, pair_sum, rank_loss
from zeroshot_d2.ranges import choice, declare, each, number, whole
from zeroshot_d2.system import System

Form = Literal["paper", "present", "table", "sum", "bce"]


class PrincipalDirection(Head):
    """Mean over the patches, then a perceptron to one vector; without hidden layers, one linear map."""

    def __init__(
        self, *, width: int, hidden: Sequence[int], label_width: int, bias: bool = True, dropout: float = 0.3
    ) -> None:
        """
        Args:
            width: D.
            hidden: widths of the hidden layers.
            label_width: E.
            bias: whether the linear maps have one.
            dropout: ahead of the last map, where there is a hidden layer.
        """
        super().__init__()
        layers: list[nn.Module] = []
        widths = [width, *hidden]
        for before, after in zip(widths, hidden, strict=False):
            layers += [nn.Linear(before, after, bias=bias), nn.ReLU()]
        if hidden:
            layers.append(nn.Dropout(dropout))
        self.network = nn.Sequential(*layers, nn.Linear(widths[-1], label_width, bias=bias))

    def forward(self, tokens: Tokens) -> Tensor:
        """The principal direction (N, E)."""
        return self.network(tokens.patches.mean(dim=(2, 3)))

    def scores(self, encoded: Tensor, label_vectors: Tensor) -> Tensor:
        return encoded @ label_vectors.T


def fast0tag_loss(scores: Tensor, positive: Tensor, form: Form = "paper", negative: Tensor | None = None) -> Tensor:
    """The loss of each image: over pairs of a class p present and a class n absent, log(1 + exp(s_n - s_p)).

    Args:
        scores: (N, K).
        positive: (N, K) bool; all other classes count as absent.
        form: what the sum over the pairs of an image is divided by.

            * "paper": the number of its pairs;
            * "present": the number of classes present; where no class is absent, each present one meets a score of 0 (the
              public code of SDL with one vector);
            * "table": K * K (the public code multi_label_zsl);
            * "sum": nothing;
            * "bce": no pairs, but the binary cross-entropy, averaged over the classes ("logistic" in multi_label_zsl).
        negative: (N, K) bool, the absent classes that pairs are made with; by default all.

    Returns:
        (N,); where pairs are what counts, 0 for an image without any.

    Raises:
        ValueError: shapes that differ, or ``negative`` with a form that has no pairs, or counts all absent classes.
    """
    if negative is not None and form in ("present", "bce"):
        raise ValueError(f"MODEL.FAST0TAG.LOSS.FORM {form!r} takes no sample of the absent classes: set NUM_NEGATIVES 0")
    if form == "bce":
        return F.binary_cross_entropy_with_logits(scores, positive.to(scores.dtype), reduction="none").mean(dim=1)
    if form == "present":
        return rank_loss(scores, positive, form="sdl")
    pairs = pair_sum(scores, positive, negative)
    if form == "sum":
        return pairs
    if form == "table":
        return pairs / scores.shape[1] ** 2
    num_negative = (~positive if negative is None else negative).sum(dim=1)
    return pairs / (positive.sum(dim=1) * num_negative).clamp(min=1)


def sample_negatives(positive: Tensor, count: int) -> Tensor:
    """``count`` of each image's absent classes, drawn uniformly and without replacement.

    As in multi_label_zsl, an image that has fewer of them lowers the number for the whole batch.

    Args:
        positive: (N, K) bool.

    Returns:
        (N, K) bool.
    """
    count = min(count, int((~positive).sum(dim=1).min()))
    drawn = torch.rand(positive.shape, dtype=torch.float32, device=positive.device)
    chosen = drawn.masked_fill(positive, -1.0).topk(count, dim=1).indices
    return torch.zeros_like(positive).scatter(1, chosen, True)


@META_ARCH_REGISTRY.register()
class Fast0Tag(TokenTagger):
    """Fast zero-shot image tagging, with the network."""

    @classmethod
    def method_parts(cls, cfg: CfgNode, *, width: int, side: int, label_width: int) -> dict[str, Any]:
        keys = cfg.MODEL.FAST0TAG
        head = PrincipalDirection(
            width=width, hidden=keys.HIDDEN, label_width=label_width, bias=keys.BIAS, dropout=keys.DROPOUT
        )
        names = ("FORM", "NUM_NEGATIVES", "DIVERSITY")
        return {"head": head, "loss": {name.lower(): keys.LOSS[name] for name in names}}

    def losses(self, encoded: Tensor, label_vectors: Tensor, labels: Tensor) -> dict[str, Tensor]:
        positive, count = labels == 1, self.loss["num_negatives"]
        negative = sample_negatives(positive, count) if count else None
        loss = fast0tag_loss(self.head.scores(encoded, label_vectors), positive, self.loss["form"], negative)
        if self.loss["diversity"]:
            loss = diversity_weight(positive, label_vectors) * loss
        return {"loss_bce" if self.loss["form"] == "bce" else "loss_rank": loss.mean()}


def add_fast0tag_config(cfg: CfgNode) -> None:
    """Add ``cfg.MODEL.FAST0TAG``, and set Detectron2's keys to the training of multi_label_zsl."""
    add_tagger_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "Fast0Tag"
    fast0tag = cfg.MODEL.FAST0TAG = CfgNode()
    fast0tag.HIDDEN = [8192, 2048]  # widths of the hidden layers, as in the paper; []: one linear map
    fast0tag.BIAS = True  # of the linear maps; the public code of SDL has none
    fast0tag.DROPOUT = 0.3  # ahead of the last map
    fast0tag.LOSS = CfgNode()
    # What the sum over an image's pairs of a class present and a class absent is divided by. "paper": the number of pairs.
    # "present": that of classes present (SDL's code). "table": that of classes, squared (multi_label_zsl). "sum": nothing.
    # "bce": no pairs, but the binary cross-entropy (multi_label_zsl's baseline "logistic").
    fast0tag.LOSS.FORM = "paper"
    # Absent classes that are drawn for each image; 0: all of them. multi_label_zsl draws 5.
    fast0tag.LOSS.NUM_NEGATIVES = 0
    # Weigh images by the diversity of their labels, as SDL's code does with one vector too.
    fast0tag.LOSS.DIVERSITY = False

    train_with(cfg, optimizer="ADAM", batch_size=512, base_lr=5e-4, max_epochs=100)


declare(
    "MODEL.FAST0TAG",
    {
        "HIDDEN": each(whole(1)),
        "DROPOUT": number(0, below=1),
        "LOSS.FORM": choice("paper", "present", "table", "sum", "bce"),
        "LOSS.NUM_NEGATIVES": whole(0),
        "LOSS.DIVERSITY": choice(True, False),
    },
)

SYSTEM = System(name="Fast0Tag", task="multilabel", add_config=add_fast0tag_config)
