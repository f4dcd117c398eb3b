"""Mask losses: values, gradients, pairwise forms."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from alignzeg_d2.modeling.losses import bce_loss, dense_points, dice_loss, pairwise_bce_cost, pairwise_dice_cost


def test_dice_by_hand():
    logits, labels = torch.tensor([[100.0, 100.0, -100.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    assert dice_loss(logits, labels).item() == pytest.approx(1 - (2 * 1 + 1) / (2 + 1 + 1))
    assert dice_loss(torch.full((1, 3), -100.0), torch.zeros(1, 3)).item() == pytest.approx(0)  # both empty
    assert dice_loss(torch.tensor([[100.0, -100.0]]), torch.tensor([[1.0, 0.0]])).item() == pytest.approx(0)


def test_bce_is_torchs():
    logits, labels = torch.randn(4, 9), torch.rand(4, 9).round()
    expected = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)
    torch.testing.assert_close(bce_loss(logits, labels), expected)


@pytest.mark.parametrize("loss", [dice_loss, bce_loss])
@pytest.mark.parametrize("with_valid", [False, True])
def test_gradcheck(loss, with_valid):
    torch.manual_seed(0)
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.rand(3, 5, dtype=torch.float64).round()
    valid = torch.rand(3, 5, dtype=torch.float64).round() if with_valid else None
    assert gradcheck(lambda x: loss(x, labels, valid), logits)


@pytest.mark.parametrize("loss", [dice_loss, bce_loss])
def test_invalid_points_do_not_exist(loss):
    logits, labels = torch.randn(3, 6, requires_grad=True), torch.rand(3, 6).round()
    valid = torch.tensor([1.0, 1, 0, 1, 0, 1]).expand(3, 6)
    kept = [0, 1, 3, 5]
    value = loss(logits, labels, valid)
    torch.testing.assert_close(value, loss(logits[:, kept], labels[:, kept]))
    value.sum().backward()
    assert logits.grad[:, [2, 4]].abs().sum() == 0
    assert loss(logits, labels, torch.zeros(3, 6)).isfinite().all()


@pytest.mark.parametrize(("pairwise", "loss"), [(pairwise_dice_cost, dice_loss), (pairwise_bce_cost, bce_loss)])
@pytest.mark.parametrize("with_valid", [False, True])
def test_pairwise_costs_are_the_losses_of_all_pairs(pairwise, loss, with_valid):
    torch.manual_seed(0)
    logits, labels = 5 * torch.randn(4, 20), torch.rand(3, 20).round()
    valid = torch.rand(20).round() if with_valid else None
    cost = pairwise(logits, labels, valid)
    assert cost.shape == (4, 3)
    for t in range(3):
        everyone = None if valid is None else valid.expand(4, 20)
        torch.testing.assert_close(cost[:, t], loss(logits, labels[t].expand(4, 20), everyone), rtol=1e-4, atol=1e-5)
    assert pairwise(logits, labels[:0], valid).shape == (4, 0)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4]])
    for labels in (torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])):
        for loss in (dice_loss, bce_loss, pairwise_dice_cost, pairwise_bce_cost):
            assert loss(logits, labels).isfinite().all()


def test_dense_points_read_every_cell_in_order():
    image = torch.arange(12.0).reshape(1, 1, 3, 4)
    points = dense_points((3, 4), torch.device("cpu"))
    assert points.shape == (1, 12, 2)
    read = F.grid_sample(image, 2 * points[:, None] - 1, mode="nearest", align_corners=False)
    assert read.flatten().tolist() == list(range(12))
    assert points[0, 1].tolist() == pytest.approx([1.5 / 4, 0.5 / 3])  # x, then y
