"""Eq. 9-13 by hand, against loops over images and pairs, and in their limits."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from epsilon_d2.modeling.criterion import Criterion
from epsilon_d2.modeling.losses import _softplus, diversity_weight, group_variance, rank_loss
from epsilon_d2.modeling.semantic_fuser import class_scores

ROOT = Path(__file__).resolve().parents[2]


def random_case(images=5, classes=7, groups=3, width=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    semantics = torch.randn(images, groups, width, generator=generator, dtype=dtype)
    vectors = F.normalize(torch.randn(classes, width, generator=generator, dtype=dtype), dim=-1)
    positive = torch.rand(images, classes, generator=generator) < 0.4
    positive[0], positive[1] = False, True  # an image without labels, and one with all
    return semantics, vectors, positive


def loops(semantics, vectors, positive, reg_weight, form, variance):
    """Eq. 9-13 as they are printed, an image and a pair at a time; the form "sdl" as that method's code has it."""
    total = 0.0
    for s, y in zip(semantics, positive, strict=True):
        present, absent = y.nonzero()[:, 0], (~y).nonzero()[:, 0]
        rank = semantics.new_zeros(())
        for j in absent:
            for k in present:
                tau = (s @ vectors[j]).max() - (s @ vectors[k]).max()
                rank = rank + torch.log(1 + tau.exp())
        if form == "sdl":
            if not len(absent):
                rank = sum(torch.log(1 + torch.exp(-(s @ vectors[k]).max())) for k in present)
            rank = rank / max(1, len(present))
        elif len(present) and len(absent):
            rank = rank / (len(present) * len(absent))
        omega = 1 + (vectors[present].var(dim=0).sum() if len(present) > 1 else 0.0)
        reg = s.var(dim=0).sum() if variance == "groups" else sum(vector.var() for vector in s)
        image = omega * (1 - reg_weight) * rank + reg_weight * reg
        total = total + (2 * image if form == "sdl" else image)
    return total / len(semantics)


@pytest.mark.parametrize("variance", ["groups", "within"])
@pytest.mark.parametrize("form", ["paper", "sdl"])
def test_objective_equals_the_printed_one_in_value_and_gradient(form, variance):
    semantics, vectors, positive = random_case()
    ours, theirs = semantics.clone().requires_grad_(), semantics.clone().requires_grad_()
    criterion = Criterion(reg_weight=0.3, rank_form=form, variance_form=variance)
    losses = criterion(ours.float(), vectors.float(), positive)
    assert set(losses) == {"loss_rank", "loss_reg"}
    expected = loops(theirs, vectors, positive, 0.3, form, variance)
    torch.testing.assert_close(sum(losses.values()).double(), expected, rtol=1e-5, atol=1e-6)
    sum(losses.values()).backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


GOLDEN = sorted(Path(os.environ.get("GOLDEN_DIR", ROOT.parent / "shared" / "data" / "golden")).glob("sdl_*.npz"))


@pytest.mark.skipif(not GOLDEN, reason="the golden values of SDL's code are not there")
@pytest.mark.parametrize("file", GOLDEN, ids=lambda path: path.stem)
def test_the_form_sdl_is_that_methods_own(file):
    """Losses and gradients of SDL's public code, for every weight that the file has."""
    golden = np.load(file, allow_pickle=False)
    config = json.loads(str(golden["meta"].item()))["config"]
    # (B, E, M) -> groups (B, M, E); the words of the seen classes come first.
    semantics = torch.from_numpy(golden["out/matrix"]).transpose(1, 2)
    vectors = torch.from_numpy(golden["in/wordvec_array"])[0].T[: config["classes"]]
    positive = torch.from_numpy(golden["in/labels"] == 1)
    weights = [weight for weight in config["weights"] if weight is not None and f"loss/weight_{weight}_mean" in golden]
    assert weights
    for weight in weights:
        given = semantics.clone().requires_grad_()
        loss = sum(Criterion(reg_weight=weight, rank_form="sdl")(given, vectors, positive).values())
        torch.testing.assert_close(loss, torch.tensor(golden[f"loss/weight_{weight}_mean"]), rtol=1e-5, atol=0)
        loss.backward()
        expected = torch.from_numpy(golden[f"grad/weight_{weight}_mean/out_embedding"])
        ours = given.grad.transpose(1, 2).flatten(1)  # component d of vector m is number d * M + m
        torch.testing.assert_close(ours, expected, rtol=0, atol=5e-4 * expected.abs().max().item())


def test_rank_loss_by_hand():
    # present: class 0 with score 2; absent: 1 and 0  ->  (log(1 + e^-1) + log(1 + e^-2)) / 2
    loss = rank_loss(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[True, False, False]]))
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))) / 2)
    sdl = rank_loss(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[True, False, False]]), "sdl")
    assert sdl.item() == pytest.approx(2 * loss.item())
    every = rank_loss(torch.tensor([[2.0, 1.0]]), torch.tensor([[True, True]]), "sdl")
    assert every.item() == pytest.approx((math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2)


def test_rank_loss_gradcheck():
    semantics, vectors, positive = random_case()
    scores = class_scores(semantics, vectors).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rank_loss(x, positive), scores)
    assert torch.autograd.gradcheck(lambda x: rank_loss(x, positive, "sdl"), scores)
    assert torch.autograd.gradcheck(group_variance, semantics.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softplus_keeps_its_digits(dtype):
    x = torch.cat([torch.linspace(-80, 80, 20001, dtype=dtype), torch.tensor([0.0, 1e4, math.inf, -math.inf], dtype=dtype)])
    expected = torch.logaddexp(x.double(), torch.zeros_like(x, dtype=torch.float64)).to(dtype)
    torch.testing.assert_close(_softplus(x), expected, rtol=16 * torch.finfo(dtype).eps, atol=0)
    assert _softplus(torch.tensor([math.nan])).isnan().all()


def test_recomputing_in_chunks_changes_nothing():
    semantics, vectors, positive = random_case()
    results = []
    for pairs in (1 << 22, 2 * positive.shape[1], 1):
        scores = class_scores(semantics, vectors).requires_grad_()
        loss = rank_loss(scores, positive, pairs_per_chunk=pairs)
        loss.sum().backward()
        results.append((loss.detach(), scores.grad))
    for loss, gradient in results[1:]:
        torch.testing.assert_close(loss, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


@pytest.mark.parametrize("present", [False, True])
def test_without_a_pair_there_is_no_rank_loss_and_no_nan(present):
    scores = torch.randn(2, 4, requires_grad=True)
    loss = rank_loss(scores, torch.full((2, 4), present))
    loss.sum().backward()
    assert loss.tolist() == [0, 0] and scores.grad.eq(0).all()


def test_large_scores_stay_finite_and_linear():
    scores = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = rank_loss(scores, torch.tensor([[False, True]]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(2e4) and scores.grad.tolist() == [[1, -1]]
    assert rank_loss(scores, torch.tensor([[True, False]])).item() == 0


def test_losses_follow_classes_and_images():
    semantics, vectors, positive = random_case()
    criterion = Criterion(reg_weight=0.3)
    whole = criterion(semantics, vectors.float(), positive)
    classes, images = torch.randperm(len(vectors)), torch.randperm(len(semantics))
    moved = criterion(semantics[images], vectors[classes].float(), positive[images][:, classes])
    alone = [criterion(semantics[i : i + 1], vectors.float(), positive[i : i + 1]) for i in range(len(semantics))]
    for key, value in whole.items():
        torch.testing.assert_close(moved[key], value)
        torch.testing.assert_close(sum(losses[key] for losses in alone) / len(alone), value)


def test_diversity_weight_by_hand():
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    positive = torch.tensor([[1, 1, 0], [1, 0, 1], [1, 1, 1], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)
    # unbiased variances: (.5 + .5), (2 + 0), (1 + 1/3); one or no label: none
    torch.testing.assert_close(diversity_weight(positive, vectors), torch.tensor([2.0, 3.0, 7 / 3, 1.0, 1.0]))


def test_diversity_weight_is_the_variance_of_every_images_vectors():
    _, vectors, positive = random_case(images=6, classes=9)
    vectors.requires_grad_()
    expected = torch.stack(
        [1 + (vectors[y].var(dim=0).sum() if y.sum() > 1 else torch.zeros((), dtype=vectors.dtype)) for y in positive]
    )
    torch.testing.assert_close(diversity_weight(positive, vectors), expected)
    ours, theirs = (torch.autograd.grad(x.sum(), vectors) for x in (diversity_weight(positive, vectors), expected))
    torch.testing.assert_close(ours, theirs)
    assert diversity_weight(positive[:1], vectors).tolist() == [1]  # a batch without any label


def test_diversity_weight_of_raw_word_vectors_keeps_its_digits():
    vectors = torch.randn(6, 300, generator=torch.Generator().manual_seed(1)) + 100
    positive = torch.tensor([[True, True, False, True, False, False]])
    expected = 1 + vectors[positive[0]].double().var(dim=0).sum()
    assert diversity_weight(positive, vectors).item() == pytest.approx(expected.item(), rel=1e-5)


def test_group_variance_by_hand():
    semantics = torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[1.0, 2.0], [1.0, 2.0]]], requires_grad=True)
    assert group_variance(semantics).tolist() == [2.0, 0.0]
    random, _, _ = random_case()
    random.requires_grad_()
    torch.testing.assert_close(group_variance(random), random.var(dim=1).sum(dim=1))
    ours, theirs = (torch.autograd.grad(x.sum(), random) for x in (group_variance(random), random.var(dim=1).sum(dim=1)))
    torch.testing.assert_close(ours, theirs)
    one = torch.randn(2, 1, 3, requires_grad=True)
    group_variance(one).sum().backward()
    assert group_variance(one).tolist() == [0, 0] and one.grad.eq(0).all()


def test_a_vocabulary_of_open_images_at_batch_96():
    """96 images with 20 labels each among 7,186 classes: finite, and its gradients sum to zero."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(96, 7186, generator=generator, requires_grad=True)
    positive = torch.zeros(96, 7186, dtype=torch.bool)
    positive.scatter_(1, torch.rand(96, 7186, generator=generator).topk(20).indices, True)
    rank_loss(scores, positive).mean().backward()
    assert scores.grad.sum().abs() < 1e-4
    assert (scores.grad[positive] < 0).all() and (scores.grad[~positive] > 0).all()


def test_half_precision_around_it_changes_nothing():
    semantics, vectors, positive = random_case(dtype=torch.float32)
    expected = Criterion(reg_weight=0.3)(semantics, vectors, positive)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (semantics[0] @ vectors.T).dtype == torch.bfloat16
        losses = Criterion(reg_weight=0.3)(semantics, vectors, positive)
    for key, loss in losses.items():
        torch.testing.assert_close(loss, expected[key], rtol=1e-5, atol=0)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="differ in shape"):
        rank_loss(torch.zeros(1, 2), torch.zeros(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"RANK_FORM must be one of \('paper', 'sdl'\), got 'hinge'"):
        Criterion(reg_weight=0.3, rank_form="hinge")
    with pytest.raises(ValueError, match=r"LAMBDA must be in \[0, 1\], got 1.5"):
        Criterion(reg_weight=1.5)
