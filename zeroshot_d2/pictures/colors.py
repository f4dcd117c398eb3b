"""Colours of classes."""

from __future__ import annotations

import colorsys

Color = tuple[int, int, int]
"""Red, green and blue, 0-255."""


def class_colors(count: int) -> list[Color]:
    """``count`` distinct colours; colour k never depends on ``count``, so a longer vocabulary keeps the old ones."""
    golden = 0.61803398875  # successive multiples of the golden ratio spread evenly over the colour circle
    colors = []
    for k in range(count):
        saturation, value = ((0.85, 0.95), (0.55, 0.80), (0.95, 0.60))[k % 3]
        red, green, blue = colorsys.hsv_to_rgb((k * golden) % 1.0, saturation, value)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colors
