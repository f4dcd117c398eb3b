"""What a pixel decoder is: features in, mask proposals and an attention bias out. Registered by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fvcore.common.registry import Registry
from torch import Tensor, nn

PIXEL_DECODER_REGISTRY = Registry("PIXEL_DECODER")
PIXEL_DECODER_REGISTRY.__doc__ = """
Pixel decoders: ``@configurable`` modules built as ``decoder(cfg, width=D, num_bias_heads=Hb)``, called with Z_f (N, D, h, w)
and returning :class:`Proposals`.
"""


@dataclass(frozen=True)
class Proposals:
    """Class-agnostic mask proposals.

    Attributes:
        mask_logits: M (N, Q, h, w).
        attention_bias: B (N, Hb, Q, h, w), Hb being 1 or CLIP's number of heads.
    """

    mask_logits: Tensor
    attention_bias: Tensor


def mlp(width: int, hidden: int, out: int, layers: int = 2, activation: Callable[[], nn.Module] = nn.GELU) -> nn.Sequential:
    """A perceptron of ``layers`` linear maps with an activation between them."""
    sizes = [width, *[hidden] * (layers - 1), out]
    modules: list[nn.Module] = []
    for i in range(layers):
        modules += [nn.Linear(sizes[i], sizes[i + 1])] + ([activation()] if i < layers - 1 else [])
    return nn.Sequential(*modules)
