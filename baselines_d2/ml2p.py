"""The (ML)2P-Encoder (Liu et al., CVPR 2023): channels that attend to each other.

Channels, not patches, are what attends: in M groups of as many channels as label vectors have numbers. Each group becomes a
vector in the space of the label vectors, and the groups attend to each other.

The training and the loss are not public. The options of the public code speak of SDL's, which is what is used here.

Shapes: N images, D width of a source, G side of the grid of positions, M groups, K classes, E length of the label vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from baselines_d2.sdl import as_vectors, sdl_loss
from baselines_d2.token_tagger import Head, Tokens, TokenTagger, batch_norm, train_with
from epsilon_d2.config import add_tagger_config
from epsilon_d2.modeling.semantic_fuser import class_scores
from zeroshot_d2.ranges import choice, declare, number, optional, whole
from zeroshot_d2.system import System


class ChannelAttention(nn.Module):
    """The channels of each group attend to each other, by the cosine of their maps and a learnt temperature."""

    def __init__(self, num_groups: int, group_width: int) -> None:
        super().__init__()
        channels = num_groups * group_width
        self.num_groups = num_groups
        self.temperature = nn.Parameter(torch.ones(num_groups, 1, 1))
        self.qkv = nn.Sequential(
            nn.Conv2d(channels, 3 * channels, 1),
            nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, M * E, G, G) -> (N, M, E, G * G)."""
        q, k, v = (
            part.flatten(2).unflatten(1, (self.num_groups, -1))  # (N, M, E, G * G)
            for part in self.qkv(x).chunk(3, dim=1)
        )
        cosines = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return (cosines * self.temperature).softmax(dim=-1) @ v


class Mixer(nn.Module):
    """One block of an MLP-Mixer: a perceptron over the positions, then one over the channels."""

    def __init__(self, num_positions: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.positions = _perceptron(num_positions, num_positions // 5)
        self.channels = _perceptron(width, width // 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, M, G * G, E) -> the same shape."""
        x = x + self.positions(self.norm1(x).transpose(-2, -1)).transpose(-2, -1)
        return x + self.channels(self.norm2(x))


def _perceptron(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class GroupAttention(nn.Module):
    """(q k^T) v over the groups, where v is the input: without a softmax, a scale or a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = _perceptron(width, width), _perceptron(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, M, E) -> the same shape."""
        return self.query(x) @ self.key(x).transpose(-2, -1) @ x


class ChannelEncoder(Head):
    """Feature maps -> M vectors in the space of the label vectors."""

    def __init__(
        self,
        *,
        sources: Sequence[tuple[int, int]],
        feature_widths: Sequence[int],
        grid: int,
        num_groups: int,
        label_width: int,
        regroup: bool = True,
    ) -> None:
        """
        Args:
            sources: (D, side) of each feature map.
            feature_widths: channels that each of them is brought to.
            grid: G; maps are pooled to it.
            num_groups: M.
            label_width: E.
            regroup: read the (M, E) numbers of an image as (E, M), as the public code does; each vector then takes numbers
                from all groups.

        Raises:
            ValueError: a map that the grid does not divide.
        """
        super().__init__()
        for _, side in sources:
            if side % grid:
                raise ValueError(f"MODEL.ML2P.GRID {grid} does not divide a feature map of {side} x {side} positions")
        self.num_groups, self.regroup = num_groups, regroup
        self.transforms = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 1, bias=False),
                batch_norm(after, momentum=0.01),
                nn.ReLU(),
                nn.MaxPool2d(side // grid),
            )
            for (before, side), after in zip(sources, feature_widths, strict=True)
        )
        self.embedding = nn.Conv2d(sum(feature_widths), num_groups * label_width, 1)
        self.channel_attention = ChannelAttention(num_groups, label_width)
        self.mixer = Mixer(grid * grid, label_width)
        self.group_attention = GroupAttention(label_width)

    def forward(self, tokens: Tokens) -> Tensor:
        """The M vectors of each image (N, M, E)."""
        return self.encode([tokens.patches])

    def encode(self, maps: Sequence[Tensor]) -> Tensor:
        """Feature maps, (N, D, side, side) each -> (N, M, E)."""
        features = torch.cat([transform(x) for transform, x in zip(self.transforms, maps, strict=True)], dim=1)
        channels = self.channel_attention(shuffle(self.embedding(features), self.num_groups))
        groups = self.group_attention(self.mixer(channels.transpose(-2, -1)).amax(dim=2).sigmoid())
        return as_vectors(groups.flatten(1), self.num_groups) if self.regroup else groups

    def scores(self, encoded: Tensor, label_vectors: Tensor) -> Tensor:
        return class_scores(encoded, label_vectors)


def shuffle(x: Tensor, num_groups: int) -> Tensor:
    """Of (N, M * E, G, G), channel i * E + j goes to j * M + i."""
    return x.unflatten(1, (num_groups, -1)).transpose(1, 2).flatten(1, 2)


@META_ARCH_REGISTRY.register()
class ML2P(TokenTagger):
    """The (ML)2P-Encoder on one feature map, the frozen tokens, instead of three of a VGG."""

    @classmethod
    def method_parts(cls, cfg: CfgNode, *, width: int, side: int, label_width: int) -> dict[str, Any]:
        keys = cfg.MODEL.ML2P
        head = ChannelEncoder(
            sources=[(width, side)],
            feature_widths=[keys.FEATURE_WIDTH],
            grid=keys.GRID,
            num_groups=keys.NUM_GROUPS,
            label_width=label_width,
            regroup=keys.REGROUP,
        )
        return {"head": head, "loss": {"reg_weight": keys.LOSS.WEIGHT}}

    def losses(self, encoded: Tensor, label_vectors: Tensor, labels: Tensor) -> dict[str, Tensor]:
        per_image = sdl_loss(encoded, label_vectors, labels == 1, **self.loss)
        return {name: loss.mean() for name, loss in per_image.items()}


def add_ml2p_config(cfg: CfgNode) -> None:
    """Add ``cfg.MODEL.ML2P``, and set Detectron2's keys to what the public code says of its training."""
    add_tagger_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ML2P"
    ml2p = cfg.MODEL.ML2P = CfgNode()
    ml2p.NUM_GROUPS = 7  # M
    ml2p.FEATURE_WIDTH = 2048  # channels that the tokens are brought to; there 512 + 512 + 1024 of three feature maps
    ml2p.GRID = 7  # side of the grid of positions that they are pooled to
    # Read the numbers of the M vectors in another order, as the public code does; False keeps the groups as they are.
    ml2p.REGROUP = True
    ml2p.LOSS = CfgNode()
    # Of the regulariser in SDL's loss, None: none. The loss is not public, but its code has this weight as an option.
    ml2p.LOSS.WEIGHT = 0.4

    # Optimiser and schedule are not public: Adam at a constant rate.
    train_with(cfg, optimizer="ADAM", batch_size=96, base_lr=5e-5, max_epochs=20)


declare(
    "MODEL.ML2P",
    {
        "NUM_GROUPS": whole(1),
        "FEATURE_WIDTH": whole(1),
        "GRID": whole(3),
        "REGROUP": choice(True, False),
        "LOSS.WEIGHT": optional(number(0, 1)),
    },
)

SYSTEM = System(name="ML2P", task="multilabel", add_config=add_ml2p_config)
