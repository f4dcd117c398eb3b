"""The page of CLIPs and vision transformers: each of its towers is trained for a step, and its table is of these towers."""

import math
import re
from pathlib import Path

import open_clip
import pytest

from benchmarks import backbones
from benchmarks.backbones import BEGIN, CLIPS, END, SHALLOW, TOWERS, WHOLE
from zeroshot_d2.clip.loader import _check_activation
from zeroshot_d2.clip.towers import WITH_CLS

PAGE = (Path(__file__).resolve().parents[2] / "docs/backbones.md").read_text(encoding="utf-8")
HEAVY = ("ViT-L-14-336", "ViT-H-14", "ViT-bigG-14", "EVA01-g-14", "ViT-SO400M-14-SigLIP")  # seconds each


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in HEAVY)) for name in TOWERS])
def test_a_step_of_training(name, monkeypatch):
    built = []
    build = backbones.build_model

    def spy(cfg):
        built.append(build(cfg))
        return built[-1]

    monkeypatch.setattr(backbones, "build_model", spy)
    losses = backbones.try_tower(name)
    assert list(losses) == (["AlignZeg", "Epsilon"] if name in WITH_CLS else ["Epsilon"])
    blocks = backbones.shape(name)[-1] if name in WHOLE else SHALLOW
    for model, (system, of_system) in zip(built, losses.items(), strict=True):
        assert of_system and all(math.isfinite(value) for value in of_system.values())
        if system == "AlignZeg":
            frozen = [*model.clip_image_encoder.blocks, *model.semantic_decoder.blocks]
        else:
            frozen = [*model.backbone.vit.blocks]
        assert len(frozen) == blocks and all(p.grad is None for block in frozen for p in block.parameters())
        trained = [p for p in model.parameters() if p.requires_grad]
        assert sum(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trained) > len(trained) / 2


def test_the_page_has_the_table_of_the_towers_that_are_tried():
    shown = PAGE.partition(BEGIN)[2].partition(END)[0].strip()
    assert shown == backbones.table()


def test_the_tags_that_the_page_names_go_with_their_models():
    pairs = [
        (name, tag)
        for names, tags in re.findall(r"^\| [^|]+ \| ((?:`[\w-]+`,? ?)+)\| ((?:`\w+`,? ?)+)\|", PAGE, re.M)
        for name in re.findall(r"`([\w-]+)`", names)
        if name != "NAME"
        for tag in re.findall(r"`(\w+)`", tags)
    ]
    assert len(pairs) > 15
    for name, tag in pairs:
        assert tag in open_clip.list_pretrained_tags_by_model(name), (name, tag)
        _check_activation(name, tag)
        assert name.removesuffix("-quickgelu") in CLIPS, name


def test_the_page_names_the_pixel_statistics():
    for stats, word in backbones.PIXELS.items():
        mean, std = ("[" + ", ".join(f"{value:.3f}" for value in values) + "]" for values in stats)
        assert f"| {word} | `{mean}` | `{std}` |" in PAGE
