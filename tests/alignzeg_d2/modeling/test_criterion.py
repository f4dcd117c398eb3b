"""Eq. 8: every term against a plain form, empty ground truth, what is normalised by what."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.utils.events import EventStorage

from alignzeg_d2.modeling.criterion import Criterion, LossWeights, Predictions
from alignzeg_d2.modeling.gepc.background_diversity import diversity_loss
from alignzeg_d2.modeling.losses import bce_loss, dice_loss
from alignzeg_d2.modeling.pbc import select_negative_proposals

IGNORE = 65535
Q, C, D, H, W = 6, 4, 5, 6, 8  # masks are as large as the labels, so that dense points read each cell once


def criterion(**changes):
    return Criterion(**{"weights": LossWeights(), "ignore_label": IGNORE, "num_points": 0, "top_k": 3, **changes})


def predictions(n=2, seed=0):
    torch.manual_seed(seed)
    return Predictions(
        class_logits=torch.randn(n, Q, C + 1, requires_grad=True),
        mask_logits=torch.randn(n, Q, H, W, requires_grad=True),
        refined_features=torch.randn(n, Q, D, requires_grad=True),
        indicator_logits=torch.randn(n, Q, requires_grad=True),
    )


def prototypes():
    torch.manual_seed(1)
    return {
        "prototypes": F.normalize(torch.randn(C, D), dim=-1),
        "background_prototypes": torch.randn(3, D, requires_grad=True),
        "logit_scale": torch.tensor(10.0),
    }


def labels(*images):
    """One label map per image: vertical stripes of the given values."""
    return torch.stack([torch.tensor(stripes).repeat_interleave(W // len(stripes)).expand(H, W) for stripes in images])


EMPTY = labels([IGNORE], [IGNORE])


def test_every_term_of_eq_8():
    model, sem_seg, constants = predictions(), labels([0, 2], [1, IGNORE, 3, 3]), prototypes()
    compared = criterion(feature_expansion=False)
    losses = compared(model, sem_seg, **constants)
    matches, costs = compared._match(model, sem_seg)

    targets = torch.full((2, Q), C)
    bce, dice, positives, negatives = [], [], [], []
    for i, present in enumerate([[0, 2], [1, 3]]):
        loss_matrix = torch.zeros(Q, 2)
        for column, label in enumerate(present):
            truth = (sem_seg[i] == label).float().flatten()
            for q in range(Q):
                pair = model.mask_logits[i, q].flatten()[None], truth[None]
                loss_matrix[q, column] = (5 * bce_loss(*pair) + 5 * dice_loss(*pair)).item()
        torch.testing.assert_close(costs[i], loss_matrix, rtol=1e-4, atol=1e-5)
        rows, classes = matches[i]
        assert sorted(classes.tolist()) == present
        total = loss_matrix - 2 * model.class_logits[i].detach().softmax(-1)[:, present]
        best = min((total[a, 0] + total[b, 1]).item() for a in range(Q) for b in range(Q) if a != b)
        assert total[rows, [present.index(c) for c in classes]].sum().item() == pytest.approx(best, rel=1e-4)
        matched = torch.zeros(Q, dtype=torch.bool)
        for q, label in zip(rows.tolist(), classes.tolist(), strict=True):
            targets[i, q], matched[q] = label, True
            pair = model.mask_logits[i, q].flatten()[None], (sem_seg[i] == label).float().flatten()[None]
            bce.append(bce_loss(*pair))
            dice.append(dice_loss(*pair))
        positives.append(matched)
        negatives.append(select_negative_proposals(loss_matrix, ~matched, 3))

    weight = torch.tensor([1.0] * C + [0.1])
    expected_ce = 2 * F.cross_entropy(model.class_logits.flatten(0, 1), targets.flatten(), weight)
    torch.testing.assert_close(losses["loss_ce"], expected_ce)
    torch.testing.assert_close(losses["loss_mask"], 5 * torch.cat(bce).mean())
    torch.testing.assert_close(losses["loss_dice"], 5 * torch.cat(dice).mean())
    torch.testing.assert_close(losses["loss_reg"], 1e-4 * diversity_loss(constants["background_prototypes"]))
    positives, negatives = torch.stack(positives), torch.stack(negatives)
    assert negatives.any()
    chosen = positives | negatives
    expected_bc = F.binary_cross_entropy_with_logits(model.indicator_logits[chosen], negatives[chosen].float())
    torch.testing.assert_close(losses["loss_bc"], expected_bc)
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice", "loss_reg", "loss_bc"}


def test_classes_decide_where_masks_are_alike():
    class_logits = torch.zeros(1, Q, C + 1)
    class_logits[0, 4, 0] = class_logits[0, 1, 2] = 5.0
    model = Predictions(class_logits, torch.zeros(1, Q, H, W), torch.zeros(1, Q, D), None)
    ((rows, classes),), _ = criterion()._match(model, labels([0, 2]))
    assert dict(zip(rows.tolist(), classes.tolist(), strict=True)) == {4: 0, 1: 2}


def test_matched_proposals_are_positives_however_bad_their_masks_are():
    """With K = Q every proposal is among the K worst: all but the matched ones are negatives."""
    model, sem_seg = predictions(), labels([0, 2], [1, 3])
    compared = criterion(top_k=Q)
    target = torch.ones(2, Q)
    for i, (rows, _) in enumerate(compared._match(model, sem_seg)[0]):
        target[i, rows] = 0.0
    expected = F.binary_cross_entropy_with_logits(model.indicator_logits, target)
    torch.testing.assert_close(compared(model, sem_seg, **prototypes())["loss_bc"], expected)


def test_weights_multiply_their_terms():
    model, sem_seg = predictions(), labels([0, 2], [1, 3])
    twice = LossWeights(bc=2.0, ce=2.0, mask=5.0, dice=5.0, vir=2e-2, reg=2e-4)
    torch.manual_seed(5)
    once = criterion()(model, sem_seg, **prototypes())
    torch.manual_seed(5)
    doubled = criterion(weights=twice)(model, sem_seg, **prototypes())
    for name, factor in {"loss_bc": 2, "loss_vir": 2, "loss_reg": 2, "loss_ce": 1, "loss_mask": 1, "loss_dice": 1}.items():
        torch.testing.assert_close(doubled[name], factor * once[name])


def test_feature_expansion_takes_the_matched_proposals_only():
    model, sem_seg = predictions(), labels([0, 2], [1, 3])
    compared = criterion()
    torch.manual_seed(0)
    compared(model, sem_seg, **prototypes())["loss_vir"].backward()
    matches, _ = compared._match(model, sem_seg)
    touched = model.refined_features.grad.abs().sum(-1) > 0
    for i, (rows, _) in enumerate(matches):
        assert set(touched[i].nonzero().flatten().tolist()) <= set(rows.tolist())
    assert touched.any()


@pytest.mark.parametrize("num_points", [0, 50])
@pytest.mark.parametrize("exclude", [True, False])
def test_empty_ground_truth_gives_finite_losses_and_a_mask_gradient_of_zero(num_points, exclude):
    model = predictions()
    losses = criterion(num_points=num_points, exclude_ignored_pixels=exclude)(model, EMPTY, **prototypes())
    for name in ("loss_mask", "loss_dice", "loss_vir", "loss_bc"):
        assert losses[name].item() == 0.0
    sum(losses.values()).backward()
    assert losses["loss_ce"].isfinite()
    for tensor in (model.mask_logits, model.refined_features, model.indicator_logits):
        assert tensor.grad is not None and tensor.grad.abs().sum() == 0
    assert model.class_logits.grad.abs().sum() > 0  # everything is background


def test_one_empty_image_in_a_batch():
    model = predictions()
    losses = criterion()(model, labels([0, 2], [IGNORE]), **prototypes())
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert model.mask_logits.grad[0].abs().sum() > 0 and model.mask_logits.grad[1].abs().sum() == 0
    assert model.indicator_logits.grad[1].abs().sum() == 0


@pytest.mark.parametrize("exclude", [True, False])
def test_ignored_pixels_are_negatives_or_nothing(exclude):
    model, sem_seg = predictions(1), labels([0, IGNORE])
    criterion(exclude_ignored_pixels=exclude)(model, sem_seg, **prototypes())["loss_mask"].backward()
    assert (model.mask_logits.grad[0, :, :, W // 2 :].abs().sum() == 0) == exclude
    assert model.mask_logits.grad[0, :, :, : W // 2].abs().sum() > 0


def test_renamed_classes_give_the_same_losses():
    """Class c becomes order[c]: logits, prototypes and labels move together."""
    model, sem_seg, constants = predictions(), labels([0, 2], [1, 3]), prototypes()
    order = torch.tensor([2, 0, 3, 1])
    renamed = Predictions(
        class_logits=model.class_logits[..., [*order.argsort().tolist(), C]],
        mask_logits=model.mask_logits,
        refined_features=model.refined_features,
        indicator_logits=model.indicator_logits,
    )
    torch.manual_seed(3)
    before = criterion(feature_expansion=False)(model, sem_seg, **constants)
    after = criterion(feature_expansion=False)(
        renamed, order[sem_seg], **{**constants, "prototypes": constants["prototypes"][order.argsort()]}
    )
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-6)


def test_a_model_without_pbc_and_without_expansion_has_no_such_terms():
    model = predictions()
    bare = Predictions(model.class_logits, model.mask_logits, model.refined_features, None)
    losses = criterion(feature_expansion=False, top_k=50)(bare, labels([0, 2], [1, 3]), **prototypes())
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice", "loss_reg"}


def test_sampled_points_approach_the_dense_loss():
    """Without importance sampling the sampled loss estimates the loss over the whole plane."""
    torch.manual_seed(0)
    coarse = torch.randn(1, Q, 3, 4)
    smooth = F.interpolate(coarse, size=(48, 64), mode="bilinear", align_corners=False)
    model = predictions(1)
    model = Predictions(model.class_logits, smooth, model.refined_features, model.indicator_logits)
    sem_seg = labels([0, 2]).repeat_interleave(8, 1).repeat_interleave(8, 2)
    dense = criterion()(model, sem_seg, **prototypes())
    sampled = criterion(num_points=20000, importance_sample_ratio=0.0)(model, sem_seg, **prototypes())
    for name in ("loss_mask", "loss_dice"):
        assert sampled[name].item() == pytest.approx(dense[name].item(), rel=0.02)


def test_labels_and_masks_of_different_resolution_cover_the_same_plane():
    """A coarse mask that fits the stripes has a lower loss than its mirror image."""
    model = predictions(1)
    right = torch.full((1, Q, 3, 4), -8.0)
    right[:, 0, :, :2] = 8.0  # left half
    losses = []
    for masks in (right, right.flip(-1)):
        replaced = Predictions(model.class_logits, masks, model.refined_features, model.indicator_logits)
        losses.append(criterion()(replaced, labels([0, IGNORE]), **prototypes())["loss_mask"].item())
    assert losses[0] < 0.5 * losses[1]


def test_half_precision_predictions_with_overflow_still_match():
    model = predictions()
    masks = model.mask_logits.detach().half()
    masks[0, 0] = float("inf")
    broken = Predictions(model.class_logits.detach().half(), masks, model.refined_features, model.indicator_logits)
    matches, _ = criterion()._match(broken, labels([0, 2], [1, 3]))
    assert [len(rows) for rows, _ in matches] == [2, 2]
    assert 0 not in matches[0][0].tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype):
    model, sem_seg = predictions(), labels([0, 2], [1, 3])
    torch.manual_seed(5)
    plain = criterion()(model, sem_seg, **prototypes())
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=dtype):
        mixed = criterion()(model, sem_seg, **prototypes())
    for name in plain:
        assert mixed[name].dtype == torch.float32
        torch.testing.assert_close(mixed[name], plain[name])


def test_diagnostics_go_to_the_event_storage():
    with EventStorage() as storage:
        losses = criterion()(predictions(), labels([0, 2], [1, 3]), **prototypes())
    assert all(name.startswith("loss_") for name in losses)
    assert "alignzeg/negative_proposals" in storage.latest()


def test_too_large_k_is_refused():
    with pytest.raises(ValueError, match=f"TOP_K=50 exceeds the number of proposals {Q}"):
        criterion(top_k=50)(predictions(), labels([0, 2], [1, 3]), **prototypes())
