"""Mean and deviation of pixels: those that weights were trained with, and whether a config normalises images with them.

Wrong ones raise no error anywhere: every feature is a little off, and so are all results.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

_TOLERANCE = 0.05  # of 255: configs round to a few digits


class PixelStats(NamedTuple):
    """Mean and deviation per channel, RGB in 0..255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of_pretrained(cls, described: Mapping[str, Any]) -> PixelStats:
        """Those of open_clip's or timm's description of weights, which has "mean" and "std" in 0..1."""
        return cls(*(tuple(255 * value for value in described[key]) for key in ("mean", "std")))

    def is_close(self, other: tuple[Sequence[float], Sequence[float]]) -> bool:
        """Whether another pair is the same, as far as configs are written out."""
        return np.allclose(self, other, rtol=0, atol=_TOLERANCE)


def check_pixel_stats(
    cfg: CfgNode, trained_with: Sequence[PixelStats], weights: str, *, certain: bool = True, also: Sequence[PixelStats] = ()
) -> None:
    """See that ``MODEL.PIXEL_MEAN`` and ``MODEL.PIXEL_STD`` are those that frozen weights were trained with.

    Args:
        cfg: its INPUT.FORMAT says the order of the channels.
        trained_with: one of these will do; none: nothing is known, and nothing is checked.
        weights: what has them, for the message.
        certain: whether ``weights`` were surely trained with one of these; otherwise the log has the message.
        also: further ones that a published method uses with such weights on purpose.

    Raises:
        ValueError: the config has others, and they are ``certain``.
    """
    if not trained_with:
        return
    bgr = cfg.INPUT.FORMAT == "BGR"
    found = (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    ordered = [PixelStats(*(values[::-1] if bgr else values for values in stats)) for stats in (*trained_with, *also)]
    if any(stats.is_close(found) for stats in ordered):
        return
    mean, std = ([round(value, 3) for value in values] for values in ordered[0])
    message = (
        f"MODEL.PIXEL_MEAN {list(found[0])} and MODEL.PIXEL_STD {list(found[1])} are not what {weights} were trained with: "
        "features would be silently wrong. In the order of INPUT.FORMAT "
        f'{cfg.INPUT.FORMAT}, set MODEL.PIXEL_MEAN "{mean}" MODEL.PIXEL_STD "{std}"'
    )
    if certain:
        raise ValueError(message)
    logger.warning(message)
