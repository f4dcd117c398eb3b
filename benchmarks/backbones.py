"""Which CLIPs and vision transformers run: ``python -m benchmarks.backbones [--output docs/backbones.md]``.

Each is built with random weights, and AlignZeg and Epsilon are trained upon it for one step at 64 pixels, or as many above
as whole patches need. A few are built whole, the others at their full width with two of their blocks; the table says which.
Nothing is timed. ``--output FILE`` puts the table between its marks in a page.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip
import timm
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg
from timm.models.eva import Eva

from benchmarks.expected_cost import build_once, inputs, without_weights
from benchmarks.pages import put_table
from epsilon_d2.modeling import backbone
from zeroshot_d2.cli import Parser, load_config
from zeroshot_d2.clip import towers
from zeroshot_d2.clip.loader import PIXEL_MEAN, PIXEL_STD, pixel_stats
from zeroshot_d2.pixel_stats import PixelStats
from zeroshot_d2.solver import build_optimizer

SIDE = 64
SHALLOW = 2  # blocks of the towers that are not built whole
WHOLE = ("ViT-B-16", "ViT-L-14-336", "EVA02-B-16", "ViT-B-16-SigLIP", "vit_base_patch16_224", "vit_base_patch14_dinov2")
CLIPS = (*towers.WITH_CLS, *towers.WITHOUT_CLS)
TOWERS = (*CLIPS, *backbone.TRIED)
BEGIN, END = "<!-- benchmarks.backbones: begin -->", "<!-- benchmarks.backbones: end -->"
HEADERS = ["NAME", "blocks are", "patch", "width", "blocks", "AlignZeg", "Epsilon", "pixels", "tried with"]
PIXELS = {
    PixelStats(PIXEL_MEAN, PIXEL_STD): "CLIP",
    PixelStats((127.5,) * 3, (127.5,) * 3): "half",
    PixelStats.of_pretrained({"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}): "ImageNet",
}


# ---------------------------------------------------------------------------------------------------- what they are
@functools.cache
def shape(name: str) -> tuple[str, int, int, int]:
    """(whose blocks, patch size, width, number of blocks) of a tower."""
    vision = open_clip.get_model_config(name)["vision_cfg"] if name in CLIPS else {"timm_model_name": name}
    timm_name = vision.get("timm_model_name")
    if timm_name is None:
        return "open_clip's", vision["patch_size"], vision["width"], vision["layers"]
    wide = timm.create_model(timm_name, depth=1, num_classes=0)
    deep = timm.create_model(timm_name, embed_dim=32, num_heads=2, num_classes=0)
    blocks = "EVA's" if isinstance(wide, Eva) else "timm's"
    return blocks, wide.patch_embed.patch_size[0], wide.embed_dim, len(deep.blocks)


def pixels(name: str) -> str:
    """With which statistics a CLIP's weights, or timm's default ones, were trained, by the words of :data:`PIXELS`."""
    if name in CLIPS:
        found = {stats for tag in open_clip.list_pretrained_tags_by_model(name) for stats in pixel_stats(name, tag)}
    else:
        found = {PixelStats.of_pretrained(get_pretrained_cfg(name).to_dict())}
    return ", ".join(word for stats, word in PIXELS.items() if any(stats.is_close(other) for other in found))


def row(name: str) -> list[str]:
    """The table's row of a tower."""
    blocks, patch, width, number = shape(name)
    for_alignzeg = "yes" if name in towers.WITH_CLS else "no" if name in CLIPS else "no, not a CLIP"
    built = "all blocks" if name in WHOLE else f"{SHALLOW} blocks"
    return [f"`{name}`", blocks, str(patch), str(width), str(number), for_alignzeg, "yes", pixels(name), built]


def table() -> str:
    """The rows of all towers as Markdown."""
    return tabulate([row(name) for name in TOWERS], headers=HEADERS, tablefmt="pipe", disable_numparse=True)


# ---------------------------------------------------------------------------------------------------- running them
@contextlib.contextmanager
def small_texts(number: int | None) -> Iterator[None]:
    """Within the block CLIPs are built with ``number`` blocks in their image towers, or all, and next to no text tower."""
    text = {"width": 64, "heads": 1, "layers": 1, "vocab_size": 8, "context_length": 8}
    find = open_clip.factory.get_model_config

    def config(name: str) -> Any:
        found = find(name)
        depth = {} if number is None or "timm_model_name" in found["vision_cfg"] else {"layers": number}
        return {**found, "vision_cfg": {**found["vision_cfg"], **depth}, "text_cfg": {**found["text_cfg"], **text}}

    with mock.patch.object(open_clip.factory, "get_model_config", config), contextlib.ExitStack() as stack:
        if number is not None:
            shallow = functools.partial(timm.create_model, depth=number)
            stack.enter_context(mock.patch.object(timm, "create_model", shallow))
        yield


def config_of(name: str, system: str) -> CfgNode:
    """The demo world's config of a system, upon a tower with random weights."""
    patch = shape(name)[1]
    if system == "AlignZeg":
        clip = "MODEL.ALIGNZEG.CLIP"
        keys: list[Any] = [f"{clip}.NAME", name, f"{clip}.PRETRAINED", "", f"{clip}.TAP", 1]
        keys += [f"{clip}.RESOLUTION", patch / 16]  # a patch of CLIP stands for 16 pixels of the image
        keys += ["MODEL.ALIGNZEG.SEMANTIC_DECODER.NUM_LAYERS", 1, "INPUT.CROP.SIZE", [SIDE, SIDE]]
        return load_config("demo/alignzeg.yaml", keys)
    kind, of_tower = "ClipViT" if name in CLIPS else "TimmViT", "MODEL.EPSILON.BACKBONE"
    keys = ["MODEL.BACKBONE.NAME", kind, f"{of_tower}.NAME", name, f"{of_tower}.PRETRAINED", "", f"{of_tower}.TAP", 0]
    return load_config("demo/epsilon.yaml", [*keys, "INPUT.IMAGE_SIZE", math.ceil(SIDE / patch) * patch])


def step(cfg: CfgNode) -> dict[str, float]:
    """Train for one step; the losses."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    losses = model(inputs(cfg))
    sum(losses.values()).backward()
    optimizer.step()
    return {key: value.item() for key, value in losses.items()}


def try_tower(name: str) -> dict[str, dict[str, float]]:
    """Train upon a tower every system that can use it, one step each: {system: its losses}."""
    systems = ["AlignZeg", "Epsilon"] if name in towers.WITH_CLS else ["Epsilon"]
    configs = {system: config_of(name, system) for system in systems}
    with (
        without_weights(),
        small_texts(None if name in WHOLE else SHALLOW),
        mock.patch.object(backbone, "create_clip", build_once),
    ):
        found = {system: step(cfg) for system, cfg in configs.items()}
    build_once.cache_clear()
    gc.collect()  # models have cycles
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run with the command-line arguments ``argv``.

    Raises:
        ValueError: the page has no marks.
    """
    parser = Parser("python -m benchmarks.backbones", __doc__, takes_keys=False)
    parser.add_argument("--output", type=Path, help="a page with the marks between which the table goes")
    args: argparse.Namespace = parser.parse(argv)
    for name in TOWERS:
        for system, losses in try_tower(name).items():
            print(f"{name} | {system} | loss {sum(losses.values()):.3f}", flush=True)
    if args.output is not None:
        put_table(args.output, BEGIN, END, table())


if __name__ == "__main__":
    main()
