"""From tiny NUS-WIDE and Open Images releases in their official formats to two training steps and an evaluation."""

import json

import numpy as np
import pytest
import tiny_releases
import torch
from detectron2.data import MetadataCatalog

from train_net import Trainer
from zeroshot_d2.datasets.check import check


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("release", "train", "tests"),
    [
        (tiny_releases.nus_wide, "nus_wide_train", ("nus_wide_test",)),
        (tiny_releases.nus_wide, "nus_wide_81_train", ("nus_wide_81_test",)),
        (tiny_releases.open_images, "open_images_v4_train", ("open_images_v4_val", "open_images_v4_test")),
    ],
)
def test_train_two_steps_and_evaluate(release, train, tests, root, epsilon_cfg):
    release(root)
    # Word vectors instead of CLIP's text encoder, which takes a while for 7,586 names.
    names = sorted(set(MetadataCatalog.get(tests[0]).class_split.prompts))
    vectors = np.random.default_rng(0).normal(size=(len(names), 8)).astype(np.float32)
    np.savez(root / "words.npz", names=np.array(names), vectors=vectors)
    cfg = epsilon_cfg(
        *("MODEL.EPSILON.LABEL_EMBEDDINGS.SOURCE", "file", "MODEL.EPSILON.LABEL_EMBEDDINGS.FILE", str(root / "words.npz")),
        *("DATASETS.TRAIN", (train,), "DATASETS.TEST", tests, "OUTPUT_DIR", str(root / "output")),
        *("SOLVER.MAX_EPOCHS", 0, "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2),
    )
    trainer = Trainer(cfg)
    trainer.train()
    assert torch.isfinite(torch.tensor(trainer.storage.history("total_loss").latest()))
    results = json.loads((root / "output/results.json").read_text())
    assert set(results) == set(tests) and all(results[name] for name in tests)


@pytest.mark.parametrize(
    ("release", "name"), [(tiny_releases.nus_wide, "nus_wide_test"), (tiny_releases.open_images, "open_images_v4_test")]
)
def test_a_tiny_release_has_no_faults(release, name, root):
    release(root)
    report = check(name)
    assert report.problems == [] and report.images.sum() > 0
