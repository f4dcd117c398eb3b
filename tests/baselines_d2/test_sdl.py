"""SDL: the public code's values, by hand, and in its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from comparisons import assert_close

from baselines_d2.sdl import PrincipalVectors, as_vectors, sdl_loss
from baselines_d2.token_tagger import Tokens
from epsilon_d2.modeling.losses import diversity_weight, group_variance
from tests.baselines_d2.golden import Golden, golden_files
from zeroshot_d2.multilabel.ranking import average_precision, hits_at, precision_recall_f1


@pytest.mark.parametrize("path", golden_files("sdl"))
def test_golden_values(path):
    golden = Golden(path)
    config = golden.config
    head = PrincipalVectors(width=config["channels"], num_vectors=config["rows"], label_width=config["dim"])
    head.load_state_dict(golden.below("state"))
    words = golden["in/wordvec_array"][0].T
    seen = words[: config["classes"]]
    positive = golden["in/labels"] == 1
    features = golden["in/features"].requires_grad_()
    vectors = head(Tokens(features))
    golden.check("out/matrix", vectors.transpose(1, 2))
    golden.check("out/scores", head.scores(vectors, words))
    golden.check("out/pooled", features.mean(dim=(2, 3)))
    golden.check("out/diversity", diversity_weight(positive, seen) - 1)
    golden.check("out/variance_term", group_variance(vectors))

    for weight in config["weights"]:
        for reduction in ("mean", "sum", "per_image"):
            name = f"weight_{weight}_{reduction}"
            flat = head.embedding(features.mean(dim=(2, 3)))
            flat.retain_grad()
            per_image = sum(
                sdl_loss(as_vectors(flat, config["rows"]), seen, positive, reg_weight=weight).values(),
            )
            if reduction == "per_image":
                golden.check(f"loss/{name}", per_image)
                continue
            loss = per_image.mean() if reduction == "mean" else per_image.sum()
            golden.check(f"loss/{name}", loss)
            head.zero_grad()
            features.grad = None
            loss.backward()
            golden.check(f"grad/{name}/embedding.weight", head.embedding.weight.grad)
            golden.check(f"grad/{name}/out_embedding", flat.grad)
            if f"grad/{name}/features" in golden:
                golden.check(f"grad/{name}/features", features.grad)
    assert golden.unused("loss", "grad") == set()


@pytest.mark.parametrize("path", golden_files("sdl"))
def test_golden_metrics(path):
    """The project's metrics are the public code's, over all classes, and over images with an unseen one."""
    golden = Golden(path)
    scores, positive = golden["out/scores"].numpy(), golden["in/labels_all"].numpy() == 1
    unseen = slice(golden.config["classes"], None)
    with_unseen = positive[:, unseen].any(axis=1)
    for name, s, y in (("all", scores, positive), ("unseen", scores[with_unseen, unseen], positive[with_unseen, unseen])):
        numbers = precision_recall_f1(int(hits_at(s, y, [3]).sum()), len(y), int(y.sum()), 3)
        golden.check(f"out/metrics_precision_recall_F1_top3_{name}", torch.tensor(numbers))
    precisions = [average_precision(*column) for column in zip(scores.T, positive.T, strict=True)]
    precisions = np.nan_to_num(precisions)  # a class without a positive counts 0
    golden.check("out/metrics_mAP_all", torch.tensor(100 * precisions.mean()))


def test_the_loss_by_hand():
    # One vector each: scores are its numbers. Present: class 0 with 2; absent: 1 and 0.
    vectors, labels = torch.tensor([[[2.0, 1.0, 0.0]]]), torch.eye(3)
    positive = torch.tensor([[True, False, False]])
    rank = math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))  # one label: omega is 1
    assert sdl_loss(vectors, labels, positive, reg_weight=None)["loss_rank"].item() == pytest.approx(rank)
    weighted = sdl_loss(vectors, labels, positive, reg_weight=0.25)
    assert weighted["loss_rank"].item() == pytest.approx(2 * 0.75 * rank)
    assert weighted["loss_reg"].item() == 0  # a single vector does not vary
    two = sdl_loss(
        torch.tensor([[[1.0, 0.0], [3.0, 0.0]]]), torch.eye(2), torch.ones(1, 2, dtype=torch.bool), reg_weight=0.25
    )
    assert two["loss_reg"].item() == pytest.approx(2 * 0.25 * 2.0)


def test_the_components_of_a_vector_lie_apart():
    assert as_vectors(torch.arange(6.0)[None], 2).tolist() == [[[0, 2, 4], [1, 3, 5]]]


def test_images_without_labels_have_no_rank_loss_and_no_nan():
    vectors = torch.randn(2, 3, 4, requires_grad=True)
    losses = sdl_loss(vectors, torch.randn(5, 4), torch.zeros(2, 5, dtype=torch.bool), reg_weight=0.3)
    assert losses["loss_rank"].tolist() == [0, 0] and losses["loss_reg"].isfinite().all()
    sum(loss.sum() for loss in losses.values()).backward()
    assert vectors.grad.isfinite().all()


def test_a_class_has_the_score_of_its_nearest_vector():
    head = PrincipalVectors(width=3, num_vectors=2, label_width=4)
    vectors = head(Tokens(torch.randn(5, 3, 2, 2)))
    labels = torch.randn(6, 4)
    assert_close(head.scores(vectors, labels), torch.einsum("nme,ke->nmk", vectors, labels).amax(dim=1))
