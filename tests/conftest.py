"""Fixtures of the whole suite: no network, a cache of its own, and the demo world's CLIP and config with random weights."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, hence here
# Tensors of the tests are small: more threads only wait for one another (a hundredfold on a busy machine).
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path

import open_clip
import pytest
from detectron2.config import CfgNode, get_cfg

from alignzeg_d2 import AlignZeg, add_alignzeg_config
from zeroshot_d2.clip_loader import DEMO_CLIP_NAME, create_clip

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
