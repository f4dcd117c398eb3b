"""Predictor: any kind of image, a vocabulary of one's own, batches, proposals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from PIL import Image

from alignzeg_d2.predictor import AlignZegPredictor
from zeroshot_d2.demo_world import SPLIT, render
from zeroshot_d2.predictor import to_bgr


def photo(index: int) -> np.ndarray:
    """(64, 64, 3) BGR."""
    return np.ascontiguousarray(render(7, index).image[:, :, ::-1])


def test_gives_what_detectron2s_own_predictor_gives(trained_cfg, predictor):
    wide = np.concatenate([photo(0), photo(1)], axis=1)
    scores = DefaultPredictor(trained_cfg())(wide)["sem_seg"]
    found = predictor(wide, scores=True)
    assert torch.equal(found.scores, scores)
    assert np.array_equal(found.labels, scores.argmax(0).numpy())
    assert np.array_equal(found.best, scores.amax(0).numpy())
    without = predictor(wide)
    assert without.scores is None and without.proposals is None
    assert np.array_equal(without.labels, found.labels) and np.array_equal(without.best, found.best)


def test_every_kind_of_image_in_one_batch(predictor, tmp_path):
    bgr = photo(0)
    pil = Image.fromarray(bgr[:, :, ::-1])
    pil.save(tmp_path / "image.png")
    turned = pil.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # "turn me by 90 degrees clockwise"
    images = [bgr, pil, pil.convert("RGBA"), tmp_path / "image.png", str(tmp_path / "image.png"), turned, photo(1)]
    for image in images[:-1]:
        assert np.array_equal(to_bgr(image), bgr)
    found = predictor(images)
    assert len(found) == 7  # three batches of at most three
    for segmentation in found[:-1]:
        np.testing.assert_allclose(segmentation.best, found[0].best, atol=1e-5)
    np.testing.assert_allclose(found[-1].best, predictor(photo(1)).best, atol=1e-5)
    assert predictor([]) == []


@pytest.mark.parametrize("array", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_other_arrays_are_refused(array):
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 in BGR order, got"):
        to_bgr(array)


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    for name in ("broken.jpg", "missing.jpg"):
        with pytest.raises(OSError, match=f"cannot read the image .*{name}"):
            to_bgr(tmp_path / name)


def test_vocabulary_order_decides_the_labels(predictor):
    assert predictor.vocabulary is SPLIT or predictor.vocabulary == SPLIT
    names = ["striped red tile", "dark water|dark sea", "plain blue tile", "zebra"]
    split = predictor.set_vocabulary(names)
    assert split.names == ("striped red tile", "dark water", "plain blue tile", "zebra")
    assert split.unseen == ("striped red tile", "dark water", "zebra")  # training knew the plain blue tile only
    forward = predictor(photo(0), scores=True).scores
    predictor.set_vocabulary(names[::-1])
    torch.testing.assert_close(predictor(photo(0), scores=True).scores, forward.flip(0), atol=1e-6, rtol=0)
    assert predictor.set_vocabulary(None) == SPLIT


def test_unseen_marks_win_over_what_training_knew(predictor):
    names = ["plain blue tile", "dark grass|dark meadow"]
    assert predictor.model.seen_mask(predictor.set_vocabulary(names)).tolist() == [True, True]
    split = predictor.set_vocabulary(names, unseen=["dark grass|dark meadow"])
    assert split.unseen == ("dark grass",)
    assert predictor.model.seen_mask(split).tolist() == [True, False]


@pytest.mark.parametrize(
    ("names", "unseen", "message"),
    [
        ("cat, dog", None, "must be a list of names, got the text 'cat, dog'"),
        ([], None, "empty"),
        (["cat", "cat|kitten"], None, "more than once"),
        (["cat"], ["dog"], r"unseen classes \['dog'\] are not in the vocabulary: cat"),
    ],
)
def test_faulty_vocabularies(predictor, names, unseen, message):
    with pytest.raises(ValueError, match=message):
        predictor.set_vocabulary(names, unseen)


def test_proposals_show_what_the_correction_did(predictor):
    predictor.model.postprocessor.gamma = 0.0  # every proposal counts as unseen
    split = predictor.set_vocabulary(["plain blue tile", "zebra"])
    proposals = predictor([photo(0)], proposals=True)[0].proposals
    assert proposals["mask_logits"].shape == (16, 16, 16)
    assert proposals["class_indicator"].shape == (16,)
    before, after = proposals["class_logits"], proposals["corrected_logits"]
    assert before.shape == after.shape == (16, len(split) + 1)
    assert torch.equal(after[:, 1:], before[:, 1:])  # the unseen class and the background
    assert torch.equal(after[:, 0], before[:, :-1].min().expand(16))
    assert predictor(photo(0)).proposals is None


def test_classes_present(predictor):
    found = predictor(photo(0))
    classes = found.classes()
    assert [entry["pixels"] for entry in classes] == sorted((entry["pixels"] for entry in classes), reverse=True)
    assert sum(entry["pixels"] for entry in classes) == 64 * 64
    assert sum(entry["area"] for entry in classes) == pytest.approx(1)
    for entry in classes:
        here = found.labels == entry["index"]
        assert entry["score"] == pytest.approx(found.best[here].mean(), abs=1e-5)
        assert entry["name"] == SPLIT.names[entry["index"]] and entry["unseen"] == (entry["name"] in SPLIT.unseen)


def test_batch_size_must_be_positive(trained_cfg):
    with pytest.raises(ValueError, match="batch size must be positive, got 0"):
        AlignZegPredictor(trained_cfg(), batch_size=0)
