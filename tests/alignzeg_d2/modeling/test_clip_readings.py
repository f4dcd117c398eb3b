"""Readings of the prompts and of CLIP's position embeddings that the peers' code has: ZegCLIP's and SAN's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from alignzeg_d2 import AlignZeg

CLIP = "MODEL.ALIGNZEG.CLIP"
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def learns(model: AlignZeg) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad and name.startswith("clip_image_encoder")}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), set()),
        ((f"{CLIP}.NUM_PROMPTS", 2), {"prompts"}),
        (
            (f"{CLIP}.NUM_PROMPTS", 2, f"{CLIP}.PROMPT_PROJECTION", True),
            {"prompts", "prompt_projection.weight", "prompt_projection.bias"},
        ),
        ((f"{CLIP}.PROMPT_PROJECTION", True), set()),  # there is nothing to project
        ((f"{CLIP}.TRAIN_POSITIONS", True), {"positional_embedding"}),
    ],
)
def test_what_learns_gets_a_gradient_and_is_in_the_checkpoint(demo_model: Callable[..., AlignZeg], options, expected):
    model = demo_model(*options).train()
    names = {f"clip_image_encoder.{name}" for name in expected}
    assert learns(model) == names
    assert names <= model.state_dict().keys()
    z_clip, tokens = model.clip_image_encoder(IMAGES)
    assert z_clip.requires_grad == tokens.requires_grad == bool(expected)
    if expected:
        (z_clip.sum() + (tokens**2).sum()).backward()
        parameters = dict(model.named_parameters())
        assert all(parameters[name].grad.any() for name in names)


def test_a_trained_position_embedding_is_saved_and_loaded(demo_model: Callable[..., AlignZeg]):
    model, other = (demo_model(f"{CLIP}.TRAIN_POSITIONS", True) for _ in range(2))
    with torch.no_grad():
        model.clip_image_encoder.positional_embedding.mul_(3)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.clip_image_encoder.positional_embedding, model.clip_image_encoder.positional_embedding)
    assert "clip_image_encoder.positional_embedding" not in demo_model().state_dict()


def test_prompts_are_dropped_out_in_training_alone(demo_model: Callable[..., AlignZeg]):
    encoder = demo_model(f"{CLIP}.NUM_PROMPTS", 2, f"{CLIP}.PROMPT_DROPOUT", 0.5).clip_image_encoder
    with torch.no_grad():
        encoder.prompts.mul_(20)
        torch.manual_seed(0)
        trained = [encoder.train()(IMAGES)[1] for _ in range(2)]
        used = [encoder.eval()(IMAGES)[1] for _ in range(2)]
    assert not torch.allclose(*trained, rtol=1e-3) and torch.allclose(*used)


def test_a_projection_that_is_the_identity_changes_nothing(demo_model: Callable[..., AlignZeg]):
    plain = demo_model(f"{CLIP}.NUM_PROMPTS", 2).clip_image_encoder
    projected = demo_model(f"{CLIP}.NUM_PROMPTS", 2, f"{CLIP}.PROMPT_PROJECTION", True).clip_image_encoder
    with torch.no_grad():
        projected.load_state_dict(plain.state_dict(), strict=False)
        projected.prompt_projection.weight.copy_(torch.eye(plain.width))
        projected.prompt_projection.bias.zero_()
        torch.testing.assert_close(projected(IMAGES)[1], plain(IMAGES)[1])
        projected.prompt_projection.bias.copy_(torch.linspace(-1, 1, plain.width))
        assert not torch.allclose(projected(IMAGES)[1], plain(IMAGES)[1], rtol=1e-3)
