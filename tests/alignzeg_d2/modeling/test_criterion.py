"""Eq. 8: every term against a plain form, empty ground truth, what is normalised by what."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.projects.point_rend.point_features import point_sample
from detectron2.utils.events import EventStorage

from alignzeg_d2.modeling import criterion as criterion_module
from alignzeg_d2.modeling.criterion import Criterion, LossWeights, Predictions, rows_of_all_processes
from alignzeg_d2.modeling.gepc.background_diversity import diversity_loss
from alignzeg_d2.modeling.losses import bce_loss, dense_points, dice_loss
from alignzeg_d2.modeling.pbc import select_negative_proposals
from zeroshot_d2.training_stream import image_generators, using_seeds

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


def match_all(compared, model, sem_seg):
    return compared._match(model, sem_seg, image_generators(range(len(sem_seg)), sem_seg.device))


def test_classes_of_an_image_are_those_that_it_shows():
    sem_seg = torch.cat([labels([3, 0], [IGNORE, 2]), EMPTY[:1]])
    assert [classes.tolist() for classes in criterion()._present(sem_seg, C)] == [[0, 3], [2], []]
    assert [classes.tolist() for classes in criterion()._present(EMPTY, C)] == [[], []]


def part(model, rows):
    return Predictions(*(getattr(model, name)[rows] for name in Predictions.__dataclass_fields__))


def test_every_term_of_eq_8():
    model, sem_seg, constants = predictions(), labels([0, 2], [1, IGNORE, 3, 3]), prototypes()
    compared = criterion(feature_expansion=False)
    losses = compared(model, sem_seg, **constants)
    matches, costs = match_all(compared, model, sem_seg)

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
    ((rows, classes),), _ = match_all(criterion(), model, labels([0, 2]))
    assert dict(zip(rows.tolist(), classes.tolist(), strict=True)) == {4: 0, 1: 2}


def test_matched_proposals_are_positives_however_bad_their_masks_are():
    """With K = Q every proposal is among the K worst: all but the matched ones are negatives."""
    model, sem_seg = predictions(), labels([0, 2], [1, 3])
    compared = criterion(top_k=Q)
    target = torch.ones(2, Q)
    for i, (rows, _) in enumerate(match_all(compared, model, sem_seg)[0]):
        target[i, rows] = 0.0
    expected = F.binary_cross_entropy_with_logits(model.indicator_logits, target)
    torch.testing.assert_close(compared(model, sem_seg, **prototypes())["loss_bc"], expected)


def test_proposals_that_repeat_a_matched_one_can_be_positives():
    """By overlap, every proposal counts for what it lies on; the matching plays no part."""
    model = predictions(n=1)
    masks = torch.full_like(model.mask_logits, -20.0)
    truth = labels([0, IGNORE])
    half = masks.shape[-1] // 2  # to the left of it is class 0
    masks[0, 0, :, :half] = masks[0, 1, :, :half] = masks[0, 2, :, half:] = 20.0
    model = Predictions(model.class_logits, masks, model.refined_features, model.indicator_logits)
    losses = criterion(indicator_samples="overlap")(model, truth, **prototypes())
    target = torch.tensor([0.0, 0.0, 1.0])
    expected = F.binary_cross_entropy_with_logits(model.indicator_logits[0, :3], target)
    torch.testing.assert_close(losses["loss_bc"], expected)
    losses["loss_bc"].backward()
    assert model.indicator_logits.grad[0, 3:].abs().sum() == 0


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
    matches, _ = match_all(compared, model, sem_seg)
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
    matches, _ = match_all(criterion(), broken, labels([0, 2], [1, 3]))
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


# ---- random numbers belong to images ----


def test_sampled_points_are_those_of_the_image_whatever_else_is_in_the_batch():
    model, sem_seg = predictions(4), labels([0, 2], [1, 3], [0, 1, 2, 3], [2])
    compared = criterion(num_points=16)
    samples = [{"seed": seed} for seed in (11, 22, 33, 44)]
    targets = torch.tensor([2, 2, 4, 1])

    def sums(images):
        with using_seeds([samples[i] for i in images]):
            losses = compared(part(model, images), sem_seg[images], **prototypes())
        return torch.stack([losses["loss_mask"], losses["loss_dice"]]) * targets[images].sum()

    whole = sums([0, 1, 2, 3])
    torch.testing.assert_close(sums([0, 1]) + sums([2, 3]), whole)
    torch.testing.assert_close(sums([3, 1, 0, 2]), whole)
    torch.manual_seed(5)  # numbers drawn by others change nothing
    torch.testing.assert_close(sums([0, 1, 2, 3]), whole)
    samples = [{"seed": seed} for seed in (1, 2, 3, 4)]
    assert sums([0, 1, 2, 3])[0].item() != pytest.approx(whole[0].item(), rel=1e-3)


def test_points_are_sampled_where_masks_are_least_certain():
    compared = criterion(num_points=40, importance_sample_ratio=0.5, oversample_ratio=4.0)
    columns = torch.linspace(-8, 8, 32).expand(2, 32, 32)  # certain at both sides, undecided in the middle
    points = compared._mask_points(columns, [2], labels([0]), image_generators([1], columns.device))
    assert points.shape == (2, 40, 2) and ((points >= 0) & (points <= 1)).all()
    off_centre = (points[..., 0] - 0.5).abs()
    assert off_centre[:, :20].max() < 0.25 and off_centre[:, 20:].max() > 0.25


def test_mixing_does_not_depend_on_the_order_of_the_images():
    model, sem_seg = predictions(3), labels([0, 2], [1, 3], [0, 1, 2, 3])
    seeds = [{"seed": seed} for seed in (7, 5, 6)]
    with using_seeds(seeds):
        first = criterion()(model, sem_seg, **prototypes())["loss_vir"]
    order = [2, 0, 1]
    with using_seeds([seeds[i] for i in order]):
        second = criterion()(part(model, order), sem_seg[order], **prototypes())["loss_vir"]
    torch.testing.assert_close(first, second)


def test_rows_of_all_processes_have_the_gradient_of_one_process(monkeypatch):
    """What two processes of 3 rows and 1 row compute, one after the other; DDP takes the mean of their gradients."""
    whole = torch.randn(4, 2)
    weights = torch.arange(1.0, 5)[:, None]
    shards = [whole[:3].requires_grad_(), whole[3:].requires_grad_()]
    monkeypatch.setattr(criterion_module.comm, "get_world_size", lambda: 2)
    for rank, mine in enumerate(shards):

        def all_gather(parts, tensor):
            for part, shard in zip(parts, shards, strict=True):
                if tensor.dtype == torch.int64:
                    part.fill_(len(shard))
                else:
                    part.zero_()[: len(shard)] = shard.detach()

        monkeypatch.setattr(criterion_module.comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
        (rows,) = rows_of_all_processes(mine)
        torch.testing.assert_close(rows, whole, rtol=0, atol=0)
        (weights * rows.square()).sum().backward()
    gradient = torch.cat([shard.grad for shard in shards]) / 2
    torch.testing.assert_close(gradient, 2 * weights * whole)


# ---- what other methods take of it ----
def test_bilinear_labels_are_interpolated_masks():
    """Those that point_sample reads of each class's mask, at the border too."""
    torch.manual_seed(0)
    sem_seg = torch.randint(0, 3, (2, H, W))
    points = torch.cat([torch.rand(2, 50, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.01, 0.99]]).expand(2, -1, -1)], dim=1)
    wanted = torch.tensor([[0, 2], [1, IGNORE]])
    masks = (sem_seg[:, None] == wanted[..., None, None]).float()
    given = criterion(labels_at_points="bilinear").share_at(sem_seg, torch.arange(2), wanted, points)
    torch.testing.assert_close(given, point_sample(masks, points, align_corners=False))
    cells = criterion().share_at(sem_seg, torch.arange(2), wanted, dense_points((H, W), sem_seg.device).expand(2, -1, -1))
    assert torch.equal(cells, masks.flatten(2))


def test_only_what_is_handed_over_has_a_loss():
    model, sem_seg = predictions(), labels([0, 2], [1, 3])
    bare = Predictions(model.class_logits, model.mask_logits)
    found, whole = criterion()(bare, sem_seg), criterion()(model, sem_seg, **prototypes())
    assert set(found) == {"loss_ce", "loss_mask", "loss_dice"}
    for name, loss in found.items():
        torch.testing.assert_close(loss, whole[name])


def test_mask_losses_count_the_ground_truth_although_proposals_are_few():
    """With one proposal for two classes the sum over the one pair is halved."""
    model = predictions(1)
    few = Predictions(model.class_logits[:, :1], model.mask_logits[:, :1])
    both = criterion()(few, labels([0, 1]))
    (rows, classes), *_ = match_all(criterion(), few, labels([0, 1]))[0]
    assert len(rows) == 1
    truth = (labels([0, 1])[0] == classes[0]).float().flatten()[None]
    torch.testing.assert_close(both["loss_dice"], 5 * dice_loss(few.mask_logits[0].flatten(1), truth).sum() / 2)
