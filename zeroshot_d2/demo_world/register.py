"""The worlds as Detectron2 data sets: images and labels in the cache folder, in both views."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from tqdm import tqdm

from ..class_split import ClassSplit, Vocabulary
from ..images import read_label_image, write_image
from ..multilabel.registration import register_multilabel
from ..segmentation.registration import register_sem_seg
from ..storage import cache_directory
from .render import class_colours, render
from .worlds import DEMO_WORLD, WORLDS, World

# The registered sets. Nothing was ever tuned on HELD_OUT_SEED.
TRAIN_SEED, VAL_SEED, HELD_OUT_SEED = 1, 2, 20261124
NUM_TRAIN, NUM_VAL = 4000, 400
NUM_TRAIN_MULTILABEL, NUM_TEST_MULTILABEL = 6000, 1000


def render_files(
    seed: int,
    num_images: int,
    *,
    size: int = 64,
    num_objects: tuple[int, int] = (2, 3),
    classes: tuple[int, ...] | None = None,
    world: World = DEMO_WORLD,
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
        drawn.update(render(seed, index, size=size, num_objects=num_objects, classes=classes, world=world).image.tobytes())
    folder = cache_directory() / world.name / f"seed{seed}_size{size}_{drawn.hexdigest()[:12]}"
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
        rendered = render(seed, record["image_id"], size=size, num_objects=num_objects, classes=classes, world=world)
        for key, pixels in (("sem_seg_file_name", rendered.label), ("file_name", rendered.image)):
            write_image(record[key], pixels, sync=False, compress_level=1)
    return records


def register_demo_world(
    name: str,
    seed: int,
    num_images: int,
    *,
    vocabulary: Vocabulary = "all",
    size: int = 64,
    num_objects: tuple[int, int] = (2, 3),
    world: World = DEMO_WORLD,
    hidden: tuple[str, ...] = (),
    replace: bool = False,
) -> None:
    """Register ``num_images`` images of ``seed`` as a Detectron2 data set.

    Args:
        name: of the data set.
        seed: another seed gives a fresh set of images.
        num_images: how many.
        vocabulary: "seen" (unseen pixels ignored), "all" or "unseen" (seen pixels ignored).
        size, num_objects, world: as for :func:`render`.
        hidden: seen classes that play the unseen. The world's unseen ones then belong to no vocabulary: their pixels are
            ignored.
        replace: take the place of a data set of this name.
    """
    split, colours = world.split, class_colours(world)
    values = {k: name for k, name in enumerate(split.names) if not hidden or name not in split.unseen}
    register_sem_seg(
        name,
        ClassSplit(tuple(values.values()), unseen=hidden or split.unseen),
        vocabulary=vocabulary,
        label_values=values,
        ignore_values=(*(k for k in range(len(split)) if k not in values), 255),
        load=lambda: render_files(seed, num_images, size=size, num_objects=num_objects, world=world),
        colors=[colours[k] for k in values],
        replace=replace,
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
    world: World = DEMO_WORLD,
    replace: bool = False,
) -> None:
    """Register ``num_images`` images of ``seed`` with image-level labels: the classes that are visible.

    Args as for :func:`register_demo_world`; labels of classes outside ``vocabulary`` are left out.
        draw_unseen: whether unseen classes occur at all. An image in which they do, unlabelled, teaches that a class with
            the same colour or texture is absent where that colour or texture is plain to see.
    """
    split = world.split
    classes = None if draw_unseen else tuple(int(k) for k in split.seen_indices)

    def labels() -> dict[str, list[str]]:
        records = render_files(seed, num_images, size=size, num_objects=num_objects, classes=classes, world=world)
        return {
            record["file_name"]: [split.names[k] for k in np.unique(read_label_image(record["sem_seg_file_name"]))]
            for record in records
        }

    register_multilabel(name, split, "", labels, vocabulary=vocabulary, replace=replace)


def register_builtin() -> None:
    """Register the sets of both worlds; a second call changes nothing.

    <world>_{train_seen, train_all, val, val_unseen, held_out}; of the near world also demo_near_{train_visible, val_hidden},
    in which seen classes play the unseen; of the demo world also demo_world_multilabel_{train, test, held_out}.
    """
    if f"{DEMO_WORLD.name}_train_seen" in DatasetCatalog.list():
        return
    for world in WORLDS.values():
        register_demo_world(f"{world.name}_train_seen", TRAIN_SEED, NUM_TRAIN, vocabulary="seen", world=world)
        register_demo_world(f"{world.name}_train_all", TRAIN_SEED, NUM_TRAIN, world=world)
        register_demo_world(f"{world.name}_val", VAL_SEED, NUM_VAL, world=world)
        register_demo_world(f"{world.name}_val_unseen", VAL_SEED, NUM_VAL, vocabulary="unseen", world=world)
        register_demo_world(f"{world.name}_held_out", HELD_OUT_SEED, NUM_VAL, world=world)
        if world.hidden:
            hidden, visible = world.hidden, f"{world.name}_train_visible"
            register_demo_world(visible, TRAIN_SEED, NUM_TRAIN, vocabulary="seen", world=world, hidden=hidden)
            register_demo_world(f"{world.name}_val_hidden", VAL_SEED, NUM_VAL, world=world, hidden=hidden)
    register_demo_world_multilabel(
        "demo_world_multilabel_train", TRAIN_SEED, NUM_TRAIN_MULTILABEL, vocabulary="seen", draw_unseen=False
    )
    register_demo_world_multilabel("demo_world_multilabel_test", VAL_SEED, NUM_TEST_MULTILABEL)
    register_demo_world_multilabel("demo_world_multilabel_held_out", HELD_OUT_SEED, NUM_TEST_MULTILABEL)
