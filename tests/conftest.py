"""Fixtures of the whole suite: no network, a cache of its own, and the demo world's CLIP and config with random weights."""

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
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser
from PIL import Image

import train_net
from alignzeg_d2 import AlignZeg, add_alignzeg_config
from zeroshot_d2.clip_loader import DEMO_CLIP_NAME, create_clip
from zeroshot_d2.demo_world import register_demo_world, register_demo_world_multilabel, render

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Text embeddings and rendered images of the tests stay away from the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZEROSHOT_D2_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def random_clip() -> open_clip.CLIP:
    """The demo world's CLIP, random; tests must not change it."""
    return create_clip(DEMO_CLIP_NAME, "")


@pytest.fixture(scope="session")
def demo_cfg() -> Callable[..., CfgNode]:
    """``demo_cfg("SOME.KEY", value, ...)``: configs/demo/alignzeg.yaml on a random CLIP."""

    def build(*options: object) -> CfgNode:
        cfg = get_cfg()
        add_alignzeg_config(cfg)
        cfg.merge_from_file(str(REPOSITORY / "configs/demo/alignzeg.yaml"))
        cfg.merge_from_list(["MODEL.ALIGNZEG.CLIP.PRETRAINED", "", "MODEL.ALIGNZEG.CLIP.TEMPLATES", "single"])
        cfg.merge_from_list(["MODEL.ALIGNZEG.PBC.GAMMA", 0.3, *options])
        return cfg

    return build


@pytest.fixture(scope="session")
def demo_model(demo_cfg: Callable[..., CfgNode]) -> Callable[..., AlignZeg]:
    """``demo_model("SOME.KEY", value, ...)``: AlignZeg of :func:`demo_cfg`, in evaluation mode."""

    def build(*options: object) -> AlignZeg:
        return AlignZeg(demo_cfg(*options)).eval()

    return build


def _short_training(config: str, folder: Path, options: dict[str, object]) -> Path:
    """Train configs/demo/``config`` into ``folder``, without an evaluation; the checkpoint."""
    common = {"DATASETS.TEST": "()", "DATALOADER.NUM_WORKERS": 0, "OUTPUT_DIR": folder}
    words = [str(word) for pair in {**common, **options}.items() for word in pair]
    arguments = ["--config-file", str(REPOSITORY / "configs/demo" / config), *words]
    train_net.main(default_argument_parser().parse_args(arguments))
    return folder / "model_final.pth"


@pytest.fixture(scope="session")
def alignzeg_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlignZeg on the demo world's trained CLIP after 40 iterations: it finds some of the classes."""
    register_demo_world("short_alignzeg_train", seed=31, num_images=300, vocabulary="seen")
    options = {"DATASETS.TRAIN": "('short_alignzeg_train',)", "SOLVER.MAX_ITER": 40, "SOLVER.WARMUP_ITERS": 5}
    return _short_training("alignzeg.yaml", tmp_path_factory.mktemp("short_alignzeg"), options)


@pytest.fixture(scope="session")
def epsilon_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Epsilon on the demo world's trained CLIP after 40 iterations: its ranking beats chance."""
    register_demo_world_multilabel("short_epsilon_train", seed=31, num_images=320, vocabulary="seen", draw_unseen=False)
    options = {"DATASETS.TRAIN": "('short_epsilon_train',)", "SOLVER.MAX_EPOCHS": 0, "SOLVER.MAX_ITER": 40}
    return _short_training("epsilon.yaml", tmp_path_factory.mktemp("short_epsilon"), options)


@pytest.fixture(scope="session")
def user_folder(
    alignzeg_checkpoint: Path, epsilon_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder as a user has it after ``make demo``, for the commands of the documentation: the configs, the programs, both
    checkpoints under output/demo, photos/a.jpg and b.png, photo.jpg, photo.png, image.png, and video.mp4. Change into it
    with ``monkeypatch.chdir``."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("configs", "datasets", "docs", "notebooks", "train_net.py"):
        (folder / name).symlink_to(REPOSITORY / name)
    for name, checkpoint in (("output/demo", alignzeg_checkpoint), ("output/demo/epsilon", epsilon_checkpoint)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "model_final.pth").symlink_to(checkpoint)
    (folder / "photos").mkdir()
    for index, name in enumerate(("photos/a.jpg", "photos/b.png", "photo.jpg", "photo.png", "image.png")):
        Image.fromarray(render(7, index).image).resize((91, 64)).save(folder / name)
    writer = cv2.VideoWriter(str(folder / "video.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 64))
    for index in range(3):
        writer.write(np.ascontiguousarray(render(7, index).image[:, :, ::-1]))
    writer.release()
    return folder
