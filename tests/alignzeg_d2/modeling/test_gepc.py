"""GEPC (Sec. 3.2): phi_cls, Eq. 2, 3 and 4, the background logit."""

import math

import pytest
import torch
import torch.nn.functional as F

from alignzeg_d2.modeling.gepc.background_diversity import background_logit, diversity_loss
from alignzeg_d2.modeling.gepc.classifier import ProposalClassifier
from alignzeg_d2.modeling.gepc.feature_expansion import feature_expansion_loss, mix, sample_mixing, virtual_logits


# ---- classification ----
def test_classifier_starts_in_clips_space():
    torch.manual_seed(0)
    classifier = ProposalClassifier(width=6, num_background_prototypes=3, logit_scale=50.0)
    features, prototypes = torch.randn(2, 4, 6), F.normalize(torch.randn(5, 6), dim=-1)
    refined = classifier.refine(features)
    torch.testing.assert_close(refined, F.normalize(features, dim=-1))
    logits = classifier(refined, prototypes)
    assert logits.shape == (2, 4, 6)
    torch.testing.assert_close(logits[..., :5], 50 * F.cosine_similarity(features[:, :, None], prototypes, dim=-1))


def test_one_background_prototype_is_a_plain_background_token():
    torch.manual_seed(0)
    classifier = ProposalClassifier(width=6, num_background_prototypes=1, logit_scale=50.0)
    refined = F.normalize(torch.randn(4, 6), dim=-1)
    logits = classifier(refined, F.normalize(torch.randn(5, 6), dim=-1))
    token = F.normalize(classifier.background_prototypes[0], dim=-1)
    torch.testing.assert_close(logits[:, -1], 50 * refined @ token)


def test_gradient_reaches_what_learns_and_the_scale_does_not():
    classifier = ProposalClassifier(width=6, num_background_prototypes=3, logit_scale=50.0)
    torch.nn.init.normal_(classifier.phi_cls[-1].weight)  # behind zeros, the first layer has no gradient yet
    features = torch.randn(4, 6, requires_grad=True)
    prototypes = F.normalize(torch.randn(5, 6), dim=-1)
    F.cross_entropy(classifier(classifier.refine(features), prototypes), torch.tensor([0, 1, 5, 5])).backward()
    named = dict(classifier.named_parameters())
    assert set(named) == {"background_prototypes", *(f"phi_cls.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias"))}
    assert all(p.grad.abs().sum() > 0 for p in named.values())
    assert features.grad.abs().sum() > 0 and not classifier.logit_scale.requires_grad


def test_without_refinement_features_are_taken_as_they_are():
    classifier = ProposalClassifier(width=6, num_background_prototypes=1, logit_scale=50.0, refinement=False)
    features = torch.randn(4, 6)
    torch.testing.assert_close(classifier.refine(features), F.normalize(features, dim=-1))
    assert [name for name, _ in classifier.named_parameters()] == ["background_prototypes"]


# ---- background diversity ----
def test_background_logit_by_hand():
    a, b = 1.0, 3.0
    share = math.exp(b) / (math.exp(a) + math.exp(b))
    assert background_logit(torch.tensor([a, b])).item() == pytest.approx((1 - share) * a + share * b)
    torch.testing.assert_close(background_logit(torch.tensor([[2.5], [-1.0]])), torch.tensor([2.5, -1.0]))


def test_background_logit_lies_between_mean_and_maximum():
    logits = torch.randn(50, 7)
    value = background_logit(logits)
    assert ((value >= logits.mean(-1)) & (value <= logits.amax(-1))).all()


def test_eq_4_by_hand_and_as_printed():
    g = torch.tensor([[2.0, 0.0], [0.0, 5.0], [1.0, 1.0]])  # cosines 0, 1/sqrt 2, 1/sqrt 2
    assert diversity_loss(g).item() == pytest.approx(2 / (3 * 2) * 2 / math.sqrt(2))
    g = F.normalize(torch.randn(6, 4), dim=-1)
    printed = sum((g[i] @ g[j]).item() for i in range(5) for j in range(i + 1, 6)) * 2 / (6 * 5)
    assert diversity_loss(g).item() == pytest.approx(printed, rel=1e-5, abs=1e-6)


def test_eq_4_bounds():
    count = 5
    simplex = torch.eye(count) - 1 / count
    assert diversity_loss(simplex).item() == pytest.approx(-1 / (count - 1))
    assert diversity_loss(torch.ones(count, 3)).item() == pytest.approx(1)
    assert diversity_loss(1e3 * simplex).item() == pytest.approx(-1 / (count - 1))  # length earns nothing
    for seed in range(20):
        torch.manual_seed(seed)
        assert -1 / (count - 1) - 1e-6 <= diversity_loss(torch.randn(count, 3)).item() <= 1


def test_eq_4_of_one_prototype_is_zero_with_a_gradient():
    prototype = torch.randn(1, 4, requires_grad=True)
    loss = diversity_loss(prototype)
    loss.backward()
    assert loss.item() == 0 and prototype.grad.abs().sum() == 0


def test_eq_4_gradient():
    prototypes = torch.randn(4, 3, dtype=torch.float32, requires_grad=True)
    diversity_loss(prototypes).backward()
    step = 1e-2 * torch.randn(4, 3)
    change = diversity_loss(prototypes + step) - diversity_loss(prototypes - step)
    torch.testing.assert_close(change.detach(), 2 * (prototypes.grad * step).sum(), rtol=0.02, atol=1e-5)


# ---- feature expansion ----
def test_eq_2_by_hand():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    mixed = mix(x, torch.tensor([1, 0]), torch.tensor(0.75))
    expected = torch.tensor([[0.75, 0.25], [0.25, 0.75]]) / math.hypot(0.75, 0.25)
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(mix(x, torch.tensor([1, 0]), torch.tensor(1.0)), x)


def test_eq_3_compares_a_feature_with_its_own_virtual_prototype_only():
    torch.manual_seed(0)
    features, virtual, prototypes = torch.randn(3, 4), torch.randn(3, 4), torch.randn(5, 4)
    logits = virtual_logits(features, virtual, prototypes)
    assert logits.shape == (3, 6)
    for i in range(3):
        for c in range(5):
            assert logits[i, c].item() == pytest.approx((features[i] @ prototypes[c]).item(), abs=1e-5)
        assert logits[i, 5].item() == pytest.approx((features[i] @ virtual[i]).item(), abs=1e-5)


def test_l_vir_by_hand():
    """Two classes on orthogonal axes, features on their prototypes, beta one half: all cosines are 1/sqrt 2, 1/sqrt 2, 1."""
    prototypes = torch.eye(2)
    loss = feature_expansion_loss(
        prototypes, torch.tensor([0, 1]), prototypes, permutation=torch.tensor([1, 0]), beta=torch.tensor(0.5),
        logit_scale=torch.tensor(3.0),
    )  # fmt: skip
    near = math.exp(3 / math.sqrt(2))
    assert loss.item() == pytest.approx(-math.log(math.exp(3) / (2 * near + math.exp(3))), rel=1e-5)


@pytest.mark.parametrize("exclude", [True, False])
def test_pairs_of_one_class_are_left_out(exclude):
    torch.manual_seed(0)
    features = F.normalize(torch.randn(4, 6), dim=-1)
    labels, permutation, beta = torch.tensor([0, 1, 1, 2]), torch.tensor([1, 2, 3, 0]), torch.tensor(0.4)
    prototypes, scale = F.normalize(torch.randn(3, 6), dim=-1), torch.tensor(10.0)
    loss = feature_expansion_loss(
        features, labels, prototypes, permutation=permutation, beta=beta, logit_scale=scale, exclude_same_class=exclude
    )
    kept = [0, 2, 3] if exclude else [0, 1, 2, 3]  # the pair of row 1 is (class 1, class 1)
    terms = []
    for i in kept:
        j = int(permutation[i])
        f = F.normalize(beta * features[i] + (1 - beta) * features[j], dim=0)
        t = F.normalize(beta * prototypes[labels[i]] + (1 - beta) * prototypes[labels[j]], dim=0)
        terms.append(-torch.cat([prototypes @ f, (f @ t)[None]]).mul(scale).log_softmax(0)[-1])
    torch.testing.assert_close(loss, torch.stack(terms).mean())


@pytest.mark.parametrize("labels", [[], [2], [1, 1, 1]])
def test_l_vir_is_zero_with_a_gradient_when_no_pair_is_left(labels):
    features = torch.randn(len(labels), 6, requires_grad=True)
    permutation = torch.arange(len(labels)).roll(1)
    loss = feature_expansion_loss(
        features, torch.tensor(labels, dtype=torch.long), F.normalize(torch.randn(3, 6), dim=-1),
        permutation=permutation, beta=torch.tensor(0.5), logit_scale=torch.tensor(100.0),
    )  # fmt: skip
    loss.backward()
    assert loss.item() == 0 and features.grad.abs().sum() == 0


def test_l_vir_pulls_virtual_features_to_their_virtual_prototypes():
    torch.manual_seed(0)
    raw = torch.randn(6, 8, requires_grad=True)
    labels, prototypes = torch.arange(6) % 3, F.normalize(torch.randn(3, 8), dim=-1)
    permutation, beta = torch.tensor([1, 2, 3, 4, 5, 0]), torch.tensor(0.5)
    optimizer = torch.optim.Adam([raw], lr=0.05)
    for _ in range(100):
        loss = feature_expansion_loss(
            F.normalize(raw, dim=-1), labels, prototypes, permutation=permutation, beta=beta, logit_scale=torch.tensor(10.0)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    virtual = mix(F.normalize(raw.detach(), dim=-1), permutation, beta)
    own = (virtual * mix(prototypes[labels], permutation, beta)).sum(-1)
    assert (own > (virtual @ prototypes.T).amax(-1)).all()


def test_mixing_is_a_permutation_and_a_number_between_0_and_1():
    cpu = torch.device("cpu")
    for count in (0, 1, 5):
        permutation, beta = sample_mixing(count, 3.0, range(count), cpu)
        assert sorted(permutation.tolist()) == list(range(count))
        assert beta.shape == ()
    betas = torch.stack([sample_mixing(1, 3.0, [seed, 1], cpu)[1] for seed in range(2000)])
    assert ((betas > 0) & (betas < 1)).all()
    assert betas.mean().item() == pytest.approx(0.5, abs=0.02)
    assert betas.var().item() == pytest.approx(1 / 28, rel=0.15)  # 1 / (4 (2 alpha + 1))
