"""Fast0Tag: the values of two public copies and of the paper's formula, by hand, and in its limits."""

from __future__ import annotations

import math

import pytest
import torch

from baselines_d2.fast0tag import PrincipalDirection, fast0tag_loss, sample_negatives
from baselines_d2.token_tagger import Tokens
from epsilon_d2.modeling.losses import diversity_weight
from tests.baselines_d2.golden import Golden, golden_files


@pytest.mark.parametrize("path", golden_files("fast0tag"))
def test_golden_values_of_one_linear_map(path):
    """SDL's code with one vector, and the paper's weights on its scores."""
    golden = Golden(path)
    config = golden.config
    head = PrincipalDirection(width=config["channels"], hidden=(), label_width=config["dim"], bias=False)
    head.load_state_dict({"network.0.weight": golden["state/zs_sdl.embedding.weight"]})
    words, positive = golden["in/word_vectors"], golden["in/labels"] == 1
    for name in ("zs_sdl", "zs_sdl_without_diversity"):
        features = golden["in/features"].requires_grad_()
        direction = head(Tokens(features))
        direction.retain_grad()
        scores = head.scores(direction, words)
        loss = fast0tag_loss(scores, positive, "present")
        if name == "zs_sdl":
            loss = diversity_weight(positive, words) * loss
            golden.check("out/zs_sdl/scores", scores)
        golden.check(f"out/{name}/principal_direction", direction)
        golden.check(f"loss/{name}_per_image", loss)
        golden.check(f"loss/{name}", loss.mean())
        head.zero_grad()
        loss.mean().backward()
        golden.check(f"grad/{name}/embedding.weight", head.network[0].weight.grad)
        golden.check(f"grad/{name}/principal_direction", direction.grad)
        golden.check(f"grad/{name}/features", features.grad)

    scores = golden["out/zs_sdl/scores"]
    golden.check("loss/paper_sum_per_image", fast0tag_loss(scores, positive, "sum"))
    golden.check("loss/paper_weighted_per_image", fast0tag_loss(scores, positive, "paper"))
    golden.check("loss/paper_weighted_mean", fast0tag_loss(scores, positive, "paper").mean())
    assert golden.unused("loss/zs_sdl", "loss/paper", "grad/zs_sdl", "out/zs_sdl") == set()


@pytest.mark.parametrize("path", golden_files("fast0tag"))
def test_golden_values_of_the_perceptron(path):
    """The network of multi_label_zsl, with all absent classes, with those that it drew, and with the cross-entropy."""
    golden = Golden(path)
    config = golden.config
    head = PrincipalDirection(width=config["channels"], hidden=config["hidden"], label_width=config["dim"], dropout=0.0)
    state = golden.below("state")
    head.load_state_dict(
        {
            name.replace("multi_label_zsl.fcn", "network"): values
            for name, values in state.items()
            if name.startswith("multi_label_zsl.")
        }
    )
    positive = golden["in/labels"] == 1
    direction = head(Tokens(golden["in/features"]))
    golden.check("out/multi_label_zsl/principal_direction", direction)
    forms = {
        "rank_all_negatives": ("table", None),
        "rank_sampled": ("table", golden["in/sampled_negatives"] == 1),
        "bce": ("bce", None),
    }
    for name, (form, negative) in forms.items():
        scores = head.scores(head(Tokens(golden["in/features"])), golden["in/word_vectors"])
        scores.retain_grad()
        golden.check("out/multi_label_zsl/scores", scores)
        loss = fast0tag_loss(scores, positive, form, negative).mean()
        golden.check(f"loss/multi_label_zsl/{name}", loss)
        head.zero_grad()
        loss.backward()
        golden.check(f"grad/multi_label_zsl/{name}/scores", scores.grad)
        for key in golden.below(f"grad/multi_label_zsl/{name}"):
            if key != "scores":
                parameter = head.get_parameter(key.replace("fcn", "network"))
                golden.check(f"grad/multi_label_zsl/{name}/{key}", parameter.grad)
    assert golden.unused("loss/multi_label_zsl", "grad/multi_label_zsl", "out/multi_label_zsl") == set()


def test_the_forms_by_hand():
    # Present: class 0 with 2; absent: 1 and 0.
    scores, positive = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[True, False, False]])
    near, far = math.log(1 + math.exp(-1)), math.log(1 + math.exp(-2))
    expected = {"sum": near + far, "present": near + far, "paper": (near + far) / 2, "table": (near + far) / 9}
    for form, value in expected.items():
        assert fast0tag_loss(scores, positive, form).item() == pytest.approx(value), form
    drawn = torch.tensor([[False, False, True]])
    for form, value in {"sum": far, "paper": far, "table": far / 9}.items():
        assert fast0tag_loss(scores, positive, form, drawn).item() == pytest.approx(value), form
    entropy = math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1)) + math.log(2)
    assert fast0tag_loss(scores, positive, "bce").item() == pytest.approx(entropy / 3)


@pytest.mark.parametrize("form", ["paper", "present", "table", "sum"])
def test_images_without_a_label_have_no_loss(form):
    scores = torch.randn(2, 4, requires_grad=True)
    loss = fast0tag_loss(scores, torch.zeros(2, 4, dtype=torch.bool), form)
    loss.sum().backward()
    assert loss.tolist() == [0, 0] and scores.grad.eq(0).all()


def test_drawn_negatives_are_absent_and_all_of_them_come():
    positive = torch.zeros(200, 6, dtype=torch.bool)
    positive[:, 1] = True
    drawn = sample_negatives(positive, 2)
    assert drawn.sum(dim=1).eq(2).all() and not (drawn & positive).any()
    assert (drawn.sum(dim=0)[[0, 2, 3, 4, 5]] > 40).all()  # 80 are expected
    positive[0] = torch.tensor([True, True, True, True, True, False])
    assert sample_negatives(positive, 2).sum(dim=1).eq(1).all()
    positive[0] = True
    assert not sample_negatives(positive, 2).any()


def test_a_form_that_counts_all_absent_classes_takes_no_sample():
    scores, positive = torch.zeros(1, 2), torch.tensor([[True, False]])
    with pytest.raises(ValueError, match="FORM 'present' takes no sample of the absent classes"):
        fast0tag_loss(scores, positive, "present", ~positive)
