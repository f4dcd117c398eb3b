"""The check that one batch can be learnt."""

from __future__ import annotations

import pytest

from zeroshot_d2.cli import import_systems, load_config
from zeroshot_d2.commands import train
from zeroshot_d2.demo_world import register_demo_world, register_demo_world_multilabel
from zeroshot_d2.overfit import overfit_one_batch, verdict

import_systems()
register_demo_world("overfit_world", seed=41, num_images=16, vocabulary="seen")
register_demo_world_multilabel("overfit_labels", seed=41, num_images=96, vocabulary="seen")


def test_the_verdict() -> None:
    good, text = verdict({"loss_a": 2.0, "loss_b": 2.0}, {"loss_a": 0.5, "loss_b": 0.5})
    assert good and "fell to 25 %" in text
    bad, text = verdict({"loss_a": 2.0}, {"loss_a": 1.9})
    assert not bad and "NOT learnt" in text and "95 %" in text


@pytest.mark.slow
def test_alignzeg_learns_a_batch() -> None:
    opts = ["DATASETS.TRAIN", "('overfit_world',)", "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 4]
    first, last = overfit_one_batch(load_config("demo/alignzeg.yaml", opts), 60)
    assert verdict(first, last)[0], (first, last)


def test_the_command_says_when_nothing_is_learnt(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    words = ["--config-file", "demo/epsilon.yaml", "--overfit-one-batch", "2", "DATASETS.TRAIN", "('overfit_labels',)"]
    words += ["DATALOADER.NUM_WORKERS", "0", "SOLVER.BASE_LR", "1e-9", "OUTPUT_DIR", str(tmp_path / "out")]
    assert train.main(words) == 1
    assert "NOT learnt" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
