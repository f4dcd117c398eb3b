"""One case of ``benchmarks.methods --peer``: SAN's own code, or a model of this project, in a process of its own.

    python -m benchmarks.peer san inference --clone SAN --size 640 --classes 171

It builds the model, takes a step that does not count and answers every line of its input with the seconds of another step
and its peak memory. SAN's code is read from a clone, unchanged; what it expects of older releases of its libraries is set on
the objects that it is given.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.structures import Instances
from torch import Tensor, nn

from benchmarks.memory import megabytes
from zeroshot_d2.cli import load_config
from zeroshot_d2.precision import compile_parts

CLIP_NAME = "ViT-B-16-quickgelu"
BATCH = 2  # images of a training step

Case = Callable[[], object]


def names(count: int) -> list[str]:
    return [f"class number {i}" for i in range(count)]


def images(count: int, size: int) -> Tensor:
    """(count, 3, size, size) uint8, smooth enough that masks are not noise alone."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(count, 3, size // 16, size // 16, generator=generator)
    return (255 * F.interpolate(small, size=(size, size), mode="bilinear")).to(torch.uint8)


def labels(count: int, size: int, classes: int) -> Tensor:
    """(count, size, size) of 16 regions each."""
    generator = torch.Generator().manual_seed(1)
    regions = torch.randint(0, classes, (count, 1, 4, 4), generator=generator).float()
    return F.interpolate(regions, size=(size, size))[:, 0].long()


def embeddings(count: int, width: int) -> Tensor:
    """(count, width) unit vectors in place of the text tower's, whose time is no part of a step."""
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(2)), dim=-1)


# ------------------------------------------------------------------------------------------------------ SAN's code
def import_san(clone: Path) -> tuple[types.ModuleType, types.ModuleType]:
    """The modules of SAN's model and config, without its data sets and loggers, which need further libraries.

    Raises:
        FileNotFoundError: the folder is no clone of SAN.
    """
    if not (clone / "san" / "model" / "san.py").is_file():
        raise FileNotFoundError(
            f"--peer {clone} is no clone of SAN (https://github.com/MendelXu/SAN): it has no san/model/san.py"
        )
    for name in ("san", "san.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(clone / name.replace(".", "/"))]
        sys.modules[name] = package
    return importlib.import_module("san.model.san"), importlib.import_module("san.config")


def for_older_code(clip: nn.Module) -> nn.Module:
    """An open_clip model with what SAN's code expects of open_clip 2.16: sequences first, and attributes that went."""
    visual: Any = clip.visual
    visual.input_patchnorm, visual.patchnorm_pre_ln, visual.global_average_pool = False, nn.Identity(), False
    for module in clip.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.batch_first = False
    return clip


def build_san(clone: Path, classes: int) -> nn.Module:
    """SAN's ViT-B/16 model with random weights."""
    import open_clip

    model_module, config_module = import_san(clone)
    create = open_clip.create_model_and_transforms

    def create_for_older_code(*args: Any, **kwargs: Any) -> Any:
        clip, *transforms = create(*args, **kwargs)
        return (for_older_code(clip), *transforms)

    cfg: CfgNode = get_cfg()
    config_module.add_san_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.SAN.NUM_CLASSES = "cpu", classes
    cfg.MODEL.SAN.CLIP_MODEL_NAME, cfg.MODEL.SAN.CLIP_PRETRAINED_NAME = CLIP_NAME, ""
    torch.manual_seed(0)
    open_clip.create_model_and_transforms = create_for_older_code
    try:
        model = model_module.SAN(cfg)
    finally:
        open_clip.create_model_and_transforms = create
    width = model.ov_classifier.text_projection.shape[1]
    model.ov_classifier.cache = dict(zip(names(classes), embeddings(classes, width), strict=True))
    return model


def san_inputs(count: int, size: int, classes: int, *, training: bool) -> list[dict[str, Any]]:
    result = []
    for image, sem_seg in zip(images(count, size), labels(count, size, classes), strict=True):
        entry: dict[str, Any] = {"image": image, "vocabulary": names(classes), "height": size, "width": size}
        if training:
            present = sem_seg.unique()
            entry["instances"] = Instances((size, size), gt_classes=present, gt_masks=sem_seg == present[:, None, None])
        result.append(entry)
    return result


def save_san(args: argparse.Namespace) -> None:
    """Write random weights of SAN, and the scores of an image by its own code, for a comparison in another process."""
    model = build_san(args.clone, args.classes).eval()
    with torch.no_grad():
        (output,) = model(san_inputs(1, args.size, args.classes, training=False))
    torch.save({"model": model.state_dict(), "sem_seg": output["sem_seg"]}, args.file)


# ------------------------------------------------------------------------------------------------- this project's
def build_ours(config: str, classes: int, opts: Sequence[object]) -> nn.Module:
    from detectron2.modeling import build_model

    cfg = load_config(config, ["MODEL.DEVICE", "cpu", *opts])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ()
    torch.manual_seed(0)
    model: Any = build_model(cfg)
    compile_parts(model, cfg)
    model.text_embeddings = lambda prompts, clip=None: embeddings(classes, 512)
    return model


def our_inputs(count: int, size: int, classes: int, *, training: bool) -> list[dict[str, Any]]:
    del training
    return [
        {"image": image, "sem_seg": sem_seg, "vocabulary": tuple(names(classes)), "height": size, "width": size}
        for image, sem_seg in zip(images(count, size), labels(count, size, classes), strict=True)
    ]


def _alignzeg(prompts: int, compiled: bool) -> tuple[str, list[object]]:
    keys = ["MODEL.ALIGNZEG.CLIP.PRETRAINED", "", "MODEL.ALIGNZEG.CLIP.NUM_PROMPTS", prompts, "MODEL.COMPILE", compiled]
    return "coco/alignzeg.yaml", keys


WHO: dict[str, tuple[str, list[object]] | None] = {
    "san": None,
    "alignzeg": _alignzeg(0, False),
    "alignzeg-compiled": _alignzeg(0, True),
    "alignzeg-prompts": _alignzeg(20, False),
    "alignzeg-prompts-compiled": _alignzeg(20, True),
}


def case(args: argparse.Namespace) -> Case:
    """A step of inference on an image, or of training on two."""
    ours = WHO[args.who]
    model = build_san(args.clone, args.classes) if ours is None else build_ours(ours[0], args.classes, ours[1])
    training = args.step == "training"
    make = san_inputs if ours is None else our_inputs
    batch = make(BATCH if training else 1, args.size, args.classes, training=training)
    if not training:
        model.eval()

        @torch.no_grad()
        def infer() -> object:
            return model(batch)

        return infer
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def train() -> object:
        loss: Tensor = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return train


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.peer", description=__doc__)
    parser.add_argument("who", choices=WHO)
    parser.add_argument("step", choices=("inference", "training", "save"))
    parser.add_argument("--clone", type=Path)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--classes", type=int, default=171)
    parser.add_argument("--file", type=Path, help='of "save": SAN\'s weights and what they predict')
    args = parser.parse_args(argv)
    if args.step == "save":
        save_san(args)
        return
    step = case(args)
    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        peak = megabytes("VmHWM")
        print(json.dumps({"seconds": seconds, "peak_mb": peak}), flush=True)


if __name__ == "__main__":
    main()
