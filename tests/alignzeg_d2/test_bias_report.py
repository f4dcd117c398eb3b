"""The bias report: by hand on four proposals, and for a model."""

import json

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from alignzeg_d2.bias_report import BOTH, NO_CORRECTION, OWN, PERFECT, BiasCounts, area_under_curve, main, overlaps, stacked
from zeroshot_d2 import ClassSplit, load_config
from zeroshot_d2.demo_world import register_demo_world

SPLIT = ClassSplit(["cat", "dog", "cow", "pig"], unseen=["cow", "pig"])
SEEN = torch.tensor([True, True, False, False])
register_demo_world("bias_world", seed=31, num_images=3)


def proposals(logits, indicator=None):
    """Four proposals, each a quarter of an 8 x 8 image; the classes' logits, and a background that never wins."""
    masks = torch.full((4, 8, 8), -20.0)
    for q, (top, left) in enumerate(((0, 0), (0, 4), (4, 0), (4, 4))):
        masks[q, top : top + 4, left : left + 4] = 20.0
    logits = torch.cat([torch.tensor(logits, dtype=torch.float32), torch.full((4, 1), -9.0)], dim=1)
    return {
        "mask_logits": masks,
        "class_logits": logits,
        "class_indicator": None if indicator is None else torch.tensor(indicator),
    }


def truth():
    """cat, dog / cow, pig in the four quarters."""
    return np.kron(np.array([[0, 1], [2, 3]]), np.ones((4, 4), dtype=np.int64))


# The cow is taken for a cat, the pig for a cow; the dog for a pig.
LOGITS = [[5, 0, 0, 0], [0, 4, 0, 5], [5, 0, 4, 0], [0, 3, 5, 4]]


def test_shares_by_hand():
    counts = BiasCounts(SPLIT, SEEN, gamma=0.5)
    counts.add(proposals(LOGITS, [0.1, 0.6, 0.4, 0.9]), truth())
    report = counts.report()
    assert report["num_images"] == 1
    assert report["unseen_pixels_to_seen"] == pytest.approx(50)  # the cow
    assert report["unseen_pixels_to_other_unseen"] == pytest.approx(50)  # the pig
    assert report["seen_pixels_to_unseen"] == pytest.approx(50)  # the dog
    # Among unseen classes alone the cow is right, and the pig still a cow.
    assert report["ZS3_mIoU"] == pytest.approx(25)
    assert report["GZS3_mIoU_unseen"] == 0 and report["ZS3_minus_GZS3"] == pytest.approx(25)
    assert report["indicator"] == {
        "AUC": pytest.approx(75),  # of four pairs, the dog's 0.6 lies above the cow's 0.4
        "proposals": 4,
        "gamma": 0.5,
        "flagged_of_unseen": pytest.approx(50),
        "flagged_of_seen": pytest.approx(50),
    }


def test_the_backgrounds_share_by_hand():
    """On the cow the background has e^2 of e^2 + 1, nearly, elsewhere nothing; each quarter has one mask."""
    found = proposals([[50, 0, 0, 0], [0, 50, 0, 0], [0, 0, 50, 0], [0, 0, 0, 50]])
    found["class_logits"][2, 4] = 52.0
    counts = BiasCounts(SPLIT, SEEN, gamma=None)
    for _ in range(2):
        counts.add(found, truth())
    report = counts.report()
    assert report["background_on_unseen"] == pytest.approx(50 * np.e**2 / (np.e**2 + 1), rel=1e-3)
    assert report["background_on_seen"] == pytest.approx(0, abs=1e-3)


def test_corrections_by_hand():
    counts = BiasCounts(SPLIT, SEEN, gamma=0.5, constants=(2.0,))
    counts.add(proposals(LOGITS, [0.1, 0.6, 0.4, 0.9]), truth())
    right = {name: np.trace(found[:4, :4]) // 16 for name, found in counts.confusions.items()}
    assert right[NO_CORRECTION] == 1  # the cat
    assert right[PERFECT] == 2  # and the cow; the pig stays a cow
    assert right[BOTH] == 3  # and the dog
    assert right[OWN] == 1  # the dog is flagged, the cow is not
    assert right["seen - 2"] == 2  # the cow, and the cat is far enough
    assert set(right) == {NO_CORRECTION, PERFECT, BOTH, OWN, "seen - 2"}


def test_a_model_without_an_indicator():
    counts = BiasCounts(SPLIT, SEEN, gamma=None)
    counts.add(proposals(LOGITS), truth())
    report = counts.report()
    assert report["indicator"] is None and OWN not in report["corrections"]


def test_ignored_pixels_say_nothing():
    ignored = truth()
    ignored[:4] = 4
    counts = BiasCounts(SPLIT, SEEN, gamma=0.5)
    counts.add(proposals(LOGITS, [0.1, 0.6, 0.4, 0.9]), ignored)
    report = counts.report()
    assert report["seen_pixels_to_unseen"] is None and report["background_on_seen"] is None
    assert report["indicator"]["proposals"] == 2
    counts.add(proposals(LOGITS, [0.1, 0.6, 0.4, 0.9]), np.full((8, 8), 4))  # nothing is labelled
    assert counts.report()["num_images"] == 2
    with pytest.raises(ValueError, match="no image"):
        BiasCounts(SPLIT, SEEN, gamma=0.5).report()


def test_overlaps_are_the_masks_on_each_class():
    masks = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    labels = np.random.default_rng(0).integers(0, 5, (8, 12))
    found = overlaps(masks, labels, 4)
    full = torch.nn.functional.interpolate(masks[None], size=(8, 12), mode="bilinear", align_corners=False)[0].sigmoid()
    for k in range(4):
        torch.testing.assert_close(found[:, k], full[:, torch.from_numpy(labels == k)].sum(dim=1), rtol=1e-5, atol=1e-5)


def test_stacking_leaves_its_input_and_the_background():
    logits = torch.randn(2, 5)
    before = logits.clone()
    changed = stacked(logits, SEEN, 1.0)
    torch.testing.assert_close(logits, before)
    torch.testing.assert_close(changed - logits, torch.tensor([[-1.0, -1, 0, 0, 0]] * 2), rtol=0, atol=1e-6)


def test_area_under_curve():
    assert area_under_curve(np.array([0.1, 0.2, 0.3]), np.array([False, False, True])) == 100
    assert area_under_curve(np.array([0.5, 0.5]), np.array([False, True])) == 50
    assert area_under_curve(np.array([0.5]), np.array([True])) is None


@pytest.mark.parametrize("config", ["demo/alignzeg.yaml", "demo/baselines/san.yaml"])
def test_the_command(config, tmp_path, capsys):
    cfg = load_config(config, ["DATASETS.TEST", "('bias_world',)", "OUTPUT_DIR", str(tmp_path)])
    torch.manual_seed(0)
    DetectionCheckpointer(build_model(cfg), str(tmp_path)).save("model_final")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert main(["--model", str(tmp_path), "--num-images", "2", "--output", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "bias_report.json").read_text())
    assert report["dataset"] == "bias_world" and report["num_images"] == 2
    assert (report["indicator"] is None) == ("san" in config)
    assert "perfect indicator" in capsys.readouterr().out


def test_what_cannot_be_reported_on_is_said(tmp_path):
    for config, words, message in (
        ("demo/alignzeg.yaml", ["--dataset", "demo_world_val_unseen"], "no seen, or no unseen classes"),
        ("demo/baselines/simbaseline.yaml", [], "does not classify proposals by their features alone"),
    ):
        cfg = load_config(config, ["DATASETS.TEST", "('bias_world',)", "OUTPUT_DIR", str(tmp_path)])
        DetectionCheckpointer(build_model(cfg), str(tmp_path)).save("model_final")
        (tmp_path / "config.yaml").write_text(cfg.dump())
        with pytest.raises(ValueError, match=message):
            main(["--model", str(tmp_path), *words])
