"""A CLIP as a config names it."""

import math

import pytest
import torch

from zeroshot_d2 import load_config
from zeroshot_d2.clip.frozen_clip import FrozenClip
from zeroshot_d2.clip.loader import fingerprint
from zeroshot_d2.vocabulary import split_of_dataset


@pytest.fixture
def cfg():
    return load_config(
        "demo/alignzeg.yaml", ["MODEL.ALIGNZEG.CLIP.PRETRAINED", "", "MODEL.ALIGNZEG.CLIP.TEMPLATES", "single"]
    )


def test_says_which_clip_it_is_and_knows_the_classes(cfg, random_clip):
    found = FrozenClip.of_config(cfg, "ALIGNZEG")
    assert found.identity == {"name": "demo-world-clip", "pretrained": "", "sha256": fingerprint(random_clip)}
    assert found.logit_scale == pytest.approx(math.exp(random_clip.logit_scale.item()))
    assert found.visual is found.clip.visual and found.names == "released"
    assert found.knowledge.vocabulary == split_of_dataset(cfg.DATASETS.TEST[0])
    assert found.knowledge.trained == split_of_dataset(cfg.DATASETS.TRAIN[0]).texts


def test_prototypes_of_the_data_sets_are_computed_while_the_text_tower_is_at_hand(cfg, monkeypatch):
    found = FrozenClip.of_config(cfg, "ALIGNZEG")
    monkeypatch.setattr(found.text_embeddings, "compute", None)  # nothing is left to compute
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        prompts = split_of_dataset(name).prompts_for("released")
        vectors = found.text_embeddings(prompts)
        assert vectors.shape == (len(prompts), 96)
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(prompts)))


def test_an_unknown_clip_is_refused(cfg):
    cfg.MODEL.ALIGNZEG.CLIP.NAME = "ViT-B-61"
    with pytest.raises(ValueError, match="unknown CLIP 'ViT-B-61'"):
        FrozenClip.of_config(cfg, "ALIGNZEG")
