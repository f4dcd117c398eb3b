"""A CLIP as a config names it."""

import math

import pytest
import torch

from zeroshot_d2 import load_config
from zeroshot_d2.clip import frozen_clip
from zeroshot_d2.clip.frozen_clip import FrozenClip
from zeroshot_d2.clip.loader import fingerprint
from zeroshot_d2.pixel_stats import PixelStats
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


def test_other_pixel_statistics_than_the_weights_are_refused(cfg):
    cfg.MODEL.ALIGNZEG.CLIP.PRETRAINED = "bundled"
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    message = r"CLIP.NAME 'demo-world-clip'.*PIXEL_STD \[58.395.*set .*PIXEL_STD \"\[68.501, 66.632"
    with pytest.raises(ValueError, match=message):
        FrozenClip.of_config(cfg, "ALIGNZEG")
    cfg.MODEL.ALIGNZEG.CLIP.PRETRAINED = ""
    FrozenClip.of_config(cfg, "ALIGNZEG")  # random weights were trained with none


def test_a_system_may_have_its_own_pixel_statistics_but_no_third_ones(cfg):
    own = PixelStats((100.0, 101.0, 102.0), (50.0, 51.0, 52.0))
    cfg.MODEL.ALIGNZEG.CLIP.PRETRAINED = "bundled"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = map(list, own)
    assert FrozenClip.of_config(cfg, "ALIGNZEG", also_pixel_stats=[own]).embedding_dim == 96
    cfg.MODEL.PIXEL_MEAN = [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="silently wrong"):
        FrozenClip.of_config(cfg, "ALIGNZEG", also_pixel_stats=[own])


def test_a_system_that_reads_at_cls_says_so_of_a_tower_without(cfg, random_clip, monkeypatch):
    monkeypatch.setattr(random_clip.visual, "pool_type", "avg")
    monkeypatch.setattr(frozen_clip, "create_clip", lambda name, pretrained: random_clip)
    message = r"MODEL.ALIGNZEG.CLIP.NAME 'demo-world-clip', .*cannot be used here: .*mean over the"
    with pytest.raises(ValueError, match=message):
        FrozenClip.of_config(cfg, "ALIGNZEG")
    assert FrozenClip.of_config(cfg, "ALIGNZEG", cls_token=False).visual is random_clip.visual
