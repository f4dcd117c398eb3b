"""The wheel, installed in another environment and used outside the checkout: configs, data, CLIP and commands are in it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from zeroshot_d2 import __version__
from zeroshot_d2.demo_world import render

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path) -> Path:
    """The interpreter of a new environment with the wheel; its other packages are those of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
    ]
    with FileLock(shared_folder / "wheel.lock"):  # setuptools builds in one folder of the checkout
        subprocess.run([*pip, "--wheel-dir", str(folder), str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert __version__ in wheel.name
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    (site,) = environment.glob("lib/python3*/site-packages")
    # A folder that a .pth file names is searched, but its own .pth files, such as that of our editable install, are not
    # read.
    (site / "base.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    interpreter = environment / "bin" / "python"
    subprocess.run([interpreter, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    return interpreter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder without anything of the checkout but a photo."""
    path = tmp_path_factory.mktemp("outside")
    Image.fromarray(render(7, 0).image).save(path / "photo.png")
    return path


def environment() -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**clean, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def call(python: Path, folder: Path, *words: str) -> str:
    done = subprocess.run([python, *words], cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_configs_and_data_are_inside(python: Path, folder: Path) -> None:
    code = (
        "import zeroshot_d2, alignzeg_d2, epsilon_d2, baselines_d2\n"
        "from zeroshot_d2.datasets.builtin import load_class_list\n"
        "from detectron2.data import MetadataCatalog as m\n"
        "print(zeroshot_d2.__version__, zeroshot_d2.__file__, zeroshot_d2.config_file('coco/alignzeg.yaml'))\n"
        "print(zeroshot_d2.load_config('nus_wide/epsilon_ablation/gfp.yaml').MODEL.META_ARCHITECTURE)\n"
        "print(len(m.get('open_images_v4_test').class_split), len(load_class_list('ade20k_847').split))\n"
    )
    first, second, third = call(python, folder, "-c", code).splitlines()
    version, package, config = first.split()
    assert version == __version__ and Path(package).is_relative_to(python.parents[1])
    assert Path(config).is_relative_to(python.parents[1])
    assert second == "Epsilon" and third == "7586 847"


@pytest.fixture(scope="module")
def run(python: Path, folder: Path) -> Path:
    """A run in ``folder``, trained by the installed wheel."""
    (folder / "mine.py").write_text(
        "from zeroshot_d2.demo_world import register_demo_world\n"
        "register_demo_world('mine_train', seed=5, num_images=8, vocabulary='seen')\n"
        "register_demo_world('mine_val', seed=6, num_images=4)\n"
    )
    options = ["DATASETS.TRAIN", "('mine_train',)", "DATASETS.TEST", "('mine_val',)", "SOLVER.MAX_ITER", "2"]
    train = ["-m", "zeroshot_d2", "train", "--config-file", "demo/alignzeg.yaml", "--import", "mine.py"]
    call(python, folder, *train, "OUTPUT_DIR", "run", *options, "SOLVER.IMS_PER_BATCH", "4", "DATALOADER.NUM_WORKERS", "0")
    return folder / "run"


def test_train_predict_and_export_outside_the_checkout(python: Path, folder: Path, run: Path) -> None:
    assert json.loads((run / "results.json").read_text())["mine_val"]["num_images"] == 4
    # mine_val is not registered now: the checkpoint carries the vocabulary.
    script = python.with_name("zeroshot-d2")
    done = subprocess.run(
        [script, "predict", "--model", "run", "--input", "photo.png", "--output", "out"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "1 of 1 files done" in done.stdout, done.stderr
    assert len(json.loads((folder / "out" / "vocabulary.json").read_text())) == 38


@pytest.mark.usefixtures("run")
def test_the_web_page_starts_outside_the_checkout(python: Path, folder: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    words = [python, "-m", "zeroshot_d2", "web", "--model", "run", "--port", str(port)]
    server = subprocess.Popen(
        words, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        for _ in range(240):
            assert server.poll() is None, server.communicate()[0]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
                    assert b"Zero-shot recognition" in page.read()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail("the page did not answer")
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
