"""Which proposals count as changed by PBC, and how they are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignzeg_d2.pictures.corrections import (
    Correction,
    Corrections,
    changed_proposals,
    class_under_mask,
    corrections_figure,
)
from zeroshot_d2.class_split import ClassSplit

SPLIT = ClassSplit(("cat", "dog", "very long name of a cow"), unseen=("dog",))
IGNORED = 65535


@pytest.fixture
def image() -> np.ndarray:
    return np.full((40, 60, 3), 100, dtype=np.uint8)


@pytest.fixture
def label() -> np.ndarray:
    """cat on the left, dog on the right; the top left corner is ignored."""
    label = np.zeros((40, 60), dtype=np.uint16)
    label[:, 30:] = 1
    label[:10, :10] = IGNORED
    return label


def proposals() -> dict[str, torch.Tensor]:
    """Three proposals over cat, dog, cow, background; the second goes from cat to dog and the third from cow to dog."""
    before = torch.tensor([[5.0, 1.0, 0.0, 0.0], [3.0, 2.0, 0.0, 0.0], [0.0, 1.0, 2.0, 4.0]])
    after = before.clone()
    after[1:, [0, 2]] = 0.0
    masks = torch.full((3, 4, 6), -20.0)
    masks[0, :, :3], masks[1, :, 3:], masks[2] = 20.0, 20.0, 20.0
    return {
        "class_logits": before,
        "corrected_logits": after,
        "class_indicator": torch.tensor([0.1, 0.9, 0.8]),
        "mask_logits": masks,
    }


def test_changed_proposals_by_hand():
    changed = changed_proposals(proposals())
    assert [(p.index, p.before, p.after) for p in changed] == [(1, 0, 1), (2, 2, 1)]
    assert changed[0].indicator == pytest.approx(0.9)
    exps = np.exp([3.0, 2.0, 0.0, 0.0])
    np.testing.assert_allclose(changed[0].probabilities_before, exps[:3] / exps.sum(), rtol=1e-5)
    # the mask covers half of the image, and any class has 1 - P(background)
    assert changed[0].weight == pytest.approx(0.5 * (1 - 1 / exps.sum()), rel=1e-5)
    assert changed[1].weight < changed[0].weight  # twice the area, but mostly background


def test_changed_proposals_without_background_in_the_softmax():
    changed = changed_proposals(proposals(), background_in_softmax=False)
    assert [p.index for p in changed] == [2, 1]  # now only the area counts
    assert changed[0].weight == pytest.approx(1.0)


def test_changed_proposals_need_an_indicator():
    with pytest.raises(ValueError, match=r"PBC\.POSTPROCESSOR PBC"):
        changed_proposals({**proposals(), "class_indicator": None})


def test_class_under_a_mask(label):
    mask = np.zeros((4, 6))
    mask[:, 4:] = 1.0
    assert class_under_mask(mask, label, 3) == 1
    assert class_under_mask(1 - mask, label, 3) == 0
    assert class_under_mask(mask, np.full((40, 60), IGNORED), 3) is None


def test_corrections_show_the_best_classes_before_and_after(image):
    (first, *_) = changed_proposals(proposals())
    figure = corrections_figure([Correction(image, first, truth=1)], SPLIT, gamma=0.3, top=2)
    _, before, after = figure.axes
    assert [text.get_text() for text in before.get_yticklabels()] == ["cat", "★ dog"]
    assert after.get_yticklabels()[0].get_text() == "★ dog"
    assert [patch.get_width() for patch in before.patches] == pytest.approx(list(first.probabilities_before[:2]))
    assert before.get_xlim() == after.get_xlim()  # bars can be compared
    assert [("✓" in text.get_text()) for text in before.texts] == [False, True]
    assert "0.90" in figure.axes[0].get_title() and "0.3" in figure.axes[0].get_title()
    assert figure.axes[0].get_xlabel() == "truth: ★ dog"


def test_corrections_need_a_row():
    with pytest.raises(ValueError, match="at least one"):
        corrections_figure([], SPLIT, gamma=0.3)


def test_corrections_are_counted_by_what_they_did(image, label):
    corrections = Corrections(SPLIT, background_in_softmax=True)
    corrections.add(image, label, proposals())  # two become a dog, which most of the labelled pixels below them are
    corrections.add(image, np.zeros_like(label), proposals())  # all is cat: one was right before, the other never
    assert (corrections.changed, corrections.num_mended, corrections.num_spoiled) == (4, 2, 1)
    assert [c.proposal.index for c in (*corrections.mended, *corrections.spoiled)] == [1, 1]  # the heaviest of an image
    assert "to 4 proposals" in corrections.text() and "2 became right, 1 became wrong, and 1 were" in corrections.text()
