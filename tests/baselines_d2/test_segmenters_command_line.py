"""The compared segmenters through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zeroshot_d2 import demo_world, load_config
from zeroshot_d2.commands import train
from zeroshot_d2.predictor import build_predictor


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "options"), [("san", ()), ("zegclip", ("SOLVER.WARMUP_ITERS", "1")), ("simbaseline", ())]
)
def test_trains_evaluates_and_predicts(tmp_path: Path, config: str, options: tuple[str, ...]) -> None:
    folder, images = tmp_path / "run", "('short_alignzeg_train',)"
    size = ("SOLVER.MAX_ITER", "3", "DATASETS.TRAIN", images, "DATASETS.TEST", images, "DATALOADER.NUM_WORKERS", "0")
    arguments = ["--config-file", f"demo/baselines/{config}.yaml", *size, *options, "OUTPUT_DIR", str(folder)]
    assert train.main(arguments) == 0
    (numbers,) = json.loads((folder / "results.json").read_text(encoding="utf-8")).values()
    assert 0 <= numbers["mIoU"] <= 100
    cfg = load_config(folder / "config.yaml", weights=folder / "model_final.pth")
    segmentation = build_predictor(cfg)(demo_world.render(1, 1).image[:, :, ::-1].copy(), vocabulary=["grass", "red tile"])
    assert segmentation.labels.shape == (64, 64)
