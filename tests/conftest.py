"""Fixtures of the whole suite: no network, a cache of its own, and the configs and checkpoints of the demo world.

What takes long is made once, whichever of pytest-xdist's workers needs it first.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, hence here
# Tensors of the tests are small: more threads only wait for one another (a hundredfold on a busy machine).
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import open_clip
import pytest
import torch
from detectron2.config import CfgNode
from filelock import FileLock
from PIL import Image

from alignzeg_d2 import AlignZeg
from alignzeg_d2.predictor import AlignZegPredictor
from epsilon_d2 import Epsilon
from epsilon_d2.predictor import EpsilonPredictor
from zeroshot_d2.cli import load_config
from zeroshot_d2.clip.loader import DEMO_CLIP, create_clip
from zeroshot_d2.commands import train
from zeroshot_d2.demo_world import register_demo_world, register_demo_world_multilabel, render

REPOSITORY = Path(__file__).parents[1]

# Small data sets of the demo world.
register_demo_world("short_alignzeg_train", seed=31, num_images=300, vocabulary="seen")
register_demo_world_multilabel("short_epsilon_train", seed=31, num_images=320, vocabulary="seen", draw_unseen=False)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that needs a trained model is slow: one of them trains it."""
    for item in items:
        if {"alignzeg_checkpoint", "epsilon_checkpoint"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all workers of this run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(shared_folder: Path) -> Iterator[Path]:
    """Text embeddings and rendered images of the tests stay away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZEROSHOT_D2_CACHE", str(shared_folder / "cache"))
        yield shared_folder / "cache"


@pytest.fixture(scope="session")
def random_clip() -> open_clip.CLIP:
    """The demo world's CLIP, random; tests must not change it."""
    return create_clip(DEMO_CLIP.name, "")


# ---- configs and models on random weights ----


@pytest.fixture(scope="session")
def demo_cfg() -> Callable[..., CfgNode]:
    """``demo_cfg("SOME.KEY", value, ...)``: configs/demo/alignzeg.yaml on a random CLIP."""

    def build(*options: object) -> CfgNode:
        random = ["MODEL.ALIGNZEG.CLIP.PRETRAINED", "", "MODEL.ALIGNZEG.CLIP.TEMPLATES", "single"]
        return load_config("demo/alignzeg.yaml", [*random, "MODEL.ALIGNZEG.PBC.GAMMA", 0.3, *options])

    return build


@pytest.fixture(scope="session")
def demo_model(demo_cfg: Callable[..., CfgNode]) -> Callable[..., AlignZeg]:
    """``demo_model("SOME.KEY", value, ...)``: AlignZeg of :func:`demo_cfg`, in evaluation mode."""

    def build(*options: object) -> AlignZeg:
        return AlignZeg(demo_cfg(*options)).eval()

    return build


@pytest.fixture(scope="session")
def epsilon_cfg() -> Callable[..., CfgNode]:
    """``epsilon_cfg("SOME.KEY", value, ...)``: configs/demo/epsilon.yaml on a random CLIP."""

    def build(*options: object) -> CfgNode:
        labels = "MODEL.EPSILON.LABEL_EMBEDDINGS"
        random = ["MODEL.EPSILON.BACKBONE.PRETRAINED", "", f"{labels}.CLIP_PRETRAINED", "", f"{labels}.TEMPLATES", "single"]
        return load_config("demo/epsilon.yaml", [*random, "DATALOADER.NUM_WORKERS", 0, *options])

    return build


@pytest.fixture(scope="session")
def epsilon_model(epsilon_cfg: Callable[..., CfgNode]) -> Callable[..., Epsilon]:
    """``epsilon_model("SOME.KEY", value, ...)``: Epsilon of :func:`epsilon_cfg`, in evaluation mode."""

    def build(*options: object) -> Epsilon:
        torch.manual_seed(0)
        return Epsilon(epsilon_cfg(*options)).eval()

    return build


# ---- checkpoints, trained once ----


def _short_training(config: str, folder: Path, options: dict[str, object]) -> Path:
    """Train configs/demo/``config`` into ``folder`` unless that has been done, without an evaluation; the checkpoint."""
    checkpoint = folder / "model_final.pth"
    with FileLock(f"{folder}.lock"):
        if not checkpoint.is_file():
            common = {"DATASETS.TEST": "()", "DATALOADER.NUM_WORKERS": 0, "OUTPUT_DIR": folder}
            words = [str(word) for pair in {**common, **options}.items() for word in pair]
            train.main(["--config-file", f"demo/{config}", *words])
    return checkpoint


@pytest.fixture(scope="session")
def alignzeg_checkpoint(shared_folder: Path) -> Path:
    """AlignZeg on the demo world's trained CLIP after 40 iterations: it finds some of the classes."""
    options = {"DATASETS.TRAIN": "('short_alignzeg_train',)", "SOLVER.MAX_ITER": 40, "SOLVER.WARMUP_ITERS": 5}
    return _short_training("alignzeg.yaml", shared_folder / "short_alignzeg", options)


@pytest.fixture(scope="session")
def epsilon_checkpoint(shared_folder: Path) -> Path:
    """Epsilon on the demo world's trained CLIP after 40 iterations: its ranking beats chance."""
    options = {"DATASETS.TRAIN": "('short_epsilon_train',)", "SOLVER.MAX_EPOCHS": 0, "SOLVER.MAX_ITER": 40}
    return _short_training("epsilon.yaml", shared_folder / "short_epsilon", options)


@pytest.fixture(scope="session")
def trained_cfg(alignzeg_checkpoint: Path) -> Callable[..., CfgNode]:
    """``trained_cfg("SOME.KEY", value, ...)``: the demo config of AlignZeg with that checkpoint."""

    def build(*options: object) -> CfgNode:
        return load_config("demo/alignzeg.yaml", options, weights=alignzeg_checkpoint)

    return build


@pytest.fixture(scope="session")
def trained_epsilon_cfg(epsilon_checkpoint: Path) -> Callable[..., CfgNode]:
    """``trained_epsilon_cfg("SOME.KEY", value, ...)``: the demo config of Epsilon with that checkpoint."""

    def build(*options: object) -> CfgNode:
        return load_config("demo/epsilon.yaml", options, weights=epsilon_checkpoint)

    return build


@pytest.fixture
def predictor(trained_cfg: Callable[..., CfgNode]) -> AlignZegPredictor:
    """AlignZeg, three images at once."""
    return AlignZegPredictor(trained_cfg(), batch_size=3)


@pytest.fixture
def tagger(trained_epsilon_cfg: Callable[..., CfgNode]) -> EpsilonPredictor:
    """Epsilon, three images at once."""
    return EpsilonPredictor(trained_epsilon_cfg(), batch_size=3)


@pytest.fixture(scope="session")
def user_folder(alignzeg_checkpoint: Path, epsilon_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it after ``make demo``, for the commands of the documentation: the configs, the programs, both
    runs under output/demo, photos/a.jpg and b.png, photo.jpg, photo.png, image.png, and video.mp4. Change into it with
    ``monkeypatch.chdir``."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("configs", "datasets", "docs", "notebooks", "train_net.py"):
        (folder / name).symlink_to(REPOSITORY / name)
    for system, name, checkpoint in (
        ("alignzeg", "output/demo", alignzeg_checkpoint),
        ("epsilon", "output/demo/epsilon", epsilon_checkpoint),
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "model_final.pth").symlink_to(checkpoint)
        (folder / name / "config.yaml").write_text(load_config(f"demo/{system}.yaml").dump())
    (folder / "photos").mkdir()
    for index, name in enumerate(("photos/a.jpg", "photos/b.png", "photo.jpg", "photo.png", "image.png")):
        Image.fromarray(render(7, index).image).resize((91, 64)).save(folder / name)
    writer = cv2.VideoWriter(str(folder / "video.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 64))
    for index in range(3):
        writer.write(np.ascontiguousarray(render(7, index).image[:, :, ::-1]))
    writer.release()
    return folder
