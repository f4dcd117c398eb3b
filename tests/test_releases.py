"""From a tiny release in its official format to two training steps and an evaluation, for every data set."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_releases
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from zeroshot_d2.datasets.check import check
from zeroshot_d2.trainer import Trainer


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


WITH_A_SPLIT = [
    (tiny_releases.coco_stuff, "coco_stuff_164k"),
    (tiny_releases.voc2012, "voc2012"),
    (tiny_releases.pascal_context, "pascal_context_59"),
]
FOREIGN = [
    (tiny_releases.voc2012, "voc2012_val_cross_dataset"),
    (tiny_releases.pascal_context, "pascal_context_59_val_cross_dataset"),
    (tiny_releases.pascal_context_459, "pascal_context_459_val"),
    (tiny_releases.ade20k_150, "ade20k_150_val"),
    (tiny_releases.ade20k_847, "ade20k_847_val"),
]


def build(demo_cfg: Callable[..., CfgNode], output: Path, train: str, *test: str) -> CfgNode:
    return demo_cfg(
        *("DATASETS.TRAIN", (train,), "DATASETS.TEST", test, "OUTPUT_DIR", str(output)),
        *("SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "TEST.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0),
        *("MODEL.ALIGNZEG.PIXEL_DECODER.NUM_QUERIES", 8),
    )


@pytest.mark.slow
@pytest.mark.parametrize("view", ["train_seen", "train_all"])
@pytest.mark.parametrize(("release", "name"), WITH_A_SPLIT)
def test_train_two_steps_and_evaluate(release, name, view, root, demo_cfg):
    release(root)
    cfg = build(demo_cfg, root / "output", f"{name}_{view}", f"{name}_val", f"{name}_val_unseen")
    trainer = Trainer(cfg)
    trainer.train()
    assert torch.isfinite(torch.tensor(trainer.storage.history("total_loss").latest()))
    results = json.loads((root / "output/results.json").read_text())
    assert results[f"{name}_val"]["protocol"] == "GZS3" and results[f"{name}_val_unseen"]["protocol"] == "ZS3"
    for dataset, numbers in results.items():
        assert numbers["model"]["class_names"] == "released"
        assert list(numbers["IoU"]) == MetadataCatalog.get(dataset).stuff_classes
        assert numbers["mIoU"] is None or 0 <= numbers["mIoU"] <= 100


@pytest.mark.parametrize(("release", "name"), FOREIGN)
def test_evaluate_on_a_foreign_data_set(release, name, root, demo_cfg):
    release(root)
    cfg = build(demo_cfg, root / "output", "demo_world_train_seen", name)
    results = Trainer.test(cfg, Trainer.build_model(cfg).eval())[name]
    assert results["protocol"] == "cross-dataset" and 0 <= results["mIoU"] <= 100
    assert set(results) == {"protocol", "mIoU", "mIoU_gt_or_predicted", "pAcc", "IoU", "num_images", "model", "run"}
    assert sum(value is not None for value in results["IoU"].values()) >= 1


@pytest.mark.parametrize(("release", "name"), [(r, f"{n}_val") for r, n in WITH_A_SPLIT] + [(r, n) for r, n in FOREIGN])
def test_a_tiny_release_has_no_faults_but_its_size(release, name, root, caplog):
    release(root)
    with caplog.at_level(logging.WARNING):
        report = check(name)
    assert report.problems == [] and report.images.sum() > 0
    assert f"{name}: found {report.num_images} images, the whole release has" in caplog.text


# ---- image-level labels ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("release", "train", "tests"),
    [
        (tiny_releases.nus_wide, "nus_wide_train", ("nus_wide_test",)),
        (tiny_releases.nus_wide, "nus_wide_81_train", ("nus_wide_81_test",)),
        (tiny_releases.open_images, "open_images_v4_train", ("open_images_v4_val", "open_images_v4_test")),
    ],
)
def test_train_two_steps_on_image_level_labels_and_evaluate(release, train, tests, root, epsilon_cfg):
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
def test_a_tiny_release_of_image_level_labels_has_no_faults(release, name, root):
    release(root)
    report = check(name)
    assert report.problems == [] and report.images.sum() > 0
