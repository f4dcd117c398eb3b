"""Bipartite matching against brute force, and with broken costs."""

import itertools
import math

import pytest
import torch

from alignzeg_d2.modeling.losses import bce_loss, dice_loss
from alignzeg_d2.modeling.matcher import class_cost, mask_cost, match, match_all


def brute_force(cost):
    """Least total cost of an assignment that gives each column a row of its own (Q >= T)."""
    num_rows, num_columns = cost.shape
    return min(
        sum(cost[row, column].item() for column, row in enumerate(rows))
        for rows in itertools.permutations(range(num_rows), num_columns)
    )


@pytest.mark.parametrize("seed", range(5))
def test_equals_brute_force(seed):
    torch.manual_seed(seed)
    cost = torch.randn(6, 4)
    rows, columns = match(cost)
    assert len(set(rows.tolist())) == 4 and sorted(columns.tolist()) == [0, 1, 2, 3]
    assert rows.tolist() == sorted(rows.tolist())
    assert cost[rows, columns].sum().item() == pytest.approx(brute_force(cost), abs=1e-5)


def test_more_targets_than_proposals_and_none_at_all():
    rows, columns = match(torch.randn(2, 5))
    assert rows.tolist() == [0, 1] and len(set(columns.tolist())) == 2
    rows, columns = match(torch.randn(4, 0))
    assert len(rows) == len(columns) == 0 and rows.dtype == columns.dtype == torch.int64


def test_several_at_once_are_matched_as_each_alone():
    torch.manual_seed(0)
    costs = [torch.randn(6, targets) for targets in (4, 0, 8, 1)]
    costs[3][2] = math.nan
    for found, cost in zip(match_all(costs), costs, strict=True):
        for indices, expected in zip(found, match(cost), strict=True):
            assert torch.equal(indices, expected) and indices.dtype == torch.int64
    assert match_all([]) == []


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_cost_that_is_not_finite_is_the_last_choice(broken):
    for seed in range(20):
        torch.manual_seed(seed)
        cost = 5 * torch.randn(6, 3)
        cost[2:5] = broken  # three proposals are left for three targets
        rows, columns = match(cost)
        assert rows.tolist() == [0, 1, 5]
        assert cost[rows, columns].sum().item() == pytest.approx(brute_force(cost[[0, 1, 5]]), abs=1e-4)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_target_does_not_disturb_the_others(broken):
    for seed in range(20):
        torch.manual_seed(seed)
        cost = 5 * torch.randn(6, 3)
        cost[:, 1] = broken
        rows, columns = match(cost)
        others = columns != 1
        assert cost[rows[others], columns[others]].sum().item() == pytest.approx(brute_force(cost[:, [0, 2]]), abs=1e-4)


def test_everything_broken_still_matches():
    rows, columns = match(torch.full((4, 2), math.nan))
    assert len(rows) == 2 and sorted(columns.tolist()) == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    torch.manual_seed(0)
    logits, masks = (300 * torch.randn(5, 64)).to(dtype), torch.rand(3, 64) > 0.5
    cost = mask_cost(logits, masks, bce_weight=5.0, dice_weight=5.0)
    assert cost.dtype == torch.float32 and cost.isfinite().all()
    torch.testing.assert_close(cost, mask_cost(logits.float(), masks, bce_weight=5.0, dice_weight=5.0))
    scores = class_cost((300 * torch.randn(5, 4)).to(dtype), torch.tensor([2, 0]))
    assert scores.dtype == torch.float32 and scores.shape == (5, 2)
    assert len(match((cost + scores[:, :1]).to(dtype))[0]) == 3


def test_mask_cost_is_the_weighted_mask_loss():
    torch.manual_seed(0)
    logits, masks, valid = torch.randn(4, 30), torch.rand(2, 30) > 0.5, (torch.rand(30) > 0.3).float()
    cost = mask_cost(logits, masks, bce_weight=2.0, dice_weight=7.0, valid=valid)
    for q, t in itertools.product(range(4), range(2)):
        pair = logits[q : q + 1], masks[t : t + 1].float(), valid[None]
        torch.testing.assert_close(cost[q, t], 2 * bce_loss(*pair)[0] + 7 * dice_loss(*pair)[0], rtol=1e-4, atol=1e-5)


def test_class_cost_is_minus_the_probability():
    logits = torch.tensor([[0.0, math.log(2), 0.0]])
    torch.testing.assert_close(class_cost(logits, torch.tensor([1, 0])), torch.tensor([[-0.5, -0.25]]))
