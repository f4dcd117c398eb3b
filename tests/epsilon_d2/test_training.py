"""Epsilon through train_net.py: it learns, epochs become iterations, two processes are one, and a run is resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comparisons import NETWORK
from detectron2.data import DatasetCatalog, MetadataCatalog

from zeroshot_d2 import launch
from zeroshot_d2.commands import train as verb
from zeroshot_d2.demo_world import SPLIT, register_demo_world_multilabel

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SETS = {"epsilon_small_train": (1, 64, "seen"), "epsilon_small_test": (2, 40, "all")}
# What --import brings to other processes.
REGISTRATION = f"""
from zeroshot_d2.demo_world import register_demo_world_multilabel

for name, (seed, count, vocabulary) in {SETS!r}.items():
    register_demo_world_multilabel(name, seed, count, vocabulary=vocabulary)
"""


@pytest.fixture(autouse=True)
def small_sets() -> Iterator[None]:
    for name, (seed, count, vocabulary) in SETS.items():
        register_demo_world_multilabel(name, seed, count, vocabulary=vocabulary)
    yield
    for name in SETS:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def arguments(output: Path, *flags: str, **options: object) -> list[str]:
    settings = {
        "OUTPUT_DIR": output,
        "MODEL.EPSILON.BACKBONE.PRETRAINED": "",
        "MODEL.EPSILON.LABEL_EMBEDDINGS.TEMPLATES": "single",
        "DATASETS.TRAIN": "('epsilon_small_train',)",
        "DATASETS.TEST": "('epsilon_small_test',)",
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 16,
        "SOLVER.MAX_EPOCHS": 1,
        **{key.replace("__", "."): value for key, value in options.items()},
    }
    words = [str(word) for pair in settings.items() for word in pair]
    return ["--config-file", "demo/epsilon.yaml", *flags, *words]


def results(output: Path) -> dict[str, Any]:
    return json.loads((output / "results.json").read_text())["epsilon_small_test"]


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return [line["total_loss"] for line in lines if "total_loss" in line]


def test_a_short_training_ranks_better_than_chance(epsilon_checkpoint, tmp_path):
    """With the bundled CLIP, 40 iterations rank the classes 1.5 times better than their frequency."""
    options = {
        "MODEL__EPSILON__BACKBONE__PRETRAINED": "bundled",
        "MODEL__EPSILON__LABEL_EMBEDDINGS__TEMPLATES": "vild",
        "MODEL__WEIGHTS": epsilon_checkpoint,
    }
    given = launch.run(verb.parser().parse(arguments(tmp_path, "--eval-only", **options)))
    numbers = given["epsilon_small_test"]
    records = list(DatasetCatalog.get("epsilon_small_test"))
    chance = 100 * sum(len(record["positive_labels"]) for record in records) / (len(records) * len(SPLIT))
    assert numbers["protocol"] == "GZSL" and numbers["num_images"] == 40
    assert numbers["GZSL_mAP"] > 1.5 * chance
    assert results(tmp_path)["GZSL_mAP"] == numbers["GZSL_mAP"]


def test_two_processes_train_and_evaluate_as_one(tmp_path):
    options = {"MODEL__EPSILON__GPA__DROPOUT": 0.0, "SOLVER__MAX_EPOCHS": 0, "SOLVER__MAX_ITER": 3}
    assert verb.main(arguments(tmp_path / "1", **options)) == 0
    (tmp_path / "sets.py").write_text(REGISTRATION)
    command = [sys.executable, str(ROOT / "train_net.py")]
    command += arguments(tmp_path / "2", "--num-gpus", "2", "--import", "sets.py", **options)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = results(tmp_path / "1"), results(tmp_path / "2")
    assert second["num_images"] == first["num_images"] == 40
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=NETWORK)
    assert second["AP"] == pytest.approx(first["AP"], abs=0.5)  # a tie in the ranking may fall either way
    assert second["GZSL_P@5"] == pytest.approx(first["GZSL_P@5"], abs=0.5)


def test_a_resumed_run_ends_with_the_same_results(tmp_path):
    verb.main(arguments(tmp_path / "whole", SOLVER__MAX_EPOCHS=1))
    # an epoch of 64 images in batches of 16
    assert (tmp_path / "whole/last_checkpoint").is_file()
    assert "4 iterations" in (tmp_path / "whole/log.txt").read_text()
    verb.main(arguments(tmp_path / "stopped", SOLVER__MAX_EPOCHS=0, SOLVER__MAX_ITER=2))
    verb.main(arguments(tmp_path / "stopped", "--resume", SOLVER__MAX_EPOCHS=1))
    assert results(tmp_path / "whole") == results(tmp_path / "stopped")


def test_the_config_says_which_system_is_meant(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("MODEL:\n  META_ARCHITECTURE: Gamma\n")
    with pytest.raises(ValueError, match="META_ARCHITECTURE 'Gamma' is no system; there are AlignZeg, .*Epsilon"):
        verb.main(["--config-file", str(config)])
