"""From proposals to a segmentation: strips against F.interpolate, labels against scores, memory of large images."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from alignzeg_d2.inference import (
    PBC,
    POSTPROCESSOR_REGISTRY,
    NoCorrection,
    best_classes,
    class_probabilities,
    semantic_scores,
    upsampled_strips,
)


def upsampled(mask_logits, region, output_size, chunk_pixels):
    return torch.cat([masks for _, masks in upsampled_strips(mask_logits, region, output_size, chunk_pixels)], dim=1)


@pytest.mark.parametrize("output_size", [(5, 7), (20, 28), (23, 9), (3, 4), (1, 1)])
def test_strips_equal_interpolate(output_size):
    masks = torch.randn(3, 5, 7)
    expected = F.interpolate(masks[None], size=output_size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(upsampled(masks, (5, 7), output_size, 10**9), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_pixels", [1, 30, 31, 100])
def test_any_chunk_gives_the_same(chunk_pixels):
    masks = torch.randn(3, 5, 7)
    whole = upsampled(masks, (4.5, 6.2), (21, 15), 10**9)
    assert torch.equal(upsampled(masks, (4.5, 6.2), (21, 15), chunk_pixels), whole)
    probabilities = torch.rand(3, 4)
    arguments = {"region": (4.5, 6.2), "output_size": (21, 15)}
    torch.testing.assert_close(
        semantic_scores(probabilities, masks, **arguments, chunk_pixels=chunk_pixels),
        semantic_scores(probabilities, masks, **arguments, chunk_pixels=10**9),
    )


def test_strips_cover_each_row_once_and_are_bounded():
    rows = []
    for strip, masks in upsampled_strips(torch.randn(2, 4, 4), (4, 4), (50, 10), chunk_pixels=64):
        rows += range(strip.start, strip.stop)
        assert masks.shape == (2, strip.stop - strip.start, 10) and masks[0].numel() <= 64
    assert rows == list(range(50))


def test_region_leaves_the_padding_out():
    """A mask over 6 x 8 cells, of which the image covers 3 x 4: upsampling to 6 x 8 pixels gives two pixels a cell."""
    masks = torch.full((1, 6, 8), 100.0)
    masks[:, :3, :4] = torch.arange(12.0).reshape(3, 4)
    out = upsampled(masks, (3, 4), (6, 8), 10**9)
    # away from the border with the padding it is the image's own upsampling
    expected = F.interpolate(masks[None, :, :3, :4], size=(6, 8), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(out[:, :5, :7], expected[:, :5, :7])


def test_region_is_the_upsampled_whole_cropped_to_the_image():
    """Masks of 24 x 32 pixels at 4 pixels a cell, of which the image has 22 x 29."""
    masks = torch.randn(2, 6, 8)
    whole = F.interpolate(masks[None], size=(24, 32), mode="bilinear", align_corners=False)[0]
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
    assert labels.dtype == torch.long and torch.equal(labels, scores.argmax(0))


def test_inputs_are_left_as_they_were():
    masks, probabilities = torch.randn(3, 5, 7), torch.rand(3, 4)
    before = masks.clone()
    for segment in (semantic_scores, best_classes):
        segment(probabilities, masks, region=(5, 7), output_size=(5, 7), chunk_pixels=1000)  # same size: weights are 0
    assert torch.equal(masks, before)


def test_background_before_or_behind_the_softmax():
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    torch.testing.assert_close(class_probabilities(logits), logits.softmax(-1)[:, :2])
    torch.testing.assert_close(class_probabilities(logits, background_in_softmax=False), logits[:, :2].softmax(-1))


def test_registry_and_missing_indicator():
    assert POSTPROCESSOR_REGISTRY.get("PBC") is PBC
    logits, seen = torch.randn(2, 4), torch.tensor([True, False, True])
    assert NoCorrection(gamma=0.3)(logits, None, seen) is logits
    corrected = PBC(gamma=0.3)(logits, torch.tensor([0.9, 0.1]), seen)
    assert torch.equal(corrected[1], logits[1]) and (corrected[0, [0, 2]] == logits[:, :3].min()).all()
    with pytest.raises(ValueError, match="NoCorrection"):
        PBC(gamma=0.3)(logits, None, seen)


_LARGE = """
import resource, sys, torch
from alignzeg_d2.postprocessing import best_classes
torch.manual_seed(0)
probabilities, masks = torch.rand(100, 171), torch.randn(100, 40, 54)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
best_classes(probabilities, masks, region=(40, 54), output_size=(64, 64), chunk_pixels=262144)  # loads the libraries
before = peak()
best_classes(probabilities, masks, region=(40, 54), output_size=(ROWS, 4000), chunk_pixels=262144)
print(peak() - before)
"""


def test_memory_of_a_large_photo_is_bounded():
    """Labels mode, 100 proposals, 171 classes, rows of 4000 pixels: 1.5 GB are enough; a 4000 x 3000 photo may take 4 GB.

    The peak is that of one strip of 65 rows, so two strips show it for any height; the labels take 8 bytes a pixel.
    All masks of such a photo at once would be 4.8 GB, all scores 8.2 GB.
    """
    script = _LARGE.replace("ROWS", "130")
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(run.stdout.split()[-1]) + 8 * 4000 * 3000 < 1.5e9


def test_best_classes_are_the_largest_of_all_scores():
    masks, probabilities = torch.randn(3, 5, 7), torch.rand(3, 4)
    arguments = {"region": (4.5, 6.2), "output_size": (21, 15), "chunk_pixels": 40}
    best, labels = semantic_scores(probabilities, masks, **arguments).max(dim=0)
    found = best_classes(probabilities, masks, **arguments)
    assert torch.equal(found[0], labels) and torch.equal(found[1], best)
