"""MRPE: Eq. 1 and the order of its steps."""

import pytest
import torch

from alignzeg_d2.modeling.mrpe import MRPE, CrossAttention
from alignzeg_d2.modeling.transformer_decoder import TransformerPixelDecoder

WIDTH, QUERIES = 12, 5


def eq_1(attention, x, y):
    q = x @ attention.query.weight.T + attention.query.bias
    k = y @ attention.key.weight.T + attention.key.bias
    v = y @ attention.value.weight.T + attention.value.bias
    scores = q @ k.transpose(1, 2) / WIDTH**0.5
    weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
    return weights @ v


def test_cross_attention_is_eq_1():
    torch.manual_seed(0)
    attention, x, y = CrossAttention(WIDTH), torch.randn(2, 4, WIDTH), torch.randn(2, 7, WIDTH)
    torch.testing.assert_close(attention(x, y), eq_1(attention, x, y))


def test_several_heads_split_the_width():
    torch.manual_seed(0)
    attention, reference = CrossAttention(WIDTH, 3), torch.nn.MultiheadAttention(WIDTH, 3, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([attention.query.weight, attention.key.weight, attention.value.weight]))
        reference.in_proj_bias.copy_(torch.cat([attention.query.bias, attention.key.bias, attention.value.bias]))
    reference.out_proj = attention.out
    x, y = torch.randn(2, 4, WIDTH), torch.randn(2, 7, WIDTH)
    torch.testing.assert_close(attention(x, y), reference(x, y, y)[0])
    with pytest.raises(ValueError, match="12 is not divisible by 5"):
        CrossAttention(WIDTH, 5)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("bias_heads", [1, 2])
def test_forward_is_the_text_of_section_3_1(bias_heads, residual):
    torch.manual_seed(0)
    mrpe = MRPE(width=WIDTH, num_queries=QUERIES, num_bias_heads=bias_heads, residual=residual)
    z_f = torch.randn(2, WIDTH, 3, 4)
    proposals = mrpe(z_f)

    z = mrpe.norm_features(z_f.flatten(2).transpose(1, 2))
    q = mrpe.norm_queries(mrpe.queries)[None].repeat(2, 1, 1)
    keep = float(residual)  # with residuals, MLP(x) of the text stands for x + MLP(x)
    x = q + eq_1(mrpe.query_attention, q, z)
    q1 = keep * x + mrpe.query_mlp(x)
    x = z + eq_1(mrpe.image_attention, z, q1)
    z1 = keep * x + mrpe.image_mlp(x)  # keys and values from Q', as the text says
    z1, q1 = mrpe.norm_refined_features(z1), mrpe.norm_refined_queries(q1)
    q2 = keep * q1 + eq_1(mrpe.final_attention, q1, z1)
    assert proposals.mask_logits.shape == (2, QUERIES, 3, 4)
    torch.testing.assert_close(proposals.mask_logits.flatten(2), q2 @ z1.transpose(1, 2))
    assert proposals.attention_bias.shape == (2, bias_heads, QUERIES, 3, 4)
    for head, features in enumerate(mrpe.bias_mlp(z1).split(WIDTH, dim=-1)):
        torch.testing.assert_close(proposals.attention_bias[:, head].flatten(2), q2 @ features.transpose(1, 2))


@pytest.mark.parametrize(
    "decoder",
    [
        MRPE(width=WIDTH, num_queries=QUERIES),
        TransformerPixelDecoder(width=WIDTH, num_queries=QUERIES, num_heads=3, num_layers=2),
    ],
    ids=["MRPE", "TransformerPixelDecoder"],
)
def test_gradient_reaches_every_parameter_and_images_do_not_mix(decoder):
    z_f = torch.randn(2, WIDTH, 3, 4, requires_grad=True)
    proposals = decoder(z_f)
    assert proposals.mask_logits.shape == (2, QUERIES, 3, 4)
    assert proposals.attention_bias.shape == (2, 1, QUERIES, 3, 4)
    (proposals.mask_logits[0].square().sum() + proposals.attention_bias[0].square().sum()).backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None] == []
    assert z_f.grad[0].abs().sum() > 0 and z_f.grad[1].abs().sum() == 0
    alone = decoder(z_f[1:])
    torch.testing.assert_close(alone.mask_logits[0], proposals.mask_logits[1])


def test_masks_follow_the_features_when_these_are_permuted():
    """No position enters the pixel decoder: positions are in the features."""
    mrpe, z_f = MRPE(width=WIDTH, num_queries=QUERIES), torch.randn(1, WIDTH, 1, 6)
    order = torch.randperm(6)
    torch.testing.assert_close(mrpe(z_f[..., order]).mask_logits, mrpe(z_f).mask_logits[..., order])
