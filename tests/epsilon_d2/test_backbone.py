"""The frozen backbones: tokens of timm's and open_clip's transformers, taps, and weights that are not there."""

from functools import partial

import open_clip
import pytest
import timm
import torch

from epsilon_d2.modeling.backbone import ClipViT, TimmViT, create_timm_vit
from zeroshot_d2.clip.loader import DEMO_CLIP, create_clip
from zeroshot_d2.pixel_stats import PixelStats

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
    with pytest.raises(ValueError, match="'resnet10t' is not one of timm's vision transformers that .*patch14_dinov2"):
        create_timm_vit("resnet10t", "", 224)


def test_weights_that_cannot_be_had_offline():
    with pytest.raises(RuntimeError, match=r"the weights 'r160_in1k' of 'test_vit' could not be loaded.*Without a network"):
        create_timm_vit(TINY, "r160_in1k", 160)


def test_clip_tokens_are_those_of_open_clip():
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    visual = create_clip(DEMO_CLIP.name, "").visual
    with torch.no_grad():
        expected = {tap: visual.forward_intermediates(images, indices=[tap - 1]) for tap in (2, 6)}
        for tap, intermediates in expected.items():
            tokens = ClipViT(name=DEMO_CLIP.name, pretrained="", image_size=64, tap=tap)(images)["tokens"]
            grid = intermediates["image_intermediates"][0]
            torch.testing.assert_close(tokens, grid.flatten(2).transpose(1, 2))
        last = ClipViT(name=DEMO_CLIP.name, pretrained="", image_size=64)(images)["tokens"]
    torch.testing.assert_close(last, visual.ln_post(tokens))


def test_clip_at_another_size_and_without_transformer():
    tokens = ClipViT(name=DEMO_CLIP.name, pretrained="", image_size=96)(torch.zeros(1, 3, 96, 96))["tokens"]
    assert tokens.shape == (1, 144, 128)
    with pytest.raises(ValueError, match="the image tower of 'RN50' is a ModifiedResNet"):
        ClipViT(name="RN50", pretrained="", image_size=224)


# ---- other families ----
SIGLIP = "ViT-B-16-SigLIP"


@pytest.fixture
def two_blocks(monkeypatch):
    """timm's models are built with two blocks, 64 wide, and CLIPs next to without a text tower."""
    small = {"depth": 2, "embed_dim": 64, "num_heads": 2}
    find = open_clip.factory.get_model_config

    def config(name):
        text = {"width": 64, "heads": 1, "layers": 1, "vocab_size": 8}
        return {**find(name), "text_cfg": {**find(name)["text_cfg"], **text}}

    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **small))
    monkeypatch.setattr(open_clip.factory, "get_model_config", config)


@pytest.mark.parametrize("name", ["EVA02-B-16", "EVA01-g-14", SIGLIP])
def test_other_clips_give_what_timm_computes(two_blocks, name):
    """At their own size; position embeddings and rotations of others are those of the towers' tests."""
    visual = create_clip(name, "").visual
    side = visual.image_size[0]
    images = torch.randn(1, 3, side, side)
    with torch.no_grad():
        expected = visual.trunk.forward_features(images)
        _, (first,) = visual.trunk.forward_intermediates(images, indices=[0], output_fmt="NLC")
    cls = 0 if name == SIGLIP else 1
    found = ClipViT(name=name, pretrained="", image_size=side)(images)["tokens"]
    torch.testing.assert_close(found, expected[:, cls:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ClipViT(name=name, pretrained="", image_size=side, tap=1)(images)["tokens"], first)
    if cls:
        with_cls = ClipViT(name=name, pretrained="", image_size=side, cls_token=True)(images)["tokens"]
        torch.testing.assert_close(with_cls, expected, rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(ValueError, match=f"'{name}' has no \\[CLS\\] token: set MODEL.EPSILON.BACKBONE.CLS_TOKEN False"):
            ClipViT(name=name, pretrained="", image_size=side, cls_token=True)


@pytest.mark.parametrize("name", ["EVA02-B-16", SIGLIP])
def test_other_clips_at_another_size(two_blocks, name):
    backbone = ClipViT(name=name, pretrained="", image_size=96)
    assert backbone(torch.randn(2, 3, 96, 96))["tokens"].shape == (2, 36, 64)
    assert not backbone.train().training and not any(p.requires_grad for p in backbone.parameters())
    with pytest.raises(ValueError, match=r"INPUT.IMAGE_SIZE 100 .*patch size 16"):
        ClipViT(name=name, pretrained="", image_size=100)


@pytest.mark.parametrize("name", ["vit_base_patch14_reg4_dinov2", "vit_base_patch14_dinov2", "deit3_base_patch16_224"])
def test_registers_are_left_out(two_blocks, name):
    vit = create_timm_vit(name, "", 112).eval()
    images = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        expected = vit.forward_features(images)
    patches = (112 // vit.patch_embed.patch_size[0]) ** 2
    registers = expected.shape[1] - 1 - patches
    assert registers == (4 if "reg4" in name else 0)
    torch.testing.assert_close(TimmViT(name=name, pretrained="", image_size=112)(images)["tokens"], expected[:, -patches:])
    with_cls = TimmViT(name=name, pretrained="", image_size=112, cls_token=True)(images)["tokens"]
    torch.testing.assert_close(with_cls, torch.cat([expected[:, :1], expected[:, -patches:]], dim=1))


EVAS = [name for name in ("eva02_tiny_patch14_224", "vit_small_patch16_dinov3") if timm.is_model(name)]


@pytest.mark.parametrize("name", EVAS)
def test_timm_s_evas_and_their_weights_from_a_file(two_blocks, tmp_path, name):
    torch.manual_seed(1)
    other = timm.create_model(name, num_classes=0, img_size=112).eval()
    torch.save(other.state_dict(), tmp_path / "weights.pth")
    backbone = TimmViT(name=name, pretrained=str(tmp_path / "weights.pth"), image_size=112)
    images = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        expected = other.forward_features(images)[:, other.num_prefix_tokens :]
    torch.testing.assert_close(backbone(images)["tokens"], expected)


def test_a_name_with_its_tag_says_how_it_is_written():
    with pytest.raises(ValueError, match="set NAME 'vit_small_patch14_dinov2' and PRETRAINED 'lvd142m'"):
        create_timm_vit("vit_small_patch14_dinov2.lvd142m", "", 224)


def test_pixel_statistics_are_those_of_the_tag_or_of_any_tag_of_a_file(two_blocks, tmp_path):
    half, imagenet = PixelStats((127.5,) * 3, (127.5,) * 3), (123.675, 116.28, 103.53)
    name = "vit_base_patch16_224"
    torch.save(timm.create_model(name, num_classes=0).state_dict(), tmp_path / "weights.pth")
    of_file = TimmViT(name=name, pretrained=str(tmp_path / "weights.pth"), image_size=224)
    assert not of_file.known_weights and half in of_file.pixel_stats
    assert any(stats.mean == pytest.approx(imagenet) for stats in of_file.pixel_stats)
    assert TimmViT(name=name, pretrained="", image_size=224).pixel_stats == []
