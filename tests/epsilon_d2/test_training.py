"""Epsilon through train_net.py: it learns, epochs become iterations, two processes are one, and a run is resumed."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser

import train_net
from zeroshot_d2.demo_world import SPLIT, register_demo_world_multilabel

ROOT = Path(__file__).resolve().parents[2]
SETS = {"epsilon_small_train": (1, 64, "seen"), "epsilon_small_test": (2, 40, "all")}
PROGRAM = """
import sys
from detectron2.engine import default_argument_parser
from zeroshot_d2.demo_world import register_demo_world_multilabel
from zeroshot_d2.launch import launch
import train_net

def main(args):
    for name, (seed, count, vocabulary) in {sets!r}.items():
        register_demo_world_multilabel(name, seed, count, vocabulary=vocabulary)
    return train_net.main(args)

if __name__ == "__main__":
    launch(main, default_argument_parser().parse_args())
"""


@pytest.fixture
def small_sets():
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
    return ["--config-file", str(ROOT / "configs/demo/epsilon.yaml"), *flags, *words]


def parse(words: list[str]) -> argparse.Namespace:
    return default_argument_parser().parse_args(words)


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return [line["total_loss"] for line in lines if "total_loss" in line]


def test_a_short_training_ranks_better_than_chance(small_sets, tmp_path):
    """With the bundled CLIP, 60 iterations rank the classes 1.5 times better than their frequency."""
    options = {
        "MODEL__EPSILON__BACKBONE__PRETRAINED": "bundled",
        "SOLVER__MAX_EPOCHS": 15,
        "SOLVER__STEPS_EPOCHS": "()",
    }
    results = train_net.main(parse(arguments(tmp_path, **options)))
    records = list(DatasetCatalog.get("epsilon_small_test"))
    chance = 100 * sum(len(record["positive_labels"]) for record in records) / (len(records) * len(SPLIT))
    numbers = results["epsilon_small_test"]
    assert numbers["protocol"] == "GZSL" and numbers["num_images"] == 40
    assert numbers["GZSL_mAP"] > 1.5 * chance
    assert json.loads((tmp_path / "results.json").read_text())["epsilon_small_test"]["GZSL_mAP"] == numbers["GZSL_mAP"]
    # 15 epochs of 64 images in batches of 16
    assert (tmp_path / "last_checkpoint").is_file() and "60 iterations" in (tmp_path / "log.txt").read_text()


def test_two_processes_train_and_evaluate_as_one(small_sets, tmp_path):
    options = {"MODEL__EPSILON__GPA__DROPOUT": 0.0, "SOLVER__MAX_EPOCHS": 0, "SOLVER__MAX_ITER": 3}
    train_net.main(parse(arguments(tmp_path / "1", **options)))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(sets=SETS))
    words = arguments(tmp_path / "2", "--num-gpus", "2", "--dist-url", "auto", **options)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(program), *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (json.loads((tmp_path / n / "results.json").read_text())["epsilon_small_test"] for n in ("1", "2"))
    assert second["num_images"] == first["num_images"] == 40
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-4)
    assert second["AP"] == pytest.approx(first["AP"], abs=0.5)
    assert second["GZSL_P@5"] == pytest.approx(first["GZSL_P@5"], abs=0.5)


def test_a_resumed_run_ends_with_the_same_results(small_sets, tmp_path):
    train_net.main(parse(arguments(tmp_path / "whole", SOLVER__MAX_EPOCHS=1)))
    train_net.main(parse(arguments(tmp_path / "stopped", SOLVER__MAX_EPOCHS=0, SOLVER__MAX_ITER=2)))
    train_net.main(parse(arguments(tmp_path / "stopped", "--resume", SOLVER__MAX_EPOCHS=1)))
    whole, stopped = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "stopped"))
    assert whole == stopped


def test_the_config_says_which_system_is_meant(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("MODEL:\n  META_ARCHITECTURE: Gamma\n")
    with pytest.raises(ValueError, match=r"is 'Gamma'; choose one of \['AlignZeg', 'Epsilon'\]"):
        train_net.main(parse(["--config-file", str(config)]))
