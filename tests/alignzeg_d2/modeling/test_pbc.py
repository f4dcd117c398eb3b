"""PBC (Sec. 3.3): Fig. 4's selection, Eq. 6 and Eq. 7."""

import math

import pytest
import torch

from alignzeg_d2.modeling.pbc import (
    ClassIndicator,
    correct_bias,
    indicator_loss,
    select_by_overlap,
    select_negative_proposals,
)


def costs_of(rankings):
    """(Q, T) costs from, for each class, proposals in falling order of cost."""
    costs = torch.zeros(len(rankings[0]), len(rankings))
    for column, ranking in enumerate(rankings):
        costs[ranking, column] = torch.arange(len(ranking), 0, -1).float()
    return costs


# 8 proposals, 3 seen classes, K = 5: p5, p6 and p7 are among the 5 worst for every class (Fig. 4, counted from 1).
FIG_4 = costs_of([[4, 6, 5, 0, 1, 7, 2, 3], [5, 1, 4, 6, 2, 0, 3, 7], [6, 3, 7, 4, 5, 1, 0, 2]])


def test_fig_4():
    negatives = select_negative_proposals(FIG_4, torch.ones(8, dtype=torch.bool), 5)
    assert negatives.nonzero().flatten().tolist() == [4, 5, 6]


def test_matched_proposals_are_never_negative():
    unmatched = torch.ones(8, dtype=torch.bool)
    unmatched[5] = False
    assert select_negative_proposals(FIG_4, unmatched, 5).nonzero().flatten().tolist() == [4, 6]


def test_whole_and_empty_intersections():
    everyone = torch.ones(4, dtype=torch.bool)
    opposite = costs_of([[0, 1, 2, 3], [3, 2, 1, 0]])
    assert select_negative_proposals(opposite, everyone, 2).sum() == 0
    assert select_negative_proposals(opposite, everyone, 3).tolist() == [False, True, True, False]
    assert select_negative_proposals(opposite, everyone, 4).all()
    assert select_negative_proposals(torch.zeros(4, 0), everyone, 2).sum() == 0  # an image without a seen class


def test_k_beyond_the_proposals_is_refused():
    with pytest.raises(ValueError, match="TOP_K=5 exceeds the number of proposals 4"):
        select_negative_proposals(torch.zeros(4, 1), torch.ones(4, dtype=torch.bool), 5)


def test_order_of_classes_and_proposals_does_not_matter():
    order, classes = torch.randperm(8), torch.randperm(3)
    everyone = torch.ones(8, dtype=torch.bool)
    assert torch.equal(
        select_negative_proposals(FIG_4[order][:, classes], everyone, 5),
        select_negative_proposals(FIG_4, everyone, 5)[order],
    )


def test_proposals_by_what_they_lie_on():
    """On seen pixels, on others, two thirds and one third on seen ones, and nowhere."""
    labelled = torch.tensor([True] * 5 + [False] * 5)
    masks = torch.zeros(5, 10)
    masks[0, :5] = masks[1, 5:] = masks[2, [0, 1, 9]] = masks[3, [0, 8, 9]] = 0.9
    masks[4] = 1e-4
    nowhere = torch.zeros_like(labelled)  # an image without a seen class
    positives, negatives = select_by_overlap(torch.stack([masks, masks]), torch.stack([labelled, nowhere]))
    assert positives[0].tolist() == [True, False, True, False, False]
    assert negatives[0].tolist() == [False, True, False, True, False]
    assert not positives[1].any() and negatives[1].tolist() == [True, True, True, True, False]


def test_eq_6_by_hand():
    indicator = torch.tensor([[0.2, 0.9, 0.6, 0.5]])
    positives, negatives = torch.tensor([[True, False, False, False]]), torch.tensor([[False, True, True, False]])
    loss = indicator_loss(indicator.logit(), positives, negatives, torch.tensor(3.0))
    assert loss.item() == pytest.approx(-(math.log(0.8) + math.log(0.9) + math.log(0.6)) / 3)


def test_eq_6_leaves_other_proposals_alone_and_survives_an_empty_selection():
    logits = torch.tensor([[1.0, -2.0, 3.0]], requires_grad=True)
    positives, negatives = torch.tensor([[True, False, False]]), torch.tensor([[False, True, False]])
    indicator_loss(logits, positives, negatives, torch.tensor(2.0)).backward()
    assert logits.grad[0, 0] > 0 > logits.grad[0, 1] and logits.grad[0, 2] == 0
    logits.grad = None
    none = torch.zeros(1, 3, dtype=torch.bool)
    loss = indicator_loss(logits, none, none, torch.tensor(0.0))
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().sum() == 0


def test_eq_7_by_hand():
    logits = torch.tensor([[5.0, 1.0, 4.0, 9.0], [2.0, 3.0, -1.0, -7.0], [6.0, 0.0, 2.0, 0.5]])
    seen = torch.tensor([True, False, True])
    corrected = correct_bias(logits, torch.tensor([0.31, 0.9, 0.3]), seen, 0.3)
    # v_min = -1: the least class logit; the background (-7) is no class. 0.3 is not above gamma.
    expected = torch.tensor([[-1.0, 1.0, -1.0, 9.0], [-1.0, 3.0, -1.0, -7.0], [6.0, 0.0, 2.0, 0.5]])
    torch.testing.assert_close(corrected, expected)


def test_eq_7_limits():
    logits, indicator = torch.randn(6, 5), torch.rand(6)
    some = torch.tensor([True, False, True, True])
    assert torch.equal(correct_bias(logits, indicator, some, 1.0), logits)  # I never exceeds 1
    assert torch.equal(correct_bias(logits, indicator, torch.zeros(4, dtype=torch.bool), 0.0), logits)  # ZS3
    assert torch.equal(correct_bias(logits, indicator, torch.ones(4, dtype=torch.bool), 0.0), logits)  # supervised
    everywhere = correct_bias(logits, indicator + 0.1, some, 0.0)
    assert (everywhere[:, :4].argmax(1) == 1).all()


def test_eq_7_of_a_batch_is_that_of_each_image():
    logits, indicator, seen = torch.randn(3, 6, 5), torch.rand(3, 6), torch.tensor([True, False, True, True])
    each = [correct_bias(*image, seen, 0.4) for image in zip(logits, indicator, strict=True)]
    assert torch.equal(correct_bias(logits, indicator, seen, 0.4), torch.stack(each))
    assert not torch.equal(torch.stack(each), logits)


def test_gradient_stops_before_the_features_unless_asked_for():
    features = torch.randn(2, 3, 8, requires_grad=True)
    for detach in (True, False):
        features.grad = None
        indicator = ClassIndicator(width=8, detach=detach)
        logits = indicator(features)
        assert logits.shape == (2, 3)
        logits.sum().backward()
        assert (features.grad is None) == detach
        assert all(p.grad is not None for p in indicator.parameters())


def test_indicator_has_two_fully_connected_layers():
    linear = [m for m in ClassIndicator(width=8).modules() if isinstance(m, torch.nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(8, 8), (8, 1)]
