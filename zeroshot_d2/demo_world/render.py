"""The demo world: a seeded synthetic world in which zero-shot transfer can be measured on two cores.

Every image shows tiles ("striped green tile") on one or two kinds of ground ("dark water"). A class is a pair of attributes
(texture x colour, tone x material), and the unseen classes are pairs whose two attributes each occur among the seen
classes, so a model that understands the attributes can recognise them. Seed and index determine an image completely.

Shapes: images are (S, S, 3) uint8 RGB, label maps (S, S) uint8 with the class index of every pixel.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from PIL import Image
from tqdm import tqdm

from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.datasets.multilabel import register_multilabel
from zeroshot_d2.datasets.sem_seg import Vocabulary, register_sem_seg
from zeroshot_d2.label_embeddings import cache_directory

logger = logging.getLogger(__name__)

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (200, 40, 40),
    "green": (50, 165, 60),
    "blue": (50, 80, 205),
    "yellow": (220, 195, 40),
    "purple": (145, 55, 170),
}
TEXTURES = ("plain", "striped", "dotted", "checkered", "netted", "speckled")
TONES = ("light", "dark")
MATERIALS: dict[str, tuple[int, int, int]] = {
    "grass": (95, 125, 60),
    "water": (75, 125, 150),
    "sand": (175, 150, 110),
    "bricks": (150, 95, 75),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")

THINGS = tuple(f"{texture} {colour} tile" for texture in TEXTURES for colour in COLOURS)
STUFF = tuple(f"{tone} {material}" for tone in TONES for material in MATERIALS)
UNSEEN = (
    "plain green tile",
    "striped red tile",
    "dotted green tile",
    "checkered blue tile",
    "netted yellow tile",
    "speckled purple tile",
    "dark water",
)
SPLIT = ClassSplit(names=THINGS + STUFF, unseen=UNSEEN)


def class_colours() -> list[tuple[int, int, int]]:
    """RGB of each class in pictures: a tile's own colour, darker or paler by texture; a ground's, by tone."""
    colours = []
    for share, white in ((1, 0), (0.7, 0), (0.45, 0), (1, 0.3), (1, 0.5), (1, 0.7)):  # one per texture
        colours += [_mix(rgb, share, white) for rgb in COLOURS.values()]
    for tone in TONES:
        colours += [_mix(rgb, *((1, 0.45) if tone == "light" else (0.5, 0))) for rgb in MATERIALS.values()]
    return colours


def _mix(rgb: tuple[int, int, int], share: float, white: float) -> tuple[int, int, int]:
    red, green, blue = (round((1 - white) * share * value + white * 255) for value in rgb)
    return red, green, blue


# The registered sets. Nothing was ever tuned on HELD_OUT_SEED.
TRAIN_SEED, VAL_SEED, HELD_OUT_SEED = 1, 2, 20261124
NUM_TRAIN, NUM_VAL = 4000, 400
NUM_TRAIN_MULTILABEL, NUM_TEST_MULTILABEL = 6000, 1000


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
    raise ValueError(f"unknown shape {shape!r}; the demo world has {SHAPES}")


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
    raise ValueError(f"unknown texture {texture!r}; the demo world has {TEXTURES}")


def _paint_tile(name: str, size: int, rng: np.random.Generator) -> np.ndarray:
    texture, colour, _ = name.split()
    base = np.array(COLOURS[colour], dtype=float) + rng.integers(-14, 15, size=3)
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
) -> DemoImage:
    """Render image ``index`` of the world ``seed``.

    Args:
        seed, index: determine the image completely, on every machine.
        size: side S in pixels, at least 32.
        num_objects: the least and the greatest number of tiles.
        classes: vocabulary indices of the classes to draw from; all by default. Without a tile, or without a ground, among
            them all of that kind are drawn.

    Raises:
        ValueError: if ``size`` is below 32 or ``num_objects`` is not an ordered pair of counts.
    """
    if size < 32:
        raise ValueError(f"the demo world needs images of at least 32 pixels, got size={size}")
    if not 0 <= num_objects[0] <= num_objects[1]:
        raise ValueError(f"num_objects must be (least, greatest) with 0 <= least <= greatest, got {num_objects}")
    rng = np.random.default_rng([seed, index])
    rows, columns = _grid(size)
    wanted = np.arange(len(SPLIT)) if classes is None else np.asarray(list(classes))
    choices = wanted[wanted < len(THINGS)] if (wanted < len(THINGS)).any() else np.arange(len(THINGS))
    stuff = wanted[wanted >= len(THINGS)] if (wanted >= len(THINGS)).any() else np.arange(len(THINGS), len(SPLIT))

    grounds = rng.permutation(stuff)[:2]
    image = _paint_ground(SPLIT.names[grounds[0]], size, rng)
    label = np.full((size, size), grounds[0], dtype=np.uint8)
    if rng.random() < 0.5 and len(grounds) == 2:
        beyond = _ground_border(size, rng)
        image[beyond] = _paint_ground(SPLIT.names[grounds[1]], size, rng)[beyond]
        label[beyond] = grounds[1]

    masks: list[np.ndarray] = []
    areas: list[int] = []
    for _ in range(int(rng.integers(num_objects[0], num_objects[1] + 1))):
        for _attempt in range(20):  # until it hides at most a third of every tile below it
            centre = size * (0.15 + 0.7 * rng.random(2))
            radius = size * (0.15 + 0.12 * rng.random())
            shape = SHAPES[int(rng.integers(len(SHAPES)))]
            mask = _shape_mask(shape, rows - centre[0], columns - centre[1], radius, 2 * np.pi * rng.random())
            if all((below & ~mask).sum() >= area * 2 / 3 for below, area in zip(masks, areas, strict=True)):
                break
        else:
            continue
        thing = int(rng.choice(choices))
        image[mask] = _paint_tile(SPLIT.names[thing], size, rng)[mask]
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


def render_files(
    seed: int,
    num_images: int,
    *,
    size: int = 64,
    num_objects: tuple[int, int] = (2, 3),
    classes: tuple[int, ...] | None = None,
) -> list[dict[str, Any]]:
    """Render images into the cache folder (those not there yet) and list them.

    Returns:
        dicts with ``file_name``, ``sem_seg_file_name``, ``image_id``, ``height``, ``width``.

    Raises:
        ValueError: if ``num_images`` is not positive.
    """
    if num_images < 1:
        raise ValueError(f"a demo world needs at least one image, got num_images={num_images}")
    # Named by what the renderer draws, so that images of an older renderer are never mistaken for today's.
    drawn = hashlib.sha256(b"" if classes is None else repr(classes).encode())
    for index in range(2):
        drawn.update(render(seed, index, size=size, num_objects=num_objects, classes=classes).image.tobytes())
    folder = cache_directory() / "demo_world" / f"seed{seed}_size{size}_{drawn.hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = [
        {
            "file_name": str(folder / f"{index:06d}.png"),
            "sem_seg_file_name": str(folder / f"{index:06d}_label.png"),
            "image_id": index,
            "height": size,
            "width": size,
        }
        for index in range(num_images)
    ]
    present = set(os.listdir(folder))
    missing = [r for r in records if not {Path(r["file_name"]).name, Path(r["sem_seg_file_name"]).name} <= present]
    for record in tqdm(missing, desc=f"rendering seed {seed}", unit="image", disable=len(missing) < 1000):
        rendered = render(seed, record["image_id"], size=size, num_objects=num_objects, classes=classes)
        _write_png(rendered.label, Path(record["sem_seg_file_name"]))
        _write_png(rendered.image, Path(record["file_name"]))
    return records


def _write_png(array: np.ndarray, path: Path) -> None:
    """Whole or not at all: several processes may render the same folder."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        Image.fromarray(array).save(file, format="PNG", compress_level=1)
    os.replace(file.name, path)


def register_demo_world(
    name: str,
    seed: int,
    num_images: int,
    *,
    vocabulary: Vocabulary = "all",
    size: int = 64,
    num_objects: tuple[int, int] = (2, 3),
) -> None:
    """Register ``num_images`` images of the world ``seed`` as a Detectron2 data set.

    Args:
        name: of the data set.
        seed: another seed gives a fresh set of images.
        num_images: how many.
        vocabulary: "seen" (unseen pixels ignored), "all" or "unseen" (seen pixels ignored).
        size, num_objects: as for :func:`render`.
    """
    register_sem_seg(
        name,
        SPLIT,
        vocabulary=vocabulary,
        load=lambda: render_files(seed, num_images, size=size, num_objects=num_objects),
        colors=class_colours(),
    )


def register_demo_world_multilabel(
    name: str,
    seed: int,
    num_images: int,
    *,
    vocabulary: Vocabulary = "all",
    size: int = 64,
    num_objects: tuple[int, int] = (3, 5),
    draw_unseen: bool = True,
) -> None:
    """Register ``num_images`` images of the world ``seed`` with image-level labels: the classes that are visible.

    Args as for :func:`register_demo_world`; labels of classes outside ``vocabulary`` are left out.
        draw_unseen: whether unseen classes occur at all. An image in which they do, unlabelled, teaches that a class with
            the same colour or texture is absent where that colour or texture is plain to see.
    """
    classes = None if draw_unseen else tuple(int(k) for k in SPLIT.seen_indices)

    def labels() -> dict[str, list[str]]:
        records = render_files(seed, num_images, size=size, num_objects=num_objects, classes=classes)
        return {
            record["file_name"]: [SPLIT.names[k] for k in np.unique(np.asarray(Image.open(record["sem_seg_file_name"])))]
            for record in records
        }

    register_multilabel(name, SPLIT, "", labels, vocabulary=vocabulary)


def register_builtin() -> None:
    """Register the sets of both systems; a second call changes nothing.

    demo_world_{train_seen, train_all, val, val_unseen, held_out} and demo_world_multilabel_{train, test, held_out}.
    """
    if "demo_world_train_seen" in DatasetCatalog.list():
        return
    register_demo_world("demo_world_train_seen", TRAIN_SEED, NUM_TRAIN, vocabulary="seen")
    register_demo_world("demo_world_train_all", TRAIN_SEED, NUM_TRAIN)
    register_demo_world("demo_world_val", VAL_SEED, NUM_VAL)
    register_demo_world("demo_world_val_unseen", VAL_SEED, NUM_VAL, vocabulary="unseen")
    register_demo_world("demo_world_held_out", HELD_OUT_SEED, NUM_VAL)
    register_demo_world_multilabel(
        "demo_world_multilabel_train", TRAIN_SEED, NUM_TRAIN_MULTILABEL, vocabulary="seen", draw_unseen=False
    )
    register_demo_world_multilabel("demo_world_multilabel_test", VAL_SEED, NUM_TEST_MULTILABEL)
    register_demo_world_multilabel("demo_world_multilabel_held_out", HELD_OUT_SEED, NUM_TEST_MULTILABEL)
