"""LESA: the public code's values, by hand, and in its limits."""

from __future__ import annotations

import math

import pytest
import torch
from comparisons import assert_close
from torch import Tensor

from baselines_d2.lesa import (
    SharedAttention,
    distribution_loss,
    global_loss,
    hinge_rank_loss,
    lesa_losses,
    span_loss,
)
from baselines_d2.token_tagger import Tokens
from tests.baselines_d2.golden import Golden, golden_files

HIDDEN, ATTENTION, CLASSIFIER = "attention_layer/w_att_1", "attention_layer/w_att_2", "prediction_frac/W"
CONVOLUTION, NORM = "conv/conv/weights", "conv/conv/batch_normalization"


def state_of(golden: Golden, prefix: str) -> dict[str, Tensor]:
    """TensorFlow's variables as our weights: matrices transposed, their last row a bias, convolutions (out, in, h, w)."""
    hidden = golden[f"state/{prefix}{HIDDEN}"]  # (D + 1, D), or one for each attention
    hidden = hidden if hidden.ndim == 2 else hidden.permute(1, 0, 2).flatten(1)
    attention = golden[f"state/{ATTENTION}"]
    state = {
        "hidden.weight": hidden[:-1].T,
        "hidden.bias": hidden[-1],
        "attention.weight": attention[:-1].T,
        "attention.bias": attention[-1],
        "classifier.weight": golden[f"state/{CLASSIFIER}"],
    }
    if golden.config["conv"]:
        norm = golden.below(f"state/{NORM}")
        state |= {
            "convolution.1.weight": golden[f"state/{CONVOLUTION}"].permute(3, 2, 0, 1),
            "convolution.2.weight": norm["gamma"],
            "convolution.2.bias": norm["beta"],
            "convolution.2.running_mean": norm["moving_mean"],
            "convolution.2.running_var": norm["moving_variance"],
            "convolution.2.num_batches_tracked": torch.tensor(0),
        }
    return state


def gradients_of(head: SharedAttention) -> dict[str, Tensor | None]:
    """Our gradients under TensorFlow's names and in its shapes."""

    def with_bias(layer: torch.nn.Linear) -> Tensor | None:
        if layer.weight.grad is None or layer.bias.grad is None:
            return None
        return torch.cat([layer.weight.grad.T, layer.bias.grad[None]])

    hidden = with_bias(head.hidden)
    if head.separate and hidden is not None:
        hidden = hidden.unflatten(1, (head.num_attentions, -1)).transpose(0, 1)
    gradients = {HIDDEN: hidden, ATTENTION: with_bias(head.attention), CLASSIFIER: head.classifier.weight.grad}
    if isinstance(head.convolution, torch.nn.Sequential):
        _, conv, norm, _ = head.convolution
        gradients[CONVOLUTION] = None if conv.weight.grad is None else conv.weight.grad.permute(2, 3, 1, 0)
        gradients[f"{NORM}/gamma"], gradients[f"{NORM}/beta"] = norm.weight.grad, norm.bias.grad
    return gradients


def parts_of(name: str, gradient: Tensor) -> dict[str, Tensor]:
    """A gradient, and the parts of it that a file may hold in its place."""
    return {
        name: gradient,
        f"{name}_first_output": gradient[..., 0],
        f"{name}_sum_over_outputs": gradient.sum(dim=-1),
        f"{name}_first_20_columns": gradient[..., :20],
    }


def variants_of(golden: Golden) -> list[str]:
    """Prefixes of the runs in a file: with batch or moving statistics, with one hidden layer or several."""
    prefixes = [mode + separate for mode in ("", "train/", "eval/") for separate in ("", "separate_W_1/")]
    return [prefix for prefix in prefixes if f"out/{prefix}logits" in golden]


@pytest.mark.parametrize("path", golden_files("lesa"))
def test_golden_values(path):
    golden = Golden(path)
    config, weights = golden.config, golden.config["lamb"]
    seen, unseen, labels = golden["in/seen_vectors"], golden["in/unseen_vectors"], golden["in/labels"]
    side = round(golden["in/features"].shape[1] ** 0.5)
    tokens = Tokens(golden["in/features"].transpose(1, 2).unflatten(-1, (side, side)))
    variants = variants_of(golden)
    assert variants
    for variant in variants:
        separate = "separate_W_1/" if "separate_W_1" in variant else ""
        head = SharedAttention(
            width=config["D"],
            num_attentions=config["T"],
            label_width=config["dim"],
            convolution=config["conv"],
            separate=bool(separate),
        )
        head.load_state_dict(state_of(golden, separate))
        head.train("train" in variant)
        attended = head(tokens)
        if config["conv"] and head.training:
            norm = head.convolution[2]
            for name, given in (("mean", norm.running_mean), ("variance", norm.running_var)):
                if (stored := f"out/{variant}moving_{name}_after_one_update") in golden:
                    golden.check(stored, given)
        check_outputs(golden, variant, head, attended, seen, unseen)

        def losses(distribution=1.0, over_mean=1.0, span=1.0, head=head):
            given = lesa_losses(
                head(tokens),
                head.classifiers(seen),
                labels,
                distribution_weight=distribution,
                global_weight=over_mean,
                span_weight=span,
                global_margin=weights["margin_att_global"],
            )
            names = ("loss_rank", "loss_distribution", "loss_global", "loss_span")
            assert tuple(given) == names
            theirs = ("loss_rank", "loss_att_dist", "loss_att_global", "loss_att_span")
            return dict(zip(theirs, given.values(), strict=True))

        total = sum(losses(weights["lamb_att_dist"], weights["lamb_att_global"], weights["lamb_att_span"]).values())
        for name, loss in {**losses(), "loss": total}.items():
            golden.check(f"loss/{variant}{name}", loss)
            stored = golden.below(f"grad/{variant}{name}")
            head.zero_grad()
            loss.backward(retain_graph=True)
            ours = gradients_of(head)
            parts = {k: v for key, grad in ours.items() if grad is not None for k, v in parts_of(key, grad).items()}
            compared = stored.keys() & parts.keys()
            assert len(compared) >= (2 if name == "loss_att_span" else 3), stored.keys()
            for key in compared:
                golden.check(f"grad/{variant}{name}/{key}", parts[key].reshape(stored[key].shape))


def check_outputs(golden, variant, head, attended, seen, unseen):
    ones = torch.ones(*attended.features.shape[:2], 1)
    classifiers = head.classifiers(seen)
    given = {
        "logits": head.scores(attended, seen),
        "zs_logits": head.scores(attended, unseen),
        "gzs_logits": head.scores(attended, torch.cat([unseen, seen])),
        "att_logits": attended.features @ classifiers.T,
        "alphas": attended.logits.softmax(dim=-1),
        "f_att": torch.cat([attended.features, ones], dim=-1),  # the appended 1 stays 1
        "classifiers": torch.cat([classifiers, torch.zeros(len(seen), 1)], dim=1),
        "f_global": torch.cat([attended.mean, ones[:, 0]], dim=-1),
        "logits_global": attended.mean @ classifiers.T,
    }
    for name, value in given.items():
        if f"out/{variant}{name}" in golden or name == "logits":
            golden.check(f"out/{variant}{name}", value)


# ------------------------------------------------------------------------------------------------------- by hand
def test_the_rank_loss_by_hand():
    scores = torch.tensor([[2.0, 1.5, -1.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    labels = torch.tensor([[1, -1, -1, 0], [0, -1, -1, 0]])
    # of the pairs (0, 1) and (0, 2) only the first is violated, by 0.5; class 3 is not annotated
    assert hinge_rank_loss(scores, labels).tolist() == pytest.approx([0.5, 0.0])
    scores.requires_grad_()
    hinge_rank_loss(scores, labels).sum().backward()
    assert scores.grad.tolist() == [[-1, 1, 0, 0], [0, 0, 0, 0]]


def test_the_rank_loss_is_the_mean_over_violated_pairs():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 7, generator=generator)
    labels = torch.randint(-1, 2, (4, 7), generator=generator)
    for i, given in enumerate(hinge_rank_loss(scores, labels)):
        pairs = [1 + n - p for p in scores[i][labels[i] == 1] for n in scores[i][labels[i] == -1]]
        violated = [pair.item() for pair in pairs if pair > 0]
        assert given.item() == pytest.approx(sum(violated) / max(1, len(violated)), rel=1e-5)


def test_the_attentions_losses_by_hand():
    # Two attentions, three classes, of which the first two are present; each attention prefers another one.
    scores = torch.tensor([[[math.log(3.0), 0.0, 5.0], [0.0, math.log(3.0), 0.0]]])
    labels = torch.tensor([[1, 1, -1]])
    assert distribution_loss(scores, labels).item() == pytest.approx((1.0**2 + 1.0**2) / 2)
    alike = torch.tensor([[[math.log(3.0), math.log(3.0), 5.0], [0.0, 0.0, 0.0]]])
    assert distribution_loss(alike, labels).item() == pytest.approx((1.5**2 + 0.5**2) / 2)

    better, mean = torch.tensor([[2.0, 0.0, 1.0, 1.0]]), torch.tensor([[1.0, 1.0, 0.5, 0.0]])
    signs = torch.tensor([[1, 1, -1, 0]])  # one better than the mean, one worse, one absent class above it, one unknown
    assert global_loss(better, mean, signs).item() == pytest.approx(0 + 1 + 0.5 + 0)
    assert global_loss(better, mean, signs, margin=2.0).item() == pytest.approx(1 + 3 + 2.5 + 2)

    logits = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [3.0, 3.0]]])  # apart in one image, alike in the other
    assert span_loss(logits).item() == pytest.approx(math.sqrt(2))
    one = torch.ones(2, 1, 5, requires_grad=True)
    span_loss(one).backward()
    assert span_loss(one).item() == 0 and one.grad.eq(0).all()


def test_the_convolution_of_an_even_kernel_looks_down_and_to_the_right():
    head = SharedAttention(width=1, num_attentions=2, label_width=3).eval()
    with torch.no_grad():
        head.convolution[1].weight.copy_(torch.tensor([[[[1.0, 10.0], [100.0, 1000.0]]]]))
    one = torch.zeros(1, 1, 3, 3)
    one[0, 0, 1, 1] = 1
    given = head.convolution(one)[0, 0] * math.sqrt(1 + 1e-3)  # the norm of running variance 1
    assert_close(given, torch.tensor([[1000.0, 100.0, 0.0], [10.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))


def test_weights_start_as_in_tensorflow():
    torch.manual_seed(0)
    head = SharedAttention(width=200, num_attentions=3, label_width=50)
    for weight, fan_in in ((head.hidden.weight, 201), (head.classifier.weight, 200)):
        std = math.sqrt(2.6 / fan_in)
        assert weight.abs().max() <= 2 * std
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
