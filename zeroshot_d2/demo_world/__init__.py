"""The demo world: a seeded synthetic world in which zero-shot transfer can be measured on two cores, and its CLIP."""

from .register import (
    HELD_OUT_SEED,
    TRAIN_SEED,
    VAL_SEED,
    register_builtin,
    register_demo_world,
    register_demo_world_multilabel,
    render_files,
)
from .render import (
    COLOURS,
    MATERIALS,
    SHAPES,
    SPLIT,
    STUFF,
    TEXTURES,
    THINGS,
    TONES,
    UNSEEN,
    DemoImage,
    class_colours,
    render,
)

__all__ = [
    "COLOURS",
    "HELD_OUT_SEED",
    "MATERIALS",
    "SHAPES",
    "SPLIT",
    "STUFF",
    "TEXTURES",
    "THINGS",
    "TONES",
    "TRAIN_SEED",
    "UNSEEN",
    "VAL_SEED",
    "DemoImage",
    "class_colours",
    "register_builtin",
    "register_demo_world",
    "register_demo_world_multilabel",
    "render",
    "render_files",
]

register_builtin()
