"""Proposal tokens: what they see, and that nothing sees them."""

import pytest
import torch
from open_clip.transformer import VisionTransformer

from alignzeg_d2.modeling.semantic_decoder import POOLING, SemanticDecoder, _max_pool_to

HEADS, WIDTH, GRID = 2, 32, (4, 4)
LENGTH = GRID[0] * GRID[1]


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return VisionTransformer(
        image_size=32, patch_size=8, width=WIDTH, layers=4, heads=HEADS, mlp_ratio=4, output_dim=16
    ).eval()


@pytest.fixture
def tokens():
    torch.manual_seed(1)
    return torch.randn(2, 1 + LENGTH, WIDTH)


def concatenated(vit, tokens, bias):
    """The plain form: [CLS], patches and proposals in one sequence, through open_clip's own blocks under a full mask."""
    n, heads, num_queries = bias.shape[:3]
    total = tokens.shape[1] + num_queries
    mask = torch.zeros(n, heads, total, total)
    mask[:, :, : tokens.shape[1], tokens.shape[1] :] = float("-inf")
    mask[:, :, tokens.shape[1] :, 0] = float("-inf")
    mask[:, :, tokens.shape[1] :, 1 : tokens.shape[1]] = bias.flatten(3)
    own = torch.full((num_queries, num_queries), float("-inf")).fill_diagonal_(0)
    mask[:, :, tokens.shape[1] :, tokens.shape[1] :] = own
    mask = mask.expand(n, HEADS, total, total).flatten(0, 1)
    x = torch.cat([tokens, tokens[:, :1].expand(-1, num_queries, -1)], dim=1)
    for block in vit.transformer.resblocks[-2:]:
        x = block(x, attn_mask=mask)
    return vit.ln_post(x[:, tokens.shape[1] :]) @ vit.proj


@pytest.mark.parametrize("bias_heads", [1, HEADS])
def test_equals_one_sequence_under_a_full_mask(vit, tokens, bias_heads):
    bias = 2 * torch.randn(2, bias_heads, 3, *GRID)
    features = SemanticDecoder(visual=vit, num_layers=2)(tokens, bias, GRID)
    assert features.shape == (2, 3, 16)
    torch.testing.assert_close(features, concatenated(vit, tokens, bias), rtol=1e-4, atol=1e-5)


def test_large_bias_on_one_patch_reads_that_patch(vit, tokens):
    decoder = SemanticDecoder(visual=vit, num_layers=1)
    bias = torch.zeros(2, 1, LENGTH, LENGTH)
    bias[:, :, range(LENGTH), range(LENGTH)] = 1e4
    features = decoder(tokens, bias.unflatten(-1, GRID), GRID)

    block = vit.transformer.resblocks[-1]
    patches = block.ln_1(tokens[:, 1:])
    value = torch.nn.functional.linear(patches, block.attn.in_proj_weight[2 * WIDTH :], block.attn.in_proj_bias[2 * WIDTH :])
    x = tokens[:, :1] + block.attn.out_proj(value)
    expected = vit.ln_post(x + block.mlp(block.ln_2(x))) @ vit.proj
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_proposals_do_not_see_one_another(vit, tokens):
    decoder, bias = SemanticDecoder(visual=vit, num_layers=2), torch.randn(2, 1, 5, *GRID)
    together = decoder(tokens, bias, GRID)
    for proposal in range(5):
        torch.testing.assert_close(
            together[:, proposal : proposal + 1], decoder(tokens, bias[:, :, proposal : proposal + 1], GRID)
        )
    order = torch.randperm(5)
    torch.testing.assert_close(together[:, order], decoder(tokens, bias[:, :, order], GRID))


def test_finer_bias_is_max_pooled_to_the_grid(vit, tokens):
    decoder, fine = SemanticDecoder(visual=vit, num_layers=1), torch.randn(2, 1, 3, 8, 8)
    coarse = fine.unflatten(3, (4, 2)).unflatten(5, (4, 2)).amax(dim=(4, 6))
    torch.testing.assert_close(decoder(tokens, fine, GRID), decoder(tokens, coarse, GRID))


def test_gradient_reaches_bias_and_scale_and_not_clip(vit, tokens):
    decoder = SemanticDecoder(visual=vit, num_layers=2).train()
    assert not decoder.blocks.training
    bias = torch.randn(2, 1, 3, *GRID, requires_grad=True)
    decoder(tokens, bias, GRID).square().sum().backward()
    assert bias.grad.abs().sum() > 0
    assert [name for name, p in decoder.named_parameters() if p.requires_grad] == ["bias_scale"]
    assert decoder.bias_scale.grad.abs() > 0
    assert all(p.grad is None for name, p in decoder.named_parameters() if name != "bias_scale")


def test_half_precision_with_infinite_mask_is_finite(vit, tokens):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = SemanticDecoder(visual=vit, num_layers=2)(tokens, torch.randn(2, 1, 3, *GRID), GRID)
    assert features.isfinite().all()


@pytest.mark.parametrize("grid", [(2, 3), (4, 6), (3, 4), (8, 12)])
def test_pooling_to_a_grid_is_adaptive_max_pooling(grid):
    x = torch.randn(2, 3, 8, 12)
    assert torch.equal(_max_pool_to(x, grid), torch.nn.functional.adaptive_max_pool2d(x, grid))


def test_a_bias_for_each_block(vit, tokens):
    """Two blocks with one bias each are two decoders of one block, the patches running on between them."""
    bias = 2 * torch.randn(2, 2 * HEADS, 3, *GRID)
    both = SemanticDecoder(visual=vit, num_layers=2, bias_per_block=True, learnt_scale=False)
    assert list(both.parameters()) and not any(p.requires_grad for p in both.parameters())
    same = torch.cat([bias[:, :HEADS]] * 2, dim=1)
    shared = SemanticDecoder(visual=vit, num_layers=2)(tokens, bias[:, :HEADS], GRID)
    torch.testing.assert_close(both(tokens, same, GRID), shared)
    changed = both(tokens, bias, GRID)
    assert (changed - shared).abs().max() > 1e-3


@pytest.mark.parametrize("pooling", sorted(POOLING))
def test_any_pooling_of_a_constant_bias_is_that_constant(vit, tokens, pooling):
    levels = torch.randn(2, 1, 3, 1, 1)
    decoder = SemanticDecoder(visual=vit, num_layers=1, pooling=pooling)
    pooled = decoder(tokens, levels.expand(-1, -1, -1, 6, 10), GRID)
    torch.testing.assert_close(pooled, decoder(tokens, levels.expand(-1, -1, -1, *GRID), GRID), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("arguments", "message"), [({"num_layers": 0}, "1 to 4"), ({"num_layers": 5}, "got 5")])
def test_impossible_numbers_of_blocks_are_refused(vit, arguments, message):
    with pytest.raises(ValueError, match=message):
        SemanticDecoder(visual=vit, **arguments)


def test_unknown_pooling_is_refused(vit):
    with pytest.raises(ValueError, match="one of .*'max'.*, got 'nearest'"):
        SemanticDecoder(visual=vit, num_layers=1, pooling="nearest")
