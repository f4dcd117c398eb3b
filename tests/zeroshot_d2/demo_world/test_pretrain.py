"""Training of the demo world's CLIP: captions, their positives, the loss, the BPE table."""

import gzip
import json
import math

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from zeroshot_d2.clip.loader import BUNDLED_CLIPS, DEMO_CLIP, create_clip, get_tokenizer
from zeroshot_d2.clip.text import TEMPLATES
from zeroshot_d2.demo_world import DEMO_NEAR, DEMO_WORLD, STUFF, WORLDS, DemoImage, World, pretrain, render
from zeroshot_d2.demo_world.pretrain import (
    build_bpe_table,
    caption_of,
    contrastive_loss,
    facts,
    facts_of,
    initialise,
    normalise,
    single_tile_accuracy,
)

THINGS = DEMO_WORLD.things


@pytest.fixture(params=list(WORLDS))
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[request.param]


# ---- texts ----
def test_bundled_bpe_table_is_the_one_that_is_built(world):
    table = BUNDLED_CLIPS[world.clip].bpe.read_bytes()
    assert gzip.decompress(table) == gzip.decompress(build_bpe_table(world))


def test_every_word_of_a_world_is_one_token_and_comes_back(world):
    tokenizer = open_clip.get_tokenizer(world.clip, bpe_path=str(BUNDLED_CLIPS[world.clip].bpe))
    for name in facts(world):
        ids = tokenizer.encode(name)
        assert len(ids) == len(name.split())
        assert tokenizer.decode(ids).strip() == name
    assert tokenizer.decode(tokenizer.encode("an unrelated zebra")).strip() == "an unrelated zebra"


def test_ids_fit_the_model_and_longest_texts_its_context(world):
    text = json.loads(BUNDLED_CLIPS[world.clip].config.read_text())["text_cfg"]
    names = [*world.things, *STUFF]
    tokens = get_tokenizer(world.clip)([t.format(name) for t in TEMPLATES["vild"] for name in names])
    assert tokens.max() == text["vocab_size"] - 1  # the end-of-text token, the largest, which argmax finds
    assert (tokens == tokens.max()).sum(1).tolist() == [1] * len(tokens)
    assert (tokens > 0).sum(1).max() < text["context_length"]  # nothing was cut


def test_captions_state_facts_that_hold(world):
    rng = np.random.default_rng(0)
    kinds, families = set(), 0
    for index in range(200):
        rendered = render(0, index, num_objects=(0, 3), world=world)
        caption, stated = caption_of(rendered, world, rng)
        assert stated and set(stated) <= facts_of(rendered, world) and set(stated) <= set(facts(world))
        assert all(fact in caption for fact in stated)
        kinds.add((len(stated), any("tile" in fact for fact in stated), any(fact in STUFF for fact in stated)))
        families += any(word in caption for word in world.families)
    assert len(kinds) >= 5  # things, grounds, single words, scenes
    assert families > 100 if world.families else families == 0


@pytest.mark.parametrize(
    ("world", "things", "expected"),
    [
        (DEMO_WORLD, ["dotted red tile"], {"dotted red tile", "dotted", "red"}),
        (DEMO_NEAR, ["plain teal tile"], {"plain teal tile", "plain", "teal", "bluish", "plain bluish tile"}),
    ],
)
def test_facts_of_an_image_are_its_classes_and_their_attributes(world, things, expected):
    names = world.split.names
    image = DemoImage(
        image=np.zeros((2, 2, 3), np.uint8), label=np.zeros((2, 2), np.uint8),
        classes=tuple(names.index(name) for name in [*things, "dark sand"]),
    )  # fmt: skip
    assert facts_of(image, world) == {*expected, "dark sand", "dark", "sand"}


# ---- loss ----
def test_with_one_positive_each_it_is_clips_loss():
    torch.manual_seed(0)
    images, texts = F.normalize(torch.randn(5, 8), dim=-1), F.normalize(torch.randn(5, 8), dim=-1)
    loss = contrastive_loss(images, texts, torch.tensor(7.0), torch.eye(5, dtype=torch.bool))
    torch.testing.assert_close(loss, open_clip.ClipLoss()(images, texts, torch.tensor(7.0)))


def test_several_positives_share_the_target():
    """Both images fit both captions and look alike: the best that can be done is log 2, and it is reached."""
    features = F.normalize(torch.ones(2, 4), dim=-1)
    loss = contrastive_loss(features, features, torch.tensor(10.0), torch.ones(2, 2, dtype=torch.bool))
    assert loss.item() == pytest.approx(math.log(2))


def test_pixels_are_normalised_as_clip_expects():
    white = normalise(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8))
    assert white.shape == (1, 3, 2, 2)
    expected = [(1 - m) / s for m, s in zip(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD, strict=True)]
    torch.testing.assert_close(white[0, :, 0, 0], torch.tensor(expected), rtol=1e-5, atol=1e-5)


# ---- training ----
def test_initialisation_is_openais():
    clip = create_clip(DEMO_CLIP.name, "")
    initialise(clip)
    width, layers = 128, 6
    block = clip.visual.transformer.resblocks[2]
    assert block.attn.in_proj_weight.std().item() == pytest.approx(width**-0.5, rel=0.05)
    assert block.attn.out_proj.weight.std().item() == pytest.approx(width**-0.5 * (2 * layers) ** -0.5, rel=0.05)
    assert block.mlp.c_fc.weight.std().item() == pytest.approx((2 * width) ** -0.5, rel=0.05)


def test_batches_are_repeatable_and_start_with_single_tiles():
    def first(start):
        return next(iter(pretrain._Captions(DEMO_WORLD, 5, 8, single_until=2, start=start)))

    images, captions, held, stated = first(0)
    assert images.shape == (8, 64, 64, 3) and len(captions) == 8
    assert held.shape == stated.shape == (8, len(facts(DEMO_WORLD)))
    assert (held | ~stated).all()  # every caption fits its own image
    again = first(0)
    assert np.array_equal(images, again[0]) and captions == again[1]
    assert (held[:, : len(THINGS)].sum(1) <= 1).all()
    assert (first(2)[2][:, : len(THINGS)].sum(1) > 1).any()


@pytest.mark.slow
def test_a_few_steps_lower_the_loss(monkeypatch):
    losses = []
    real = contrastive_loss

    def recorded(*args):
        loss = real(*args)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(pretrain, "contrastive_loss", recorded)
    clip = pretrain.train(
        world=DEMO_NEAR, steps=25, batch_size=16, seed=0, learning_rate=1e-3, weight_decay=0.05, single_share=1.0, workers=0
    )
    assert len(losses) == 25 and not clip.training
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1


def test_the_bundled_clip_knows_single_tiles_of_unseen_classes():
    """Far above the chance of one in thirty; with random weights it is there."""
    accuracy = single_tile_accuracy(create_clip(DEMO_CLIP.name, "bundled"), DEMO_WORLD, seed=6, num_images=80)
    assert accuracy["seen"] > 70 and accuracy["unseen"] > 60
    chance = single_tile_accuracy(create_clip(DEMO_CLIP.name, ""), DEMO_WORLD, seed=6, num_images=80)
    assert chance["seen"] < 20


def test_the_near_worlds_clip_knows_the_family_of_an_unseen_class_and_hardly_the_class():
    accuracy = single_tile_accuracy(create_clip(DEMO_NEAR.clip, "bundled"), DEMO_NEAR, seed=6, num_images=80)
    assert accuracy["unseen, family"] > 80 and accuracy["unseen"] < 60


def test_the_command_writes_a_whole_file(tmp_path, monkeypatch):
    clip = create_clip(DEMO_CLIP.name, "")
    monkeypatch.setattr(pretrain, "train", lambda **arguments: clip)
    monkeypatch.setattr(pretrain, "single_tile_accuracy", lambda *arguments, **options: {})
    pretrain.main(["--output", str(tmp_path / "new/clip.safetensors"), "--steps", "1"])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["clip.safetensors"]
    loaded = create_clip(DEMO_CLIP.name, str(tmp_path / "new/clip.safetensors"))
    assert all(torch.equal(value, clip.state_dict()[name]) for name, value in loaded.state_dict().items())
