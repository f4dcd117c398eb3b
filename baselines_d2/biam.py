"""BiAM (Narayan et al., ICCV 2021, "Discriminative Region-based Multi-Label Zero-Shot Learning").

Two blocks enrich the patches: region context lets them attend to each other, scene context gates their channels by the
image's global vector. Every patch is compared with every class, and a class has the mean of its few best patches.

Shapes: N images, D width of the backbone, (h, w) the grid of patches, C channels of the blocks, F channels of the enriched
patches, K classes, E length of the label vectors.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from baselines_d2.lesa import hinge_rank_loss
from baselines_d2.token_tagger import Head, Tokens, TokenTagger, batch_norm, train_with
from epsilon_d2.config import add_tagger_config
from zeroshot_d2.ranges import choice, declare, number, whole
from zeroshot_d2.system import System


class RegionContext(nn.Module):
    """Patches attend to each other in several heads, then pass a perceptron; both with a residual and without a norm."""

    def __init__(self, channels: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"MODEL.BIAM.NUM_HEADS {num_heads} does not divide MODEL.BIAM.CHANNELS {channels}")
        self.num_heads, self.dropout = num_heads, dropout
        self.query, self.key, self.value, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))
        self.perceptron = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 1), nn.ReLU(), nn.Conv2d(2 * channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> the same shape."""
        q, k, v = (
            layer(x).flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)  # (N, heads, h * w, C / heads)
            for layer in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(2, 3).reshape(x.shape)
        x = x + F.dropout(self.out(attended), dropout)
        return x + self.perceptron(x)


class SceneContext(nn.Module):
    """Channels are gated by how well the patches, on the whole, fit the image's global vector."""

    def __init__(self, channels: int, global_width: int, dropout: float, bn_momentum: float) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.LeakyReLU(0.2))
        self.scene = nn.Sequential(nn.Dropout(dropout), nn.Linear(global_width, channels))
        self.refine = _convolution_and_norm(channels, channels, bn_momentum)

    def forward(self, x: Tensor, global_vector: Tensor) -> Tensor:
        """(N, C, h, w), and the image's global vector -> (N, C, h, w)."""
        local = self.local(x)
        gate = (local.mean(dim=(2, 3)) * self.scene(global_vector)).sigmoid()
        gated = gate[:, :, None, None] * local
        return gated + self.refine(gated)


class BiLevelAttention(Head):
    """Both contexts, and every patch's similarity to every class."""

    def __init__(
        self,
        *,
        width: int,
        global_width: int,
        label_width: int,
        channels: int = 256,
        num_heads: int = 8,
        class_width: int = 512,
        top_patches: int = 6,
        dropout: float = 0.1,
        scene_dropout: float = 0.2,
        bn_momentum: float = 0.99,
    ) -> None:
        """
        Args:
            width: D.
            global_width: length of the image's global vector.
            label_width: E.
            channels: C.
            num_heads: of the region context.
            class_width: F.
            top_patches: how many of the best patches are averaged.
            dropout: in the region context.
            scene_dropout: on the global vector.
            bn_momentum: share of the newest batch in the running statistics.

        Raises:
            ValueError: the heads do not divide the channels.
        """
        super().__init__()
        self.top_patches = top_patches
        self.reduce = _convolution_and_norm(width, channels, bn_momentum)
        self.region = RegionContext(channels, num_heads, dropout)
        self.scene = SceneContext(channels, global_width, scene_dropout, bn_momentum)
        self.fuse = nn.Sequential(nn.Conv2d(2 * channels, class_width, 1), nn.LeakyReLU(0.2))
        self.classifier = nn.Linear(label_width, class_width)

    def forward(self, tokens: Tokens) -> Tensor:
        """The enriched patches (N, h * w, F)."""
        assert tokens.cls is not None
        x = self.reduce(tokens.patches)
        both = torch.cat([self.region(x), self.scene(x, tokens.cls)], dim=1)
        return self.fuse(both).flatten(2).transpose(1, 2)

    def scores(self, encoded: Tensor, label_vectors: Tensor) -> Tensor:
        by_patch = encoded @ self.classifier(label_vectors).T  # (N, h * w, K)
        return by_patch.topk(self.top_patches, dim=1).values.mean(dim=1)


def _convolution_and_norm(before: int, after: int, momentum: float) -> nn.Sequential:
    """3 x 3, with the ReLU ahead of the norm, as in the public code."""
    norm = batch_norm(after, momentum=momentum, eps=1e-3)
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), norm)


@META_ARCH_REGISTRY.register()
class BiAM(TokenTagger):
    """Bi-level attention; the image's global vector is the backbone's [CLS] token."""

    uses_cls_token = True

    @classmethod
    def method_parts(cls, cfg: CfgNode, *, width: int, side: int, label_width: int) -> dict[str, Any]:
        keys = cfg.MODEL.BIAM
        if side * side < keys.TOP_PATCHES:
            raise ValueError(f"MODEL.BIAM.TOP_PATCHES is {keys.TOP_PATCHES}, but an image has {side * side} patches")
        head = BiLevelAttention(
            width=width,
            global_width=width,
            label_width=label_width,
            channels=keys.CHANNELS,
            num_heads=keys.NUM_HEADS,
            class_width=keys.CLASS_WIDTH,
            top_patches=keys.TOP_PATCHES,
            dropout=keys.DROPOUT,
            scene_dropout=keys.SCENE_DROPOUT,
            bn_momentum=keys.BN_MOMENTUM,
        )
        return {"head": head, "loss": {}, "skip_unlabelled": keys.SKIP_UNLABELLED, "max_labels": keys.MAX_LABELS}

    def losses(self, encoded: Tensor, label_vectors: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss_rank": hinge_rank_loss(self.head.scores(encoded, label_vectors), labels).mean()}


def add_biam_config(cfg: CfgNode) -> None:
    """Add ``cfg.MODEL.BIAM``, and set Detectron2's keys to the training of the public code."""
    add_tagger_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "BiAM"
    cfg.MODEL.EPSILON.BACKBONE.CLS_TOKEN = True  # the image's global vector
    biam = cfg.MODEL.BIAM = CfgNode()
    biam.CHANNELS = 256  # C, of both blocks
    biam.NUM_HEADS = 8  # of the region context; 16 on Open Images
    biam.CLASS_WIDTH = 512  # F, in which patches and classes are compared
    biam.TOP_PATCHES = 6  # a class's score is the mean of so many of its best patches
    biam.DROPOUT = 0.1  # in the region context
    biam.SCENE_DROPOUT = 0.2  # on the global vector
    # Share of the newest batch in the running statistics of the batch norms. The public code's 0.99, which is all but the
    # last batch alone, was probably meant to be 0.01.
    biam.BN_MOMENTUM = 0.99
    biam.SKIP_UNLABELLED = True  # learn nothing from images without a label
    biam.MAX_LABELS = 0  # learn nothing from images with more labels; 0: no limit. 40 on Open Images

    # Its code then goes on for 5 epochs at a third of the rate with the images that it held back for validation.
    train_with(cfg, optimizer="ADAM", batch_size=32, base_lr=1e-3, max_epochs=40, weight_decay=5e-4)
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    cfg.SOLVER.BASE_LR_END = 5e-4
    cfg.SOLVER.WARMUP_FACTOR = 1 / 3


declare(
    "MODEL.BIAM",
    {
        "CHANNELS": whole(1),
        "NUM_HEADS": whole(1),
        "CLASS_WIDTH": whole(1),
        "TOP_PATCHES": whole(1),
        "DROPOUT": number(0, below=1),
        "SCENE_DROPOUT": number(0, below=1),
        "BN_MOMENTUM": number(above=0, most=1),
        "SKIP_UNLABELLED": choice(True, False),
        "MAX_LABELS": whole(0),
    },
)

SYSTEM = System(name="BiAM", task="multilabel", add_config=add_biam_config)
