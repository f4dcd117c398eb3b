"""SDL (Ben-Cohen et al., ICCV 2021, "Semantic Diversity Learning for Zero-Shot Multi-Label Classification").

An image is a few *principal vectors* in the space of the label vectors; a class has the score of the nearest of them. The
loss ranks the classes present before those absent, weighs images by the diversity of their labels, and holds the principal
vectors of an image together. Epsilon's loss comes from it, so its parts are used here.

Shapes: N images, D width of the backbone, M principal vectors, K classes, E length of the label vectors.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from torch import Tensor, nn

from baselines_d2.token_tagger import Head, Tokens, TokenTagger, train_with
from epsilon_d2.config import add_tagger_config
from epsilon_d2.modeling.losses import diversity_weight, group_variance, rank_loss
from epsilon_d2.modeling.semantic_fuser import class_scores
from zeroshot_d2.ranges import choice, declare, number, optional, whole
from zeroshot_d2.system import System


class PrincipalVectors(Head):
    """Mean over the patches, then one linear map to M principal vectors."""

    def __init__(self, *, width: int, num_vectors: int, label_width: int) -> None:
        """
        Args:
            width: D.
            num_vectors: M.
            label_width: E.
        """
        super().__init__()
        self.num_vectors = num_vectors
        self.embedding = nn.Linear(width, num_vectors * label_width, bias=False)

    def forward(self, tokens: Tokens) -> Tensor:
        """Principal vectors (N, M, E); component d of vector m is output number d * M + m, as in the public code."""
        return as_vectors(self.embedding(tokens.patches.mean(dim=(2, 3))), self.num_vectors)

    def scores(self, encoded: Tensor, label_vectors: Tensor) -> Tensor:
        return class_scores(encoded, label_vectors)


def as_vectors(flat: Tensor, num_vectors: int) -> Tensor:
    """Numbers (N, E * M), the components of all M vectors side by side -> (N, M, E)."""
    return flat.unflatten(1, (-1, num_vectors)).transpose(1, 2)


def sdl_loss(vectors: Tensor, label_vectors: Tensor, positive: Tensor, *, reg_weight: float | None) -> dict[str, Tensor]:
    """2 ((1 - w) omega L_rank + w L_reg), for each image; without a weight w, omega L_rank.

    Args:
        vectors: principal vectors (N, M, E).
        label_vectors: (K, E).
        positive: (N, K) bool; all other classes count as absent.
        reg_weight: w, or None.

    Returns:
        loss_rank (N,), 0 for an image without a positive; and with a weight loss_reg (N,), 0 where M is 1.
    """
    rank = rank_loss(class_scores(vectors, label_vectors), positive, form="sdl")
    rank = diversity_weight(positive, label_vectors) * rank
    if reg_weight is None:
        return {"loss_rank": rank}
    return {"loss_rank": 2 * (1 - reg_weight) * rank, "loss_reg": 2 * reg_weight * group_variance(vectors)}


@META_ARCH_REGISTRY.register()
class SDL(TokenTagger):
    """Semantic diversity learning."""

    @classmethod
    def method_parts(cls, cfg: CfgNode, *, width: int, side: int, label_width: int) -> dict[str, Any]:
        keys = cfg.MODEL.SDL
        head = PrincipalVectors(width=width, num_vectors=keys.NUM_VECTORS, label_width=label_width)
        return {"head": head, "loss": {"reg_weight": keys.LOSS.WEIGHT, "reduction": keys.LOSS.REDUCTION}}

    def losses(self, encoded: Tensor, label_vectors: Tensor, labels: Tensor) -> dict[str, Tensor]:
        per_image = sdl_loss(encoded, label_vectors, labels == 1, reg_weight=self.loss["reg_weight"])
        if self.loss["reduction"] == "sum":  # of which processes take the mean
            return {name: comm.get_world_size() * loss.sum() for name, loss in per_image.items()}
        return {name: loss.mean() for name, loss in per_image.items()}


def add_sdl_config(cfg: CfgNode) -> None:
    """Add ``cfg.MODEL.SDL``, and set Detectron2's keys to the training of the public code."""
    add_tagger_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "SDL"
    sdl = cfg.MODEL.SDL = CfgNode()
    # M, principal vectors of an image: the paper's number for NUS-WIDE. The script for COCO has 2.
    sdl.NUM_VECTORS = 7
    sdl.LOSS = CfgNode()
    # w, of the regulariser. None: no regulariser, and no factor 2. The script for COCO has 0.01.
    sdl.LOSS.WEIGHT = 0.3
    sdl.LOSS.REDUCTION = "mean"  # over the batch, or "sum"

    train_with(cfg, optimizer="ADAM", batch_size=32, base_lr=2.5e-5, max_epochs=10, weight_decay=3e-4)
    # One cycle: a tenth of the steps up from 1/25 of the rate, then down to 0. Here the way up is a line.
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    cfg.SOLVER.WARMUP_FACTOR = 1 / 25


declare(
    "MODEL.SDL",
    {
        "NUM_VECTORS": whole(1),
        "LOSS.WEIGHT": optional(number(0, 1)),
        "LOSS.REDUCTION": choice("mean", "sum"),
    },
)

SYSTEM = System(name="SDL", task="multilabel", add_config=add_sdl_config)
