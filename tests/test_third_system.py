"""A system from a file outside the packages trains, evaluates and predicts by the command line, with no edit anywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from zeroshot_d2.demo_world import render

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
TASKS = {"ToySegmenter": "masks", "ToyTagger": "tags"}
SAME_START = "import multiprocessing as m, sys\nif __name__ == '__main__':\n    m.set_start_method(sys.argv.pop(1))\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A contributor's folder: methods, configs and photos, far from the checkout."""
    path = tmp_path_factory.mktemp("contributor")
    shutil.copy(ROOT / "tests" / "toy_methods.py", path)
    for name, kind in TASKS.items():
        (path / f"{name}.yaml").write_text(
            f"VERSION: 2\nMODEL:\n  META_ARCHITECTURE: {name}\n"
            f'DATASETS:\n  TRAIN: ("toy_{kind}_train",)\n  TEST: ("toy_{kind}_val",)\n'
        )
    (path / "photos").mkdir()
    for index in range(2):
        Image.fromarray(render(9, index).image).save(path / "photos" / f"{index}.png")
    # What `python -m zeroshot_d2` does, under another start method of multiprocessing, as Python 3.14 has it by default.
    main = "    from zeroshot_d2.__main__ import main\n    sys.exit(main(sys.argv[1:]))\n"
    (path / "start.py").write_text(SAME_START + main)
    return path


def call(folder: Path, *words: str, start: tuple[str, ...] = ("-m", "zeroshot_d2")) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(ROOT), str(folder)))}
    command = [sys.executable, "-W", "ignore", *start, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("system", TASKS)
def test_train_evaluate_and_predict(folder: Path, system: str) -> None:
    run = f"out/{system}"
    call(folder, "train", "--config-file", f"{system}.yaml", "--import", "toy_methods.py", "OUTPUT_DIR", run)
    results = json.loads((folder / run / "results.json").read_text())
    (numbers,) = results.values()
    assert numbers["num_images"] == 6 and numbers["protocol"] in ("GZS3", "GZSL")
    # A dotted name does as well as a file.
    said = call(folder, "predict", "--model", run, "--import", "toy_methods", "--input", "photos", "--output", f"{run}/p")
    assert "2 of 2 files done" in said
    written = json.loads((folder / run / "p" / "0.json").read_text())
    assert written["classes"] and {"name", "unseen", "score"} <= written["classes"][0].keys()
    names = ["--vocabulary", "plain red tile, dark water|dark sea"]
    call(folder, "predict", "--model", run, "--import", "toy_methods", "--input", "photos", *names, "--output", f"{run}/v")
    shown = json.loads((folder / run / "v" / "vocabulary.json").read_text())
    assert [entry["name"] for entry in shown] == ["plain red tile", "dark water"]
    assert [entry["unseen"] for entry in shown] == [False, True]  # the checkpoint says what it was trained on


@pytest.mark.parametrize("system", TASKS)
def test_two_processes(folder: Path, system: str) -> None:
    options = ["OUTPUT_DIR", f"out/two_{system}"]
    call(folder, "train", "--config-file", f"{system}.yaml", "--import", "toy_methods.py", "--num-gpus", "2", *options)
    (numbers,) = json.loads((folder / "out" / f"two_{system}" / "results.json").read_text()).values()
    assert numbers["num_images"] == 6


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_loader_workers_that_import_nothing_by_themselves(folder: Path, method: str) -> None:
    output = f"out/{method}"
    options = ["OUTPUT_DIR", output, "DATALOADER.NUM_WORKERS", "1"]
    words = ["train", "--config-file", "ToySegmenter.yaml", "--import", "toy_methods.py", *options]
    call(folder, method, *words, start=("start.py",))
    (numbers,) = json.loads((folder / output / "results.json").read_text()).values()
    assert numbers["num_images"] == 6


def test_a_part_that_a_system_lacks_is_named(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zeroshot_d2", "export", "--config-file", "ToySegmenter.yaml", "--import", "toy_methods.py"]
        + ["--output", "x.onnx"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "the system 'ToySegmenter' has no 'exporter' part; AlignZeg, Epsilon have one" in done.stderr
    assert "Traceback" not in done.stderr
