"""The frozen backbones: tokens of timm's and open_clip's transformers, taps, and weights that are not there."""

import pytest
import timm
import torch

from epsilon_d2.modeling.backbone import ClipViT, TimmViT, create_timm_vit
from zeroshot_d2.clip.loader import DEMO_CLIP_NAME, create_clip

TINY = "test_vit"  # timm's own test model: 64 wide, patch 16, at 160 pixels


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))


def test_timm_tokens_are_those_of_the_plain_model(images):
    backbone = TimmViT(name=TINY, pretrained="", image_size=160)
    plain = create_timm_vit(TINY, "", 160).eval()
    with torch.no_grad():
        expected = plain.forward_features(images)
    tokens = backbone(images)["tokens"]
    torch.testing.assert_close(tokens, expected[:, 1:])
    assert tokens.shape[-1] == backbone.output_shape()["tokens"].channels
    with_cls = TimmViT(name=TINY, pretrained="", image_size=160, cls_token=True)
    torch.testing.assert_close(with_cls(images)["tokens"], expected)
    assert not backbone.train().training and not any(p.requires_grad for p in backbone.parameters())


def test_timm_tap(images):
    plain = create_timm_vit(TINY, "", 160).eval()
    with torch.no_grad():
        _, (block_2,) = plain.forward_intermediates(images, indices=[1], output_fmt="NLC")
    torch.testing.assert_close(TimmViT(name=TINY, pretrained="", image_size=160, tap=2)(images)["tokens"], block_2)


def test_timm_at_another_size():
    assert TimmViT(name=TINY, pretrained="", image_size=96)(torch.zeros(1, 3, 96, 96))["tokens"].shape[1] == 36


def test_timm_weights_from_a_file(tmp_path, images):
    torch.manual_seed(1)
    other = timm.create_model(TINY, num_classes=0)
    torch.save(other.state_dict(), tmp_path / "weights.pth")
    backbone = TimmViT(name=TINY, pretrained=str(tmp_path / "weights.pth"), image_size=160)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)["tokens"], other.eval().forward_features(images)[:, 1:])
    assert backbone.identity != TimmViT(name=TINY, pretrained="", image_size=160).identity
    torch.save({"nothing": torch.zeros(1)}, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match="wrong.pth does not hold the weights of 'test_vit'"):
        TimmViT(name=TINY, pretrained=str(tmp_path / "wrong.pth"), image_size=160)


def test_random_weights_are_the_same_everywhere():
    first = TimmViT(name=TINY, pretrained="", image_size=160).identity
    torch.rand(3)
    assert TimmViT(name=TINY, pretrained="", image_size=160).identity == first


def test_timm_names_and_tags():
    with pytest.raises(ValueError, match="unknown timm model 'vit_base_patch16_225'; did you mean 'vit_base_patch16_224'"):
        create_timm_vit("vit_base_patch16_225", "", 224)
    with pytest.raises(ValueError, match=r"neither a weights file nor a timm tag .*\(tags: .*orig_in21k"):
        create_timm_vit("vit_base_patch16_224", "openai", 224)
    with pytest.raises(ValueError, match="'resnet10t' is not one of timm's plain vision transformers"):
        create_timm_vit("resnet10t", "", 224)


def test_weights_that_cannot_be_had_offline():
    with pytest.raises(RuntimeError, match=r"the weights 'r160_in1k' of 'test_vit' could not be loaded.*Without a network"):
        create_timm_vit(TINY, "r160_in1k", 160)


def test_clip_tokens_are_those_of_open_clip():
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    visual = create_clip(DEMO_CLIP_NAME, "").visual
    with torch.no_grad():
        expected = {tap: visual.forward_intermediates(images, indices=[tap - 1]) for tap in (2, 6)}
        for tap, intermediates in expected.items():
            tokens = ClipViT(name=DEMO_CLIP_NAME, pretrained="", image_size=64, tap=tap)(images)["tokens"]
            grid = intermediates["image_intermediates"][0]
            torch.testing.assert_close(tokens, grid.flatten(2).transpose(1, 2))
        last = ClipViT(name=DEMO_CLIP_NAME, pretrained="", image_size=64)(images)["tokens"]
    torch.testing.assert_close(last, visual.ln_post(tokens))


def test_clip_at_another_size_and_without_transformer():
    tokens = ClipViT(name=DEMO_CLIP_NAME, pretrained="", image_size=96)(torch.zeros(1, 3, 96, 96))["tokens"]
    assert tokens.shape == (1, 144, 128)
    with pytest.raises(ValueError, match="the image tower of 'RN50' is a ModifiedResNet"):
        ClipViT(name="RN50", pretrained="", image_size=224)
