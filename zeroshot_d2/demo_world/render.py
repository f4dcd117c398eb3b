"""Draws images of the worlds: tiles ("striped green tile") on one or two kinds of ground ("dark water").

World, seed and index determine an image completely.

Shapes: images are (S, S, 3) uint8 RGB, label maps (S, S) uint8 with the class index of every pixel.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .worlds import DEMO_WORLD, MATERIALS, TONES, World

_SHADES = ((1, 0), (0.7, 0), (0.45, 0), (1, 0.3), (1, 0.5), (1, 0.7))  # of the textures in pictures: share, white


def class_colours(world: World = DEMO_WORLD) -> list[tuple[int, int, int]]:
    """RGB of each class in pictures: a tile's own colour, darker or paler by texture; a ground's, by tone."""
    colours = []
    for (share, white), _ in zip(_SHADES, world.textures, strict=False):
        colours += [_mix(rgb, share, white) for rgb in world.colours.values()]
    for tone in TONES:
        colours += [_mix(rgb, *((1, 0.45) if tone == "light" else (0.5, 0))) for rgb in MATERIALS.values()]
    return colours


def _mix(rgb: tuple[int, int, int], share: float, white: float) -> tuple[int, int, int]:
    red, green, blue = (round((1 - white) * share * value + white * 255) for value in rgb)
    return red, green, blue


@dataclass(frozen=True)
class DemoImage:
    """One rendered image: ``image`` (S, S, 3) uint8 RGB, ``label`` (S, S) uint8 class indices, ``classes`` present."""

    image: np.ndarray
    label: np.ndarray
    classes: tuple[int, ...]


@functools.lru_cache(maxsize=4)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[0:size, 0:size]
    return rows, columns


def _shape_mask(shape: str, dy: np.ndarray, dx: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Boolean outline of a tile, ``dy`` and ``dx`` being the offsets from its centre in pixels."""
    # Rounded to 1e-9 so that the last bit of a platform's sine cannot move a border pixel.
    cos, sin = round(float(np.cos(angle)), 9), round(float(np.sin(angle)), 9)
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    if shape == "circle":
        return u * u + v * v <= radius * radius
    if shape == "ring":
        return (u * u + v * v <= radius * radius) & (u * u + v * v >= (0.4 * radius) ** 2)
    if shape == "square":
        return np.maximum(abs(u), abs(v)) <= 0.85 * radius
    if shape == "cross":
        return (np.minimum(abs(u), abs(v)) <= 0.4 * radius) & (np.maximum(abs(u), abs(v)) <= radius)
    if shape == "triangle":
        return (v <= 0.7 * radius) & (abs(u) <= 0.6 * (v + radius))
    if shape == "star":  # two overlaid triangles
        return ((v <= 0.5 * radius) & (abs(u) <= 0.577 * (v + radius))) | (
            (v >= -0.5 * radius) & (abs(u) <= 0.577 * (radius - v))
        )
    raise ValueError(f"unknown shape {shape!r}; there are {DEMO_WORLD.shapes}")


def _texture(texture: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """(S, S) weight in [0, 1] of the tile's second, paler shade."""
    rows, columns = _grid(size)
    y, x = rows + int(rng.integers(12)), columns + int(rng.integers(12))
    if texture == "plain":
        return np.zeros((size, size))
    if texture == "striped":
        along = (x, y, x + y, x - y)[int(rng.integers(4))]
        return (along % 6 < 3).astype(float)
    if texture == "dotted":
        return ((x % 6 - 2.5) ** 2 + (y % 6 - 2.5) ** 2 <= 3.6).astype(float)
    if texture == "checkered":
        return ((x // 4 + y // 4) % 2).astype(float)
    if texture == "netted":
        return ((x % 5 == 0) | (y % 5 == 0)).astype(float)
    if texture == "speckled":
        return (rng.random((size, size)) < 0.3).astype(float)
    raise ValueError(f"unknown texture {texture!r}; there are {DEMO_WORLD.textures}")


def _paint_tile(name: str, world: World, size: int, rng: np.random.Generator) -> np.ndarray:
    texture, colour, _ = name.split()
    base = np.array(world.colours[colour], dtype=float) + rng.integers(-world.jitter, world.jitter + 1, size=3)
    pale = 0.25 * base + 0.75 * 245
    weight = _texture(texture, size, rng)[..., None]
    return (1 - weight) * base + weight * pale


def _paint_ground(name: str, size: int, rng: np.random.Generator) -> np.ndarray:
    tone, material = name.split()
    rows, columns = _grid(size)
    y, x = rows + int(rng.integers(16)), columns + int(rng.integers(16))
    if material == "grass":  # vertical blades
        relief = np.repeat(rng.integers(-28, 29, size=(size // 4 + 1, size)), 4, axis=0)[:size]
    elif material == "water":  # horizontal ripples
        relief = np.array([-18, -6, 14, 24, 14, -6])[(y + (x // 8) % 2) % 6]
    elif material == "sand":  # fine grain
        relief = rng.integers(-22, 23, size=(size, size))
    else:  # bricks between pale mortar
        row = y // 6
        relief = np.where((y % 6 == 0) | ((x + 6 * (row % 2)) % 12 == 0), 55, -8)
    colour = np.array(MATERIALS[material], dtype=float) + rng.integers(-10, 11, size=3)
    if tone == "light":
        return 0.55 * colour + 0.45 * 235 + 0.75 * relief[..., None]
    return 0.5 * colour + 0.6 * relief[..., None]


def _ground_border(size: int, rng: np.random.Generator) -> np.ndarray:
    """(S, S) bool, the part of the image that belongs to the second ground: beyond a wavy border."""
    rows, columns = _grid(size)
    along, across = (rows, columns) if rng.random() < 0.5 else (columns, rows)
    wave = np.round(np.sin(np.arange(size) * (2 * np.pi / size) * int(rng.integers(1, 4)) + rng.random() * 6), 9)
    border = size * (0.3 + 0.4 * rng.random()) + size / 16 * wave
    return along > border[across]


def render(
    seed: int,
    index: int,
    *,
    size: int = 64,
    num_objects: tuple[int, int] = (2, 3),
    classes: Iterable[int] | None = None,
    world: World = DEMO_WORLD,
) -> DemoImage:
    """Render image ``index`` of ``seed``.

    Args:
        seed, index: determine the image of a world completely, on every machine.
        size: side S in pixels, at least 32.
        num_objects: the least and the greatest number of tiles.
        classes: vocabulary indices of the classes to draw from; all by default. Without a tile, or without a ground, among
            them all of that kind are drawn.
        world: what there is to draw.

    Raises:
        ValueError: if ``size`` is below 32 or ``num_objects`` is not an ordered pair of counts.
    """
    if size < 32:
        raise ValueError(f"the demo world needs images of at least 32 pixels, got size={size}")
    if not 0 <= num_objects[0] <= num_objects[1]:
        raise ValueError(f"num_objects must be (least, greatest) with 0 <= least <= greatest, got {num_objects}")
    rng = np.random.default_rng([seed, index])
    rows, columns = _grid(size)
    names, tiles = world.split.names, len(world.things)
    wanted = np.arange(len(names)) if classes is None else np.asarray(list(classes))
    choices = wanted[wanted < tiles] if (wanted < tiles).any() else np.arange(tiles)
    stuff = wanted[wanted >= tiles] if (wanted >= tiles).any() else np.arange(tiles, len(names))

    grounds = rng.permutation(stuff)[:2]
    image = _paint_ground(names[grounds[0]], size, rng)
    label = np.full((size, size), grounds[0], dtype=np.uint8)
    if rng.random() < world.two_grounds and len(grounds) == 2:
        beyond = _ground_border(size, rng)
        image[beyond] = _paint_ground(names[grounds[1]], size, rng)[beyond]
        label[beyond] = grounds[1]

    masks: list[np.ndarray] = []
    areas: list[int] = []
    for _ in range(int(rng.integers(num_objects[0], num_objects[1] + 1))):
        for _attempt in range(20):  # until it hides at most a third of every tile below it
            centre = size * (0.15 + 0.7 * rng.random(2))
            radius = size * (world.radius[0] + (world.radius[1] - world.radius[0]) * rng.random())
            shape = world.shapes[int(rng.integers(len(world.shapes)))]
            mask = _shape_mask(shape, rows - centre[0], columns - centre[1], radius, 2 * np.pi * rng.random())
            if all((below & ~mask).sum() >= area * 2 / 3 for below, area in zip(masks, areas, strict=True)):
                break
        else:
            continue
        thing = int(rng.choice(choices))
        image[mask] = _paint_tile(names[thing], world, size, rng)[mask]
        label[mask] = thing
        masks = [below & ~mask for below in masks] + [mask]
        areas.append(int(mask.sum()))

    brightness = 0.85 + 0.3 * rng.random()
    image = image * brightness + rng.normal(0, 5, size=image.shape)
    return DemoImage(
        image=np.clip(np.rint(image), 0, 255).astype(np.uint8),
        label=label,
        classes=tuple(int(c) for c in np.unique(label)),
    )
