"""Semantic inference: strips against F.interpolate, labels against scores, confidences, memory of large images."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from comparisons import STEP, assert_close, assert_same_labels

from alignzeg_d2 import semantic_inference as inference
from alignzeg_d2.inference import class_probabilities
from alignzeg_d2.semantic_inference import PlacedProposals, cropped_masks, strips

# Of a few proposals: two interpolations, a sigmoid, and a product that adds up some terms.
FEW_STEPS = 32 * STEP


def semantic_scores(probabilities, masks, *, region=None, **arguments):
    """Of an image that was seen as a whole."""
    scores, _ = inference.semantic_scores([PlacedProposals.of_image(probabilities, masks, region)], **arguments)
    return scores


def best_classes(probabilities, masks, *, region=None, **arguments):
    """Labels, and the scores that they have (confidence times coverage)."""
    found = [PlacedProposals.of_image(probabilities, masks, region)]
    best = inference.best_classes(found, **arguments)
    _, coverage = inference.semantic_scores(found, **arguments)
    return best.labels, best.confidence * coverage


def masks_of(mask_logits, region, output_size, chunk_pixels):
    """Strips of an image, with their masks in [0, 1]."""
    found = [PlacedProposals.of_image(torch.ones(len(mask_logits), 1), mask_logits, region)]
    for (rows, columns), _, masks in strips(found, output_size, chunk_pixels):
        assert columns == slice(0, output_size[1])
        yield rows, masks


def upsampled(mask_logits, region, output_size, chunk_pixels):
    return torch.cat([masks for _, masks in masks_of(mask_logits, region, output_size, chunk_pixels)], dim=1)


@pytest.mark.parametrize("output_size", [(5, 7), (20, 28), (23, 9), (3, 4), (1, 1)])
def test_strips_equal_interpolate(output_size):
    masks = torch.randn(3, 5, 7)
    expected = F.interpolate(masks[None], size=output_size, mode="bilinear", align_corners=False)[0].sigmoid()
    torch.testing.assert_close(upsampled(masks, (5, 7), output_size, 10**9), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_pixels", [1, 30, 31, 100])
def test_any_chunk_gives_the_same(chunk_pixels):
    masks = torch.randn(3, 5, 7)
    whole = upsampled(masks, (4.5, 6.2), (21, 15), 10**9)
    assert_close(upsampled(masks, (4.5, 6.2), (21, 15), chunk_pixels), whole, FEW_STEPS)
    probabilities = torch.rand(3, 4)
    arguments = {"region": (4.5, 6.2), "output_size": (21, 15)}
    scores = semantic_scores(probabilities, masks, **arguments, chunk_pixels=10**9)
    assert_close(semantic_scores(probabilities, masks, **arguments, chunk_pixels=chunk_pixels), scores, FEW_STEPS)
    labels, best = best_classes(probabilities, masks, **arguments, chunk_pixels=chunk_pixels)
    assert_same_labels(labels, scores.argmax(0), scores, FEW_STEPS)
    assert_close(best, scores.amax(0), FEW_STEPS)


def test_strips_cover_each_row_once_and_are_bounded():
    rows = []
    for strip, masks in masks_of(torch.randn(2, 4, 4), (4, 4), (50, 10), chunk_pixels=64):
        rows += range(strip.start, strip.stop)
        assert masks.shape == (2, strip.stop - strip.start, 10) and masks[0].numel() <= 64
    assert rows == list(range(50))


def test_region_leaves_the_padding_out():
    """A mask over 6 x 8 cells, of which the image covers 3 x 4: upsampling to 6 x 8 pixels gives two pixels a cell."""
    masks = torch.full((1, 6, 8), 100.0)
    masks[:, :3, :4] = torch.arange(12.0).reshape(3, 4) / 4
    out = upsampled(masks, (3, 4), (6, 8), 10**9)
    # away from the border with the padding it is the image's own upsampling
    expected = F.interpolate(masks[None, :, :3, :4], size=(6, 8), mode="bilinear", align_corners=False)[0].sigmoid()
    torch.testing.assert_close(out[:, :5, :7], expected[:, :5, :7])


def test_region_is_the_upsampled_whole_cropped_to_the_image():
    """Masks of 24 x 32 pixels at 4 pixels a cell, of which the image has 22 x 29."""
    masks = torch.randn(2, 6, 8)
    whole = F.interpolate(masks[None], size=(24, 32), mode="bilinear", align_corners=False)[0].sigmoid()
    torch.testing.assert_close(upsampled(masks, (22 / 4, 29 / 4), (22, 29), 100), whole[:, :22, :29], rtol=1e-4, atol=1e-5)


def test_scores_by_hand_and_labels_are_their_argmax():
    torch.manual_seed(0)
    probabilities, masks = torch.rand(3, 4), 3 * torch.randn(3, 5, 7)
    arguments = {"region": (5, 7), "output_size": (10, 14), "chunk_pixels": 50}
    scores = semantic_scores(probabilities, masks, **arguments)
    at = F.interpolate(masks[None], size=(10, 14), mode="bilinear", align_corners=False)[0].sigmoid()
    expected = sum(probabilities[q][:, None, None] * at[q] for q in range(3))
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    labels, _ = best_classes(probabilities, masks, **arguments)
    assert labels.dtype == torch.long
    assert_same_labels(labels, scores.argmax(0), scores, FEW_STEPS)


def test_inputs_are_left_as_they_were():
    masks, probabilities = torch.randn(3, 5, 7), torch.rand(3, 4)
    before = masks.clone()
    for form in (semantic_scores, best_classes):
        form(probabilities, masks, region=(5, 7), output_size=(5, 7), chunk_pixels=1000)  # same size: weights are 0
    assert torch.equal(masks, before)


def test_cropped_masks_are_whole_cells_of_what_the_image_covers():
    masks = torch.randn(2, 6, 8)
    torch.testing.assert_close(cropped_masks(masks, (4.0, 7.0)), masks[:, :4, :7])
    assert cropped_masks(masks, (4.6, 0.2)).shape == (2, 5, 1)


@pytest.mark.parametrize("level", [-5.0, 0.0, 5.0])
def test_confidences_are_shares_of_what_covers_a_pixel(level):
    """Many masks at a pixel add up to scores above 1, few to scores below; a confidence never exceeds 1 nor its score."""
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(40, 5, generator=generator).softmax(-1)
    masks = level + torch.randn(40, 6, 7, generator=generator)
    found = [PlacedProposals.of_image(probabilities, masks)]
    arguments = {"output_size": (20, 30), "chunk_pixels": 100}
    scores, coverage = inference.semantic_scores(found, **arguments)
    at = F.interpolate(masks[None], size=(20, 30), mode="bilinear", align_corners=False)[0].sigmoid()
    torch.testing.assert_close(coverage, at.sum(0).clamp(min=1), rtol=1e-4, atol=1e-5)
    confidence = inference.best_classes(found, **arguments).confidence
    assert_close(confidence, scores.amax(0) / coverage, FEW_STEPS)
    assert confidence.min() >= 0 and confidence.max() <= 1
    assert (level == -5) == bool((coverage == 1).all())


def test_rows_of_the_output_alone():
    probabilities, masks = torch.rand(3, 4), torch.randn(3, 5, 7)
    found = [PlacedProposals.of_image(probabilities, masks)]
    arguments = {"output_size": (20, 30), "chunk_pixels": 100}
    whole = inference.best_classes(found, **arguments)
    part = inference.best_classes(found, **arguments, rows=slice(7, 12))
    assert_close(part.confidence, whole.confidence[7:12], FEW_STEPS)
    assert part.labels.shape == (5, 30)


# ---- labels without all scores ----


def random_case(kind, num_classes, seed, num_proposals=12, grid=(6, 9)):
    """Probabilities (Q, K) and mask logits: "peaked", "flat", "smooth" or "saturated", the last exactly 0 or 1 as masks."""
    generator = torch.Generator().manual_seed(seed)
    sharpness, scale = {"peaked": (6, 8), "flat": (0.1, 0.3), "smooth": (3, 20), "saturated": (3, 1000)}[kind]
    logits = sharpness * torch.randn(num_proposals, num_classes + 1, generator=generator)
    coarse = torch.randn(1, num_proposals, 2, 2, generator=generator)
    masks = F.interpolate(coarse, size=grid, mode="nearest" if kind == "saturated" else "bilinear")[0]
    if kind in ("peaked", "flat"):
        masks = torch.randn(num_proposals, *grid, generator=generator)
    return class_probabilities(logits), scale * masks


def by_all_scores(probabilities, masks, **arguments):
    scores = semantic_scores(probabilities, masks, **arguments)
    return scores, scores.argmax(dim=0)


@pytest.mark.parametrize("num_classes", [1, 2, 27, 171, 1000])
@pytest.mark.parametrize("kind", ["peaked", "flat", "smooth", "saturated"])
def test_labels_are_those_of_all_scores(kind, num_classes):
    sizes = [(1, 1), (15, 16), (16, 17), (33, 70), (64, 48)]  # below, at and beyond a tile's side, and cut at the border
    for seed, output_size in enumerate(sizes):
        probabilities, masks = random_case(kind, num_classes, seed)
        for chunk_pixels in (1, 20 * output_size[1], 10**9):
            arguments = {"region": (5.5, 9.0), "output_size": output_size, "chunk_pixels": chunk_pixels}
            scores, expected = by_all_scores(probabilities, masks, **arguments)
            labels, best = best_classes(probabilities, masks, **arguments)
            assert_same_labels(labels, expected, scores, FEW_STEPS)
            assert_close(best, scores.amax(dim=0), FEW_STEPS)


@pytest.mark.parametrize("seed", range(5))
def test_of_equal_scores_the_first_class_wins(seed):
    """Masks of 0 and 1 and probabilities in quarters add up without rounding, so that many scores are equal."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randint(0, 3, (5, 40), generator=generator) / 4
    # Four pixels a cell: none lies midway between two cells, where a mask would be neither 0 nor 1.
    masks = 1e5 * torch.randn(5, 9, 11, generator=generator).sign()
    arguments = {"region": (9, 11), "output_size": (36, 44), "chunk_pixels": 1000}
    scores, expected = by_all_scores(probabilities, masks, **arguments)
    assert torch.equal(4 * scores, (4 * scores).round())
    assert (scores == scores.amax(dim=0)).sum() > 1.5 * expected.numel()
    labels, best = best_classes(probabilities, masks, **arguments)
    assert torch.equal(labels, expected)
    assert_close(best, scores.amax(dim=0), FEW_STEPS)


def tiles_with_contenders(probabilities, masks):
    """{(rows, columns): classes that may win}, as they are found for masks (Q, H, W)."""
    return [(down, across, classes.tolist()) for (down, across), classes in inference._contenders(probabilities, masks)]


@pytest.mark.parametrize("kind", ["peaked", "flat", "smooth", "saturated"])
def test_whoever_wins_a_pixel_is_a_contender(kind):
    """In double precision, where the arithmetic decides nothing."""
    for seed in range(4):
        probabilities, masks = random_case(kind, 60, seed)
        ((_, upsampled_masks),) = masks_of(masks, (6, 9), (37, 50), 10**9)
        winners = torch.einsum("qk,qhw->khw", probabilities.double(), upsampled_masks.double()).argmax(dim=0)
        covered = torch.zeros(37, 50)
        for down, across, classes in tiles_with_contenders(probabilities, upsampled_masks):
            covered[down, across] += 1
            assert classes == sorted(classes) and set(winners[down, across].flatten().tolist()) <= set(classes)
        assert (covered == 1).all()


def test_few_classes_are_contenders():
    """Each proposal says one of 30 classes, and each tile shows one proposal: the proposal's class is left, and no other."""
    probabilities = torch.full((4, 30), 1e-3)
    probabilities[range(4), [3, 8, 20, 29]] = 0.9
    masks = torch.full((4, 32, 32), 0.01)
    for proposal, (top, left) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
        masks[proposal, top : top + 16, left : left + 16] = torch.rand(16, 16) / 10 + 0.9
    assert [classes for _, _, classes in tiles_with_contenders(probabilities, masks)] == [[3], [8], [20], [29]]


def test_classes_that_only_rounding_separates_stay_contenders():
    """Sums of 100 terms in another order differ by more than the classes do."""
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(100, 1, generator=generator)
    masks = torch.rand(100, 1, 1, generator=generator).expand(100, 16, 16).contiguous()
    by_steps = base * (1 + STEP * torch.arange(12))
    assert tiles_with_contenders(by_steps, masks)[0][2] == list(range(12))
    by_thousandths = base * (1 + torch.arange(12) / 1000)
    assert tiles_with_contenders(by_thousandths, masks)[0][2] == [11]


@pytest.mark.parametrize("logit", [-80.0, -87.0, -95.0, -103.0, -1e4])
def test_scores_that_underflow_have_the_label_of_all_scores(logit):
    """Some products are 0 in one form of the sum and the smallest numbers there are in another."""
    probabilities, masks = random_case("peaked", 40, 0)
    arguments = {"region": (6, 9), "output_size": (20, 20), "chunk_pixels": 10**9}
    scores, expected = by_all_scores(probabilities, masks / 100 + logit, **arguments)
    labels, _ = best_classes(probabilities, masks / 100 + logit, **arguments)
    assert_same_labels(labels, expected, scores, FEW_STEPS)
    if logit == -1e4:
        assert (scores == 0).all() and (labels == 0).all()


def test_scores_that_are_not_numbers_have_the_label_of_all_scores():
    probabilities, masks = random_case("peaked", 40, 0)
    probabilities[2, 7], masks[5, 2, 3] = math.nan, math.nan
    arguments = {"region": (6, 9), "output_size": (60, 90), "chunk_pixels": 10**9}
    scores, expected = by_all_scores(probabilities, masks, **arguments)
    labels, best = best_classes(probabilities, masks, **arguments)
    assert torch.equal(labels, expected) and {0, 7} == set(labels.flatten().tolist())
    assert best.isnan().all()


@pytest.mark.parametrize("scores_at_once", [2**27, 27 * 90 * 2, 1])
def test_without_tiles_labels_are_the_same(monkeypatch, scores_at_once):
    """As on a GPU, where the scores of a strip may not fit into memory at once."""
    monkeypatch.setattr(inference, "_SCORES_AT_ONCE", scores_at_once)
    probabilities, masks = random_case("smooth", 27, 3)
    arguments = {"region": (6, 9), "output_size": (60, 90), "chunk_pixels": 1000}
    labels, best = best_classes(probabilities, masks, **arguments)
    monkeypatch.setattr(inference, "_TILED_DEVICES", ())
    expected, highest = best_classes(probabilities, masks, **arguments)
    assert_same_labels(labels, expected, semantic_scores(probabilities, masks, **arguments), FEW_STEPS)
    assert_close(best, highest, FEW_STEPS)


@pytest.mark.parametrize(("device", "pixels"), [("cpu", 65536), ("cuda", 524288), ("mps", 524288)])
def test_pixels_at_once_suit_the_device_unless_they_are_given(device, pixels):
    assert inference.pixels_at_once(0, torch.device(device)) == pixels
    assert inference.pixels_at_once(500, torch.device(device)) == 500


# ---- memory ----

_LARGE = """
import torch
from benchmarks.memory import megabytes
from alignzeg_d2.semantic_inference import PlacedProposals, best_classes
torch.manual_seed(0)
found = [PlacedProposals.of_image(torch.rand(100, 171), torch.randn(100, 40, 54))]
best_classes(found, output_size=(64, 64), chunk_pixels=65536)  # loads the libraries
before = megabytes("VmHWM")
best_classes(found, output_size=(ROWS, 4000), chunk_pixels=65536)
print(2**20 * (megabytes("VmHWM") - before))
"""


@pytest.mark.slow
def test_memory_of_a_large_photo_is_bounded():
    """Labels mode, 100 proposals, 171 classes, rows of 4000 pixels: a 4000 x 3000 photo takes less than half a gigabyte.

    The peak is that of one strip of 16 rows, so some strips show it for any height; labels and confidences take 12 bytes a
    pixel.
    All masks of such a photo at once would be 4.8 GB, all scores 8.2 GB.
    """
    script = _LARGE.replace("ROWS", "130")
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(run.stdout.split()[-1]) + 12 * 4000 * 3000 < 0.5e9


def test_autocast_of_the_caller_changes_nothing():
    probabilities, masks = random_case("smooth", 27, 3)
    arguments = {"region": (6, 9), "output_size": (60, 90), "chunk_pixels": 1000}
    expected = semantic_scores(probabilities, masks, **arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(semantic_scores(probabilities, masks, **arguments), expected)
        labels, best = best_classes(probabilities, masks, **arguments)
    assert best.dtype == torch.float32
    assert_same_labels(labels, expected.argmax(0), expected, FEW_STEPS)
