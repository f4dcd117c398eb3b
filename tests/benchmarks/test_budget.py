"""The budget of a step, on small models; no test asserts a time."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

from alignzeg_d2 import proposal_segmenter, semantic_inference
from benchmarks import budget, loading
from benchmarks.alignzeg_cost import fix_prototypes, inputs
from zeroshot_d2.solver import build_optimizer

CLASSES = tuple(f"class number {k}" for k in range(5))


def demo_step(demo_cfg, demo_model, training):
    """The demo's model with prompts, and its step."""
    options = ("MODEL.ALIGNZEG.CLIP.NUM_PROMPTS", 3)
    torch.manual_seed(0)
    model = demo_model(*options).train(training)
    fix_prototypes(model, len(CLASSES))
    if training:
        return model, budget.training_step(model, inputs(2, 64, CLASSES), build_optimizer(demo_cfg(*options), model))
    return model, budget.inference_step(model, inputs(1, 64, CLASSES), "labels")


# ---- what measures ----


def test_time_within_a_stage_is_not_that_of_the_one_around_it():
    clock = iter([0, 1, 3, 7, 15])
    stages = budget.Shares(lambda: next(clock))
    with stages.stage("outer"), stages.stage("inner"):
        pass
    # ahead of everything 1; outer 1 to 3, inner 3 to 7, outer 7 to 15
    assert dict(stages.found) == {"outer": 10, "inner": 4}


def test_flops_of_attention():
    attention = nn.MultiheadAttention(64, 4, batch_first=True).eval()
    x = torch.randn(1, 10, 64)
    with torch.no_grad(), budget.counted_flops() as flops:
        attention(x, x, x, need_weights=False)
    assert flops.total == 2 * 10 * 64 * 64 * 4 + 2 * 2 * 10 * 10 * 64
    assert torch.backends.mha.get_fastpath_enabled()


def test_live_bytes_of_stages():
    with budget.LiveBytes() as memory:
        stages = budget.Peaks(memory)
        with stages.stage("outer"):
            kept = torch.zeros(1000)
            with stages.stage("inner"):
                kept.view(10, 100).add_(1)  # no new memory
                passing = torch.zeros(3000)
                del passing
            after = torch.zeros(500)
    assert stages.found == {"outer": 16000, "inner": 12000}
    assert memory.live == 4 * len(kept) + 4 * len(after)


def test_what_exists_already_is_not_live():
    outside = torch.zeros(1000)
    with budget.LiveBytes() as memory:
        view = outside[10:]
        view += 1
    assert memory.peak == 0


def test_saved_bytes_leave_parameters_out():
    layers = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    saved = budget.SavedBytes(layers)
    with saved:
        layers(torch.randn(3, 8))
    assert saved.total == 4 * (3 * 8 + 3 * 16)


# ---- a model's budget ----


@pytest.mark.parametrize("training", [False, True])
def test_stages_add_up_to_the_step(demo_cfg, demo_model, training):
    model, step = demo_step(demo_cfg, demo_model, training)
    with budget.counted_flops() as flops:
        step(budget.Shares(lambda: 0.0))
    found = budget.budget_of(model, step, "a step", 2)
    parts = {part.name: part for part in found.parts}
    assert len(parts) == len(found.parts) and len(found.rates) == 2 and min(found.rates) > 0
    # Feature expansion leaves out as many pairs of proposals as chance has it.
    assert sum(part.flop for part in found.parts) == pytest.approx(flops.total, rel=1e-4) and flops.total > 0
    for number, seconds in enumerate(found.seconds):
        assert sum(part.seconds[number] for part in found.parts) == pytest.approx(seconds)
    with_products = {"image encoder", "CLIP trunk", "prompts", "fusion", "MRPE", "attention bias", "semantic decoder"}
    with_products |= {"classification"}
    with_products |= {"backward", "backward, prompts"} if training else {"upsampling", "semantic inference"}
    assert with_products <= {name for name, part in parts.items() if part.flop > 0}
    assert {"matcher", "losses", "optimiser"} <= set(parts) or not training
    assert found.peak_bytes > max(part.bytes or 0 for part in found.parts if part.name != "prompts") > 0


def test_without_prompts_the_trunk_keeps_nothing_for_a_backward_pass(demo_cfg, demo_model):
    model, step = demo_step(demo_cfg, demo_model, True)
    parts = {part.name: part for part in budget.budget_of(model, step, "a step", 1).parts}
    assert parts["CLIP trunk"].bytes == 0 < parts["prompts"].bytes
    # Gradients of activations alone: none of CLIP's weights, which would cost as much again.
    trunk = parts["CLIP trunk"].flop + parts["prompts"].flop + parts["semantic decoder"].flop
    assert parts["backward, prompts"].flop < 1.2 * trunk


def test_the_model_is_left_as_it_was(demo_cfg, demo_model):
    model, step = demo_step(demo_cfg, demo_model, False)
    prompts, correct, masks = model.clip_image_encoder.prompts, proposal_segmenter.correct, semantic_inference._masks
    before = model.inference(inputs(1, 64, CLASSES))[0]["sem_seg"]
    budget.budget_of(model, step, "a step", 1)
    assert model.clip_image_encoder.prompts is prompts
    assert proposal_segmenter.correct is correct and semantic_inference._masks is masks
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    torch.testing.assert_close(model.inference(inputs(1, 64, CLASSES))[0]["sem_seg"], before)


# ---- the report ----


def test_table_says_how_far_the_limit_is():
    parts = [budget.Part("a", [1.0, 3.0, 2.0], flop=4e9, bytes=2**20), budget.Part("b", [2.0, 2.0, 2.0])]
    text = budget.table(budget.Budget("a step", parts, [3.0, 5.0, 4.0], [3e9, 8e9, 4e9], "in use", 3 * 2**20))
    assert "The machine's rate was 4 GFLOP/s (3 to 8)." in text
    assert "take 1 s at it: the step takes 4.00 times as long" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| a ")]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["a", "2.0000", "1.0000 to 3.0000", "4", "50%", "1.0"]


def test_command(tmp_path, capsys, monkeypatch, demo_cfg):
    monkeypatch.setattr(budget, "config", lambda prompts, options: demo_cfg("MODEL.ALIGNZEG.CLIP.NUM_PROMPTS", prompts))
    monkeypatch.setattr(budget, "PRODUCT", 64)
    budget.main(["--output", str(tmp_path / "new"), "--size", "64", "--classes", "5", "--rounds", "1"])
    text = (tmp_path / "new/budget.md").read_text()
    assert capsys.readouterr().out == text
    titles = ["inference, one image, scores", "training step, 2 images", "loading one image for training, CPU time"]
    assert [line.strip("*") for line in text.splitlines() if line.startswith("**")] == titles
    content = json.loads((tmp_path / "new/budget.json").read_text())
    assert [found["title"] for found in content["budgets"]] == titles
    assert content["about"]["size"] == 64 and [len(found["rates"]) for found in content["budgets"]] == [1, 1, 0]
    names = [[part["name"] for part in found["parts"]] for found in content["budgets"]]
    assert names[2] == list(loading.STAGES) and "prompts" not in names[0] + names[1]
    with Image.open(tmp_path / "new/budget.png") as image:
        assert image.width > 800 and image.height > 1000
    budget.main(["--output", str(tmp_path), "--size", "64", "--classes", "5", "--rounds", "1", "--inference"])
    assert len(json.loads((tmp_path / "budget.json").read_text())["budgets"]) == 1


@pytest.mark.parametrize("option", ["--rounds", "--size", "--classes", "--batch", "--threads"])
def test_a_number_that_is_none_is_refused(option, tmp_path, capsys):
    with pytest.raises(SystemExit):
        budget.main(["--output", str(tmp_path), option, "0"])
    assert f"argument {option}: " in capsys.readouterr().err
