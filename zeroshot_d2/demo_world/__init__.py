"""The demo worlds: seeded synthetic worlds in which zero-shot transfer can be measured on two cores, and their CLIPs."""

from .register import (
    HELD_OUT_SEED,
    TRAIN_SEED,
    VAL_SEED,
    register_builtin,
    register_demo_world,
    register_demo_world_multilabel,
    render_files,
)
from .render import DemoImage, class_colours, render
from .worlds import DEMO_NEAR, DEMO_WORLD, MATERIALS, SPLIT, STUFF, TONES, WORLDS, World

__all__ = [
    "DEMO_NEAR",
    "DEMO_WORLD",
    "HELD_OUT_SEED",
    "MATERIALS",
    "SPLIT",
    "STUFF",
    "TONES",
    "TRAIN_SEED",
    "VAL_SEED",
    "WORLDS",
    "DemoImage",
    "World",
    "class_colours",
    "register_builtin",
    "register_demo_world",
    "register_demo_world_multilabel",
    "render",
    "render_files",
]

register_builtin()
