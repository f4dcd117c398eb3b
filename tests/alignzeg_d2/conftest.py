"""A tiny checkpoint of the demo config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser

import train_net
from alignzeg_d2 import add_alignzeg_config
from alignzeg_d2.predictor import AlignZegPredictor
from zeroshot_d2.demo_world import register_demo_world

DEMO_CONFIG = Path(__file__).parents[2] / "configs" / "demo" / "alignzeg.yaml"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of configs/demo/alignzeg.yaml after two iterations on four images."""
    folder = tmp_path_factory.mktemp("tiny_checkpoint")
    register_demo_world("tiny_checkpoint_train", seed=3, num_images=4, vocabulary="seen")
    options = {
        "DATASETS.TRAIN": "('tiny_checkpoint_train',)",
        "DATASETS.TEST": "()",
        "SOLVER.MAX_ITER": "2",
        "SOLVER.IMS_PER_BATCH": "2",
        "DATALOADER.NUM_WORKERS": "0",
        "OUTPUT_DIR": str(folder),
    }
    words = [word for pair in options.items() for word in pair]
    train_net.main(default_argument_parser().parse_args(["--config-file", str(DEMO_CONFIG), *words]))
    return folder / "model_final.pth"


@pytest.fixture(scope="session")
def tiny_cfg(tiny_checkpoint: Path) -> Callable[..., CfgNode]:
    """``tiny_cfg("SOME.KEY", value, ...)``: the demo config with that checkpoint."""

    def build(*options: object) -> CfgNode:
        cfg = get_cfg()
        add_alignzeg_config(cfg)
        cfg.merge_from_file(str(DEMO_CONFIG))
        cfg.merge_from_list(["MODEL.WEIGHTS", str(tiny_checkpoint), *options])
        return cfg

    return build


@pytest.fixture
def predictor(tiny_cfg: Callable[..., CfgNode]) -> AlignZegPredictor:
    return AlignZegPredictor(tiny_cfg(), batch_size=3)
