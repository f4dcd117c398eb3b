"""The adapters of image towers against open_clip's and timm's own forward passes."""

import copy
import pickle
from functools import partial
from unittest import mock

import open_clip
import pytest
import timm
import torch
from comparisons import assert_close
from devices import needs_gpu
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch.profiler import ProfilerActivity, profile

from alignzeg_d2.modeling.clip_image_encoder import ClipImageEncoder
from alignzeg_d2.modeling.semantic_decoder import SemanticDecoder
from zeroshot_d2.clip.loader import DEMO_CLIP, create_clip, embedding_dim
from zeroshot_d2.clip.towers import (
    WITH_CLS,
    WITHOUT_CLS,
    checked_vision_tower,
    cross_attention,
    resize_positions,
    tower_of,
    with_unrotated,
)

EVAS = {
    "EVA02 with rotary embeddings": ("eva02_base_patch16_clip_224", {"mlp_ratio": 2.0, "ref_feat_shape": (6, 6)}),
    "EVA02 with norms behind": ("eva02_enormous_patch14_clip_224", {"mlp_ratio": 2.0}),
    "EVA01": ("eva_giant_patch14_224", {"mlp_ratio": 2.0}),
}


def eva(kind, size=32):
    """An EVA tower of open_clip's, small: 4 blocks, 32 wide, patches of 8 pixels."""
    name, options = EVAS[kind]
    small = {"img_size": size, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, **options}
    with mock.patch("open_clip.timm_model.timm.create_model", partial(timm.create_model, **small)):
        torch.manual_seed(0)
        visual = TimmModel(name, embed_dim=16, image_size=32, pool="token", proj=None).eval()
    with torch.no_grad():
        for parameter in visual.parameters():  # timm starts with small heads, and with biases and norms that do nothing
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return visual


def plain():
    torch.manual_seed(0)
    return VisionTransformer(
        image_size=32, patch_size=8, width=32, layers=4, heads=2, mlp_ratio=2, output_dim=16, ls_init_value=0.5
    ).eval()


TOWERS = {"plain": plain, **{kind: partial(eva, kind) for kind in EVAS}}


@pytest.fixture(scope="module", params=TOWERS)
def visual(request):
    return TOWERS[request.param]()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_proposals_without_a_bias_are_the_vector_of_the_image(visual, images):
    """Trunk and semantic decoder, wherever one ends and the other begins, compute what the tower itself does."""
    with torch.no_grad():
        expected = visual(images)
    assert expected.std() > 0.1
    for num_layers in (0, 2, 3):
        tokens = ClipImageEncoder(visual, num_layers=num_layers)(images)[1]
        decoder = SemanticDecoder(visual=visual, num_layers=4 - num_layers)
        features = decoder(tokens, torch.zeros(2, 1, 3, 4, 4), (4, 4))
        for proposal in range(3):
            torch.testing.assert_close(features[:, proposal], expected, rtol=1e-4, atol=1e-5)


def test_a_masked_proposal_does_not_see_the_hidden_patches(visual, images):
    tokens = ClipImageEncoder(visual, num_layers=3)(images)[1]
    bias = torch.zeros(2, 1, 1, 4, 4)
    bias[..., 2:] = -1e9
    decoder = SemanticDecoder(visual=visual, num_layers=1)
    features = decoder(tokens, bias, (4, 4))
    hidden = torch.zeros(16, dtype=torch.bool).view(4, 4)
    hidden[:, 2:] = True
    changed = tokens.clone()
    changed[:, 1:][:, hidden.flatten()] += torch.randn(2, 8, 32)
    torch.testing.assert_close(decoder(changed, bias, (4, 4)), features, rtol=1e-4, atol=1e-5)
    changed[:, 1:] += 1.0 + torch.randn(2, 16, 32)
    assert (decoder(changed, bias, (4, 4)) - features).abs().max() > 1e-2


def test_gradient_reaches_the_bias_and_not_the_tower(visual, images):
    tokens = ClipImageEncoder(visual, num_layers=2)(images)[1]
    decoder = SemanticDecoder(visual=visual, num_layers=2).train()
    bias = torch.randn(2, 1, 3, 4, 4, requires_grad=True)
    decoder(tokens, bias, (4, 4)).square().sum().backward()
    assert bias.grad.abs().min() > 0 and decoder.bias_scale.grad.abs() > 0
    assert not any(p.requires_grad for name, p in decoder.named_parameters() if name != "bias_scale")


@pytest.mark.parametrize("kind", EVAS)
@pytest.mark.parametrize("size", [(48, 48), (64, 48)])
def test_another_grid_is_the_one_that_timm_lays_out(kind, size):
    """Rotary embeddings; positions are interpolated as in the plain transformer, which timm does a little differently."""
    visual, other = eva(kind), eva(kind, size)
    grid = (size[0] // 8, size[1] // 8)
    state = visual.state_dict()
    positions = state["trunk.pos_embed"][0]
    laid_out = resize_positions(positions[1:], (4, 4), grid)
    other.load_state_dict({**state, "trunk.pos_embed": torch.cat([positions[:1], laid_out])[None]})
    images = torch.randn(2, 3, *size)
    tokens = ClipImageEncoder(visual, num_layers=2)(images)[1]
    features = SemanticDecoder(visual=visual, num_layers=2)(tokens, torch.zeros(2, 1, 1, *grid), grid)[:, 0]
    with torch.no_grad():
        torch.testing.assert_close(features, other(images), rtol=1e-4, atol=1e-5)


def test_prompts_have_no_place():
    """Prompts, like [CLS], are not rotated: behind them the patches keep their places."""
    visual = eva("EVA02 with rotary embeddings")
    tower = tower_of(visual)
    tokens, prompts = torch.randn(2, 17, 32), torch.randn(2, 3, 32)
    rotation = tower.rotation((4, 4), torch.device("cpu"))
    torch.testing.assert_close(rotation, visual.trunk.rope.get_embed())
    with torch.no_grad():
        with_prompts = torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1)
        found = tower.run(tower.blocks[0], with_prompts, with_unrotated(rotation, 3))
        block = copy.deepcopy(visual.trunk.blocks[0])
        block.attn.num_prefix_tokens = 4
        torch.testing.assert_close(found, block(with_prompts, rope=rotation))
    assert with_unrotated(rotation, 0) is rotation and with_unrotated(None, 3) is None
    encoder = ClipImageEncoder(visual, num_layers=3, num_prompts=3)
    tokens = encoder(torch.randn(1, 3, 32, 32))[1]
    tokens.square().sum().backward()
    assert tokens.shape == (1, 17, 32) and (encoder.prompts.grad.abs().sum(dim=(1, 2)) > 0).all()


def test_frozen_blocks_multiply_all_tokens_of_a_batch_at_once(visual, images):
    """With frozen weights and tokens that need gradients, torch's attention multiplies token by token, a third as fast."""
    encoder = ClipImageEncoder(visual, num_layers=3, num_prompts=2)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        encoder(images)[1].square().sum().backward()
    operators = {event.key for event in profiled.key_averages()}
    assert "aten::bmm" not in operators and "aten::mm" in operators


@pytest.mark.parametrize("count", [1, 2])
def test_gradients_through_a_block_are_those_of_the_block_itself(count):
    tower = tower_of(plain())
    tokens = torch.randn(count, 17, 32, requires_grad=True)
    for block in tower.blocks:
        block.requires_grad_(False)
        expected = torch.autograd.grad(block(tokens).square().sum(), tokens)[0]
        found = torch.autograd.grad(tower.run(block, tokens, None).square().sum(), tokens)[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_cross_attention_is_attention_by_hand():
    queries, patches, mask = torch.randn(1, 2, 4), torch.randn(1, 3, 4), torch.randn(1, 1, 2, 5)
    projections = [(torch.randn(4, 4), None), (torch.randn(4, 4), torch.randn(4)), (torch.randn(4, 4), torch.randn(4))]
    found = cross_attention(queries, patches, mask, projections, num_heads=2)
    seen = torch.cat([patches, queries], dim=1)
    q, k, v = (x @ w.T + (0 if b is None else b) for x, (w, b) in zip((queries, seen, seen), projections, strict=True))
    for head in (slice(0, 2), slice(2, 4)):
        weights = (q[..., head] @ k[..., head].transpose(1, 2) / 2**0.5 + mask[:, 0]).softmax(dim=-1)
        torch.testing.assert_close(found[..., head], weights @ v[..., head], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_cross_attention_where_the_mask_alone_has_a_gradient(device):
    """As in the first block of the semantic decoder of a model without prompts."""
    generator = torch.Generator().manual_seed(0)
    queries, patches, mask, *weights = (
        torch.randn(shape, generator=generator).to(device) for shape in ((2, 3, 8), (2, 5, 8), (2, 1, 3, 8), *[(8, 8)] * 3)
    )
    mask.requires_grad_()
    found = cross_attention(queries, patches, mask, [(weight, None) for weight in weights], num_heads=2)
    (gradient,) = torch.autograd.grad(found.square().sum(), mask)
    seen = torch.cat([patches, queries], dim=1)
    q, k, v = (
        (x @ weight.T).view(2, -1, 2, 4).transpose(1, 2) for x, weight in zip((queries, seen, seen), weights, strict=True)
    )
    expected = ((q @ k.mT / 4**0.5 + mask).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    assert_close(found, expected)
    assert_close(gradient, torch.autograd.grad(expected.square().sum(), mask)[0])


def test_what_is_built_on_a_tower_can_be_copied_and_pickled(visual, images):
    encoder = ClipImageEncoder(visual, num_layers=2)
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        torch.testing.assert_close(other(images)[1], encoder(images)[1])
    held = {id(parameter) for parameter in copy.deepcopy(encoder).parameters()}
    assert len(held) == len(list(encoder.parameters()))


# ---- which towers may be used ----
def visual_only(name):
    """A model of which the image tower alone is built, with 2 small blocks."""
    config = open_clip.get_model_config(name)
    small = {"depth": 2, "embed_dim": 64, "num_heads": 2}
    vision = {**config["vision_cfg"], "width": 64, "head_width": 32}
    if not isinstance(vision.get("layers"), list):
        vision["layers"] = 2
    with mock.patch("open_clip.timm_model.timm.create_model", partial(timm.create_model, **small)):
        return mock.Mock(visual=open_clip.model._build_vision_tower(config["embed_dim"], vision))


@pytest.mark.parametrize("name", WITH_CLS)
def test_towers_with_cls_serve_all(name):
    clip = visual_only(name)
    for cls_token in (True, False):
        assert checked_vision_tower(clip, name, cls_token=cls_token) is clip.visual
    tower = tower_of(clip.visual)
    assert len(tower.blocks) == 2 and tower.output_dim == embedding_dim(name)
    side = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    assert tower.patch_size * tower.grid[0] == side - side % tower.patch_size


POOLED = {
    "ViT-L-14-CLIPA": "a mean over the patches",
    "ViT-B-16-SigLIP": r"has no \[CLS\] token",
    "ViT-B-16-SigLIP2": r"has no \[CLS\] token",
    "PE-Core-B-16": "pooled from the patches",
    "MobileCLIP2-L-14": "no adapter for its Block",
}


@pytest.mark.parametrize(("name", "reason"), [(name, POOLED[name]) for name in POOLED if name in open_clip.list_models()])
def test_other_towers_serve_taggers_only(name, reason):
    clip = visual_only(name)
    assert checked_vision_tower(clip, name, cls_token=False) is clip.visual
    with pytest.raises(
        ValueError, match=f"'{name}' cannot be used here: .*{reason}.*Taggers.*works here: .*EVA02-B-16"
    ) as error:
        checked_vision_tower(clip, name, cls_token=True)
    assert not any(other in str(error.value).partition("works here")[2] for other in WITHOUT_CLS)


@pytest.mark.parametrize("name", ["RN50", "coca_ViT-B-32", "convnext_base", "ViTamin-S"])
def test_networks_without_tokens_are_refused(name):
    clip = visual_only(name) if name in ("RN50", "coca_ViT-B-32") else mock.Mock(visual=torch.nn.Identity())
    with pytest.raises(ValueError, match=f"the image tower of '{name}' is a .* no token per patch.*EVA02-B-16, .*SigLIP"):
        checked_vision_tower(clip, name, cls_token=False)


def test_embedding_dim_is_that_of_the_tower():
    assert embedding_dim(DEMO_CLIP.name) == create_clip(DEMO_CLIP.name, "").visual.output_dim
