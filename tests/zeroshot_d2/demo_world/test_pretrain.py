"""Training of the demo world's CLIP: captions, their positives, the loss, the BPE table."""

import gzip
import json
import math

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from zeroshot_d2 import demo_world
from zeroshot_d2.clip.loader import DEMO_CLIP_BPE, DEMO_CLIP_CONFIG, DEMO_CLIP_NAME, create_clip, get_tokenizer
from zeroshot_d2.clip.text import TEMPLATES
from zeroshot_d2.demo_world import pretrain
from zeroshot_d2.demo_world.pretrain import (
    FACT_INDEX,
    FACTS,
    build_bpe_table,
    caption_of,
    contrastive_loss,
    facts_of,
    initialise,
    normalise,
    single_tile_accuracy,
)
from zeroshot_d2.demo_world.render import STUFF, THINGS


# ---- texts ----
def test_bundled_bpe_table_is_the_one_that_is_built():
    assert gzip.decompress(DEMO_CLIP_BPE.read_bytes()) == gzip.decompress(build_bpe_table())


def test_every_word_of_the_demo_world_is_one_token_and_comes_back():
    tokenizer = open_clip.get_tokenizer(DEMO_CLIP_NAME, bpe_path=str(DEMO_CLIP_BPE))
    for name in (*THINGS, *STUFF):
        ids = tokenizer.encode(name)
        assert len(ids) == len(name.split())
        assert tokenizer.decode(ids).strip() == name
    assert tokenizer.decode(tokenizer.encode("an unrelated zebra")).strip() == "an unrelated zebra"


def test_ids_fit_the_model_and_longest_texts_its_context():
    text = json.loads(DEMO_CLIP_CONFIG.read_text())["text_cfg"]
    names = [*THINGS, *STUFF]
    tokens = get_tokenizer(DEMO_CLIP_NAME)([t.format(name) for t in TEMPLATES["vild"] for name in names])
    assert tokens.max() == text["vocab_size"] - 1  # the end-of-text token, the largest, which argmax finds
    assert (tokens == tokens.max()).sum(1).tolist() == [1] * len(tokens)
    assert (tokens > 0).sum(1).max() < text["context_length"]  # nothing was cut


def test_captions_state_facts_that_hold():
    rng = np.random.default_rng(0)
    kinds = set()
    for index in range(200):
        rendered = demo_world.render(0, index, num_objects=(0, 3))
        caption, stated = caption_of(rendered, rng)
        held = facts_of(rendered)
        assert stated and all(held[FACT_INDEX[fact]] for fact in stated)
        assert all(fact in caption for fact in stated)
        kinds.add((len(stated), any(fact in THINGS for fact in stated), any(fact in STUFF for fact in stated)))
    assert len(kinds) >= 5  # things, grounds, single words, scenes


def test_facts_of_an_image_are_its_classes_and_their_attributes():
    image = demo_world.DemoImage(
        image=np.zeros((2, 2, 3), np.uint8), label=np.zeros((2, 2), np.uint8),
        classes=(THINGS.index("dotted red tile"), len(THINGS) + STUFF.index("dark sand")),
    )  # fmt: skip
    held = {FACTS[i] for i in np.flatnonzero(facts_of(image))}
    assert held == {"dotted red tile", "dotted", "red", "dark sand", "dark", "sand"}


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
    clip = create_clip(DEMO_CLIP_NAME, "")
    initialise(clip)
    width, layers = 128, 6
    block = clip.visual.transformer.resblocks[2]
    assert block.attn.in_proj_weight.std().item() == pytest.approx(width**-0.5, rel=0.05)
    assert block.attn.out_proj.weight.std().item() == pytest.approx(width**-0.5 * (2 * layers) ** -0.5, rel=0.05)
    assert block.mlp.c_fc.weight.std().item() == pytest.approx((2 * width) ** -0.5, rel=0.05)


def test_batches_are_repeatable_and_start_with_single_tiles():
    def first(start):
        return next(iter(pretrain._Captions(5, 8, single_until=2, start=start)))

    images, captions, held, stated = first(0)
    assert images.shape == (8, 64, 64, 3) and len(captions) == 8
    assert held.shape == stated.shape == (8, len(FACTS))
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
        steps=25, batch_size=16, seed=0, learning_rate=1e-3, weight_decay=0.05, single_share=1.0, workers=0
    )
    assert len(losses) == 25 and not clip.training
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1


def test_the_bundled_clip_knows_single_tiles_of_unseen_classes():
    """Far above the chance of one in thirty; with random weights it is there."""
    accuracy = single_tile_accuracy(create_clip(DEMO_CLIP_NAME, "bundled"), seed=6, num_images=80)
    assert accuracy["seen"] > 70 and accuracy["unseen"] > 60
    chance = single_tile_accuracy(create_clip(DEMO_CLIP_NAME, ""), seed=6, num_images=80)
    assert chance["seen"] < 20


def test_the_command_writes_a_whole_file(tmp_path, monkeypatch):
    clip = create_clip(DEMO_CLIP_NAME, "")
    monkeypatch.setattr(pretrain, "train", lambda **arguments: clip)
    monkeypatch.setattr(pretrain, "single_tile_accuracy", lambda clip, **arguments: {})
    pretrain.main(["--output", str(tmp_path / "new/clip.safetensors"), "--steps", "1"])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["clip.safetensors"]
    loaded = create_clip(DEMO_CLIP_NAME, str(tmp_path / "new/clip.safetensors"))
    assert all(torch.equal(value, clip.state_dict()[name]) for name, value in loaded.state_dict().items())
