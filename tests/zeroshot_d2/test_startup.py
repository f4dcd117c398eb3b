"""What can be known before a training is said before it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from zeroshot_d2 import ClassSplit, register_multilabel, register_sem_seg
from zeroshot_d2.startup import check_evaluation, check_warmup
from zeroshot_d2.trainer import Trainer

NAME = "startup_test"


@pytest.fixture
def register(tmp_path):
    """Register three photos for a task, then take one of them away."""

    def registered(task: str, gone: bool = True) -> Path:
        files = [tmp_path / f"{k}.png" for k in range(3)]
        for file in files:
            Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(file)
        if task == "multilabel":
            split = ClassSplit(["cat", "dog", "cow"], unseen=["cow"])
            register_multilabel(NAME, split, tmp_path, {file.name: ["cat"] for file in files})
        else:
            records = [{"file_name": str(f), "sem_seg_file_name": str(f), "image_id": f.stem} for f in files]
            register_sem_seg(NAME, ClassSplit(["cat", "dog"], unseen=["dog"]), load=lambda: records)
        if gone:
            files[1].unlink()
        return files[1]

    yield registered
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


@pytest.mark.parametrize("task", ["segmentation", "multilabel"])
def test_missing_test_photos_stop_a_training_at_its_start(task, register, demo_cfg, epsilon_cfg):
    options = ["DATASETS.TEST", f"('{NAME}',)"]
    cfg = demo_cfg(*options) if task == "segmentation" else epsilon_cfg(*options, "TEST.TOP_K", "(1,)")
    gone = register(task)
    with pytest.raises(FileNotFoundError, match=f"1 of the 3 photos of '{NAME}' are missing, such as {gone}"):
        Trainer(cfg)


@pytest.mark.parametrize(
    ("top_k", "message"), [((), "TEST.TOP_K is empty"), ((1, 2), r"TEST.TOP_K \[2\] is not within"), ((0,), r"\[0\]")]
)
def test_a_k_that_does_not_fit(top_k, message, register, epsilon_cfg):
    register("multilabel", gone=False)
    cfg = epsilon_cfg("DATASETS.TEST", f"('{NAME}',)")
    cfg.TEST.TOP_K = top_k
    with pytest.raises(ValueError, match=message):
        check_evaluation(cfg, Trainer.build_evaluator)


@pytest.mark.parametrize(("warmup", "iterations", "said"), [(50, 50, True), (51, 50, True), (49, 50, False), (0, 1, False)])
def test_a_warm_up_that_never_ends(warmup, iterations, said, epsilon_cfg, caplog):
    cfg = epsilon_cfg("SOLVER.WARMUP_ITERS", str(warmup), "SOLVER.MAX_ITER", str(iterations))
    with caplog.at_level(logging.WARNING):
        check_warmup(cfg)
    assert (f"SOLVER.WARMUP_ITERS {warmup} is not below SOLVER.MAX_ITER {iterations}" in caplog.text) == said
