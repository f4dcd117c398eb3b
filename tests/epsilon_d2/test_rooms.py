"""GPA, GFP, the Semantic Fuser and the scores: shapes, their equations written out, and limits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from epsilon_d2.modeling.average_pooling import AveragePooling
from epsilon_d2.modeling.gfp import GlobalForwardPropagation
from epsilon_d2.modeling.gpa import GroupPromptsAggregation
from epsilon_d2.modeling.semantic_fuser import SemanticFuser, class_scores

N, L, G, D = 3, 10, 4, 16


@pytest.fixture
def tokens():
    return torch.randn(N, L, D, generator=torch.Generator().manual_seed(0))


def make_gpa(**arguments):
    torch.manual_seed(0)
    return GroupPromptsAggregation(width=D, num_groups=G, encoder_heads=4, encoder_ffn=32, **arguments).eval()


@pytest.mark.parametrize("layers", [1, 2])
def test_aggregation_is_the_first_rows_of_a_plain_transformer_encoder(tokens, layers):
    gpa = make_gpa(encoder_layers=layers)
    plain = nn.TransformerEncoder(gpa.encoder[0], layers, enable_nested_tensor=False).eval()
    plain.layers = gpa.encoder
    expected = plain(torch.cat([gpa.prompts.expand(N, -1, -1), tokens], dim=1))[:, :G]
    torch.testing.assert_close(gpa.aggregate(tokens), expected)


@pytest.mark.parametrize("scaled", [True, False])
def test_gpa_is_equation_3(tokens, scaled):
    gpa = make_gpa(scaled=scaled)
    semantics, attention = gpa(tokens)
    queries = gpa.aggregate(tokens)
    for n in range(N):
        logits = queries[n] @ gpa.key(tokens[n]).T / (D**0.5 if scaled else 1)
        torch.testing.assert_close(attention[n], logits.softmax(-1))
        torch.testing.assert_close(semantics[n], logits.softmax(-1) @ gpa.value(tokens[n]))


def test_gpa_does_not_depend_on_the_order_of_tokens(tokens):
    gpa, order = make_gpa(), torch.randperm(L)
    semantics, attention = gpa(tokens)
    moved, moved_attention = gpa(tokens[:, order])
    torch.testing.assert_close(moved, semantics)
    torch.testing.assert_close(moved_attention, attention[..., order])


def test_gpa_with_equal_keys_averages(tokens):
    gpa = make_gpa()
    nn.init.zeros_(gpa.key.weight)
    semantics, attention = gpa(tokens)
    torch.testing.assert_close(attention, torch.full((N, G, L), 1 / L))
    torch.testing.assert_close(semantics, gpa.value(tokens).mean(1, keepdim=True).expand(-1, G, -1))


def test_gpa_checks_heads_and_groups():
    with pytest.raises(ValueError, match="ENCODER_HEADS 5 does not divide the backbone's width 16"):
        GroupPromptsAggregation(width=D, num_groups=G, encoder_heads=5)
    with pytest.raises(ValueError, match="at least one group"):
        GroupPromptsAggregation(width=D, num_groups=0)


def test_gfp_is_equations_4_to_6(tokens):
    torch.manual_seed(0)
    gfp = GlobalForwardPropagation(width=D, num_groups=G, mlp_ratio=0.5)
    semantics, weights = gfp(tokens)
    assert semantics.shape == (N, G, D) and weights.shape == (N, G, L)
    for g in range(G):
        block = F.linear(tokens, *(p[g * D : (g + 1) * D] for p in (gfp.blocks.weight, gfp.blocks.bias)))
        w = F.gelu(block @ gfp.weight1[g] + gfp.bias1[g]) @ gfp.weight2[g] + gfp.bias2[g]
        attention = w.softmax(dim=1)
        torch.testing.assert_close(semantics[:, g], (block * attention).sum(1))
        torch.testing.assert_close(weights[:, g], attention.mean(-1))


def test_gfp_with_a_flat_mlp_is_the_mean_of_the_blocks(tokens):
    gfp = GlobalForwardPropagation(width=D, num_groups=G)
    nn.init.zeros_(gfp.weight2)
    torch.testing.assert_close(gfp(tokens)[0], gfp.blocks(tokens).unflatten(-1, (G, D)).mean(1))


def test_average_pooling(tokens):
    pooling = AveragePooling(width=D, num_groups=G)
    expected = pooling.project(tokens).mean(1).unflatten(-1, (G, D))
    torch.testing.assert_close(pooling(tokens), expected)


def test_fuser_is_linear_in_both_parts(tokens):
    fuser = SemanticFuser(width=D, num_parts=2, label_width=5)
    a, b = tokens[:, :G], tokens[:, G : 2 * G]
    expected = a @ fuser.project.weight[:, :D].T + b @ fuser.project.weight[:, D:].T + fuser.project.bias
    torch.testing.assert_close(fuser([a, b]), expected)


def test_scores_by_hand():
    semantics = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    assert class_scores(semantics, vectors).tolist() == [[1.0, 2.0, -1.0]]


def plain_class_scores(semantics, vectors):
    return (semantics @ vectors.T).max(dim=1).values


@pytest.mark.parametrize("classes_per_chunk", [1024, 4])
@pytest.mark.parametrize("shape", [(3, 4, 6, 5), (1, 1, 3, 2), (2, 9, 1, 3), (2, 3, 8, 4)])
def test_gradients_of_scores_are_those_of_the_plain_form(shape, classes_per_chunk, monkeypatch):
    monkeypatch.setattr("epsilon_d2.modeling.semantic_fuser.CLASSES_PER_CHUNK", classes_per_chunk)
    images, groups, classes, width = shape
    generator = torch.Generator().manual_seed(0)
    semantics = torch.randn(images, groups, width, generator=generator, dtype=torch.float64, requires_grad=True)
    vectors = torch.randn(classes, width, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(images, classes, generator=generator, dtype=torch.float64)
    scores, expected = class_scores(semantics, vectors), plain_class_scores(semantics, vectors)
    torch.testing.assert_close(scores, expected)
    ours, theirs = (torch.autograd.grad(x, (semantics, vectors), weight) for x in (scores, expected))
    torch.testing.assert_close(ours, theirs)
    (alone,) = torch.autograd.grad(class_scores(semantics, vectors.detach()), semantics, weight)
    torch.testing.assert_close(alone, theirs[0])
    assert torch.autograd.gradcheck(class_scores, (semantics, vectors))
    with torch.no_grad():
        torch.testing.assert_close(class_scores(semantics, vectors), expected)
    torch.testing.assert_close(class_scores(semantics.detach(), vectors.detach()), expected)


def test_scores_refuse_a_second_derivative():
    semantics = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    vectors = torch.eye(4)
    (gradient,) = torch.autograd.grad(class_scores(semantics, vectors).square().sum(), semantics, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("classes_per_chunk", [1024, 1])
def test_of_groups_equally_near_one_has_the_gradient(classes_per_chunk, monkeypatch):
    """The same that torch.max takes."""
    monkeypatch.setattr("epsilon_d2.modeling.semantic_fuser.CLASSES_PER_CHUNK", classes_per_chunk)
    semantics = torch.tensor([[[1.0, 2.0], [1.0, 2.0], [0.0, 2.0]]], requires_grad=True)
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    ours, theirs = (torch.autograd.grad(f(semantics, vectors).sum(), semantics) for f in (class_scores, plain_class_scores))
    torch.testing.assert_close(ours, theirs)


def test_scores_in_half_precision_have_gradients_in_the_inputs_precision():
    semantics = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    vectors = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    gradients = []
    for form in (class_scores, plain_class_scores):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = form(semantics, vectors)
        assert scores.dtype == torch.bfloat16
        gradients.append(torch.autograd.grad(scores.sum(), (semantics, vectors)))
    assert {gradient.dtype for gradient in gradients[0]} == {torch.float32}
    torch.testing.assert_close(*gradients, rtol=0.02, atol=0.02)  # the plain form rounds to bfloat16 again


@pytest.mark.parametrize("room", ["gpa", "gfp"])
def test_every_parameter_learns(tokens, room):
    module = make_gpa() if room == "gpa" else GlobalForwardPropagation(width=D, num_groups=G)
    module(tokens)[0].square().sum().backward()
    without = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    # A softmax does not see what is added to all of its inputs.
    assert without in (["key.bias"], ["bias2"], []), without
