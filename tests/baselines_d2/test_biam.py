"""BiAM: the public code's values, by hand, and in its limits."""

from __future__ import annotations

import math
import re

import pytest
import torch
from comparisons import assert_close
from torch import Tensor

from baselines_d2.biam import BiLevelAttention, RegionContext, SceneContext
from baselines_d2.lesa import hinge_rank_loss
from baselines_d2.token_tagger import Tokens
from tests.baselines_d2.golden import Golden, golden_files

# Modules of the public code and ours.
MODULES = {
    "conv_3X3.body": "reduce.0",
    "conv_3X3.bn": "reduce.2",
    "region_context_block.w_q": "region.query",
    "region_context_block.w_k": "region.key",
    "region_context_block.w_v": "region.value",
    "region_context_block.w_o": "region.out",
    "region_context_block.sub_network.conv1": "region.perceptron.0",
    "region_context_block.sub_network.conv2": "region.perceptron.2",
    "scene_context_block.channel_conv.body": "scene.local.0",
    "scene_context_block.w_g": "scene.scene.1",
    "scene_context_block.gcff.body": "scene.refine.0",
    "scene_context_block.gcff.bn": "scene.refine.2",
    "conv_1X1.body": "fuse.0",
    "W": "classifier",
}


def renamed(name: str) -> str:
    module, _, weight = name.rpartition(".")
    return f"{MODULES[module]}.{weight}"


def head_of(golden: Golden) -> BiLevelAttention:
    config = golden.config
    head = BiLevelAttention(
        width=golden["in/features"].shape[1],
        global_width=golden["in/global_features"].shape[1],
        label_width=config["dim"],
        channels=config["channel_dim"],
        num_heads=config["heads"],
        dropout=0.0,
        scene_dropout=0.0,
    )
    state = {renamed(name): values for name, values in golden.below("state").items()}
    state["scene.scene.1.weight"] = state["scene.scene.1.weight"].flatten(1)  # there a 1 x 1 convolution
    head.load_state_dict(state)
    return head


def part_of(gradient: Tensor, suffix: str) -> Tensor:
    """A gradient, or the part of it that a name like "..._first_64_inputs" says."""
    if not suffix:
        return gradient
    count, axis = re.fullmatch(r"_first_(\d+)_(input|output)s?", suffix).groups()
    return gradient[: int(count)] if axis == "output" else gradient[:, : int(count)]


@pytest.mark.parametrize("path", golden_files("biam"))
def test_golden_values_of_evaluation(path):
    golden = Golden(path)
    head = head_of(golden).eval()
    tokens, seen, unseen = inputs_of(golden)
    encoded = head(tokens)
    reduced = head.reduce(tokens.patches)
    both = torch.cat([head.region(reduced), head.scene(reduced, tokens.cls)], dim=1)
    given = {
        "h_r": reduced,
        "e_r": head.region(reduced),
        "e_g": head.scene(reduced, tokens.cls),
        "conv_1X1_first_image_before_relu": head.fuse[0](both[:1]),
        "classifiers_seen": head.classifier(seen),
        "scores_seen": head.scores(encoded, seen),
        "scores_unseen": head.scores(encoded, unseen),
        "scores_seen_then_unseen": head.scores(encoded, torch.cat([seen, unseen])),
    }
    for name, value in given.items():
        golden.check(f"out/eval/{name}", value)
    golden.check("loss/eval/rank", hinge_rank_loss(given["scores_seen"], golden["in/labels"]).mean())


@pytest.mark.parametrize("mode", ["train", "eval_mode"])
@pytest.mark.parametrize("path", golden_files("biam"))
def test_golden_values_of_training(path, mode):
    golden = Golden(path)
    head = head_of(golden).train(mode == "train")
    tokens, seen, _ = inputs_of(golden)
    scores = head.scores(head(tokens), seen)
    scores.retain_grad()
    golden.check(f"out/{mode}/scores_seen", scores)
    loss = hinge_rank_loss(scores, golden["in/labels"]).mean()
    golden.check(f"loss/{mode}/rank", loss)
    loss.backward()
    golden.check(f"grad/{mode}/scores", scores.grad)
    for name in golden.below(f"grad/{mode}"):
        if name != "scores":
            full, suffix = re.fullmatch(r"(.*?(?:weight|bias))(.*)", name).groups()
            golden.check(f"grad/{mode}/{name}", part_of(head.get_parameter(renamed(full)).grad, suffix))
    for name in golden.below(f"out/{mode}"):
        if name.endswith("_after"):  # running statistics after one step
            golden.check(f"out/{mode}/{name}", head.get_buffer(renamed(name.removesuffix("_after"))))
    assert golden.unused(f"loss/{mode}/", f"grad/{mode}/", f"out/{mode}/") == set()


@pytest.mark.parametrize("path", golden_files("biam"))
def test_golden_values_of_the_loss_alone(path):
    """One image has no class present, one has none absent."""
    golden = Golden(path)
    scores = golden["in/loss_alone/scores"].requires_grad_()
    loss = hinge_rank_loss(scores, golden["in/loss_alone/labels"]).mean()
    golden.check("loss/loss_alone", loss)
    loss.backward()
    golden.check("grad/loss_alone/scores", scores.grad)


def inputs_of(golden: Golden) -> tuple[Tokens, Tensor, Tensor]:
    features = golden["in/features"]
    side = round(features.shape[-1] ** 0.5)
    tokens = Tokens(features.unflatten(-1, (side, side)), golden["in/global_features"])
    return tokens, golden["in/seen_vectors"], golden["in/unseen_vectors"]


# ------------------------------------------------------------------------------------------------------- by hand
def test_a_class_has_the_mean_of_its_best_patches():
    head = BiLevelAttention(width=4, global_width=4, label_width=3, channels=4, num_heads=2, class_width=5, top_patches=2)
    patches, labels = torch.randn(2, 9, 5), torch.randn(6, 3)
    similarity = patches @ head.classifier(labels).T
    assert_close(head.scores(patches, labels), similarity.sort(dim=1, descending=True).values[:, :2].mean(dim=1))


def test_regions_attend_to_all_regions_in_every_head():
    torch.manual_seed(0)
    block = RegionContext(channels=6, num_heads=2, dropout=0.0)
    x = torch.randn(2, 6, 3, 3)
    q, k, v = (layer(x).flatten(2).unflatten(1, (2, 3)) for layer in (block.query, block.key, block.value))
    attention = (torch.einsum("nhci,nhcj->nhij", q, k) / math.sqrt(3)).softmax(dim=-1)
    attended = torch.einsum("nhij,nhcj->nhci", attention, v).flatten(1, 2).view_as(x)
    expected = x + block.out(attended)
    assert_close(block(x), expected + block.perceptron(expected))


def test_a_scene_gates_the_channels_that_fit_it():
    block = SceneContext(channels=2, global_width=3, dropout=0.0, bn_momentum=0.1).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()  # refine gives nothing, the scene only its bias
        block.local[0].weight.copy_(torch.eye(2)[:, :, None, None])
        block.scene[1].bias.copy_(torch.tensor([100.0, -100.0]))
    x = torch.ones(1, 2, 2, 2)
    assert_close(block(x, torch.zeros(1, 3))[0, :, 0, 0], torch.tensor([1.0, 0.0]))
