"""The demo config of Epsilon on random weights, and inputs for it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg

from epsilon_d2 import Epsilon, add_epsilon_config

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def epsilon_cfg() -> Callable[..., CfgNode]:
    """``epsilon_cfg("SOME.KEY", value, ...)``: configs/demo/epsilon.yaml on a random CLIP."""

    def build(*options: object) -> CfgNode:
        cfg = get_cfg()
        add_epsilon_config(cfg)
        cfg.merge_from_file(str(REPOSITORY / "configs/demo/epsilon.yaml"))
        labels = "MODEL.EPSILON.LABEL_EMBEDDINGS"
        cfg.merge_from_list(["MODEL.EPSILON.BACKBONE.PRETRAINED", "", f"{labels}.CLIP_PRETRAINED", ""])
        cfg.merge_from_list([f"{labels}.TEMPLATES", "single", "DATALOADER.NUM_WORKERS", 0, *options])
        return cfg

    return build


@pytest.fixture(scope="session")
def epsilon_model(epsilon_cfg: Callable[..., CfgNode]) -> Callable[..., Epsilon]:
    """``epsilon_model("SOME.KEY", value, ...)``: Epsilon of :func:`epsilon_cfg`, in evaluation mode."""

    def build(*options: object) -> Epsilon:
        torch.manual_seed(0)
        return Epsilon(epsilon_cfg(*options)).eval()

    return build


@pytest.fixture
def inputs() -> list[dict[str, object]]:
    """Three training samples of the demo world, the second one without a label."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8),
            "dataset_name": "demo_world_multilabel_train",
            "positive_labels": labels,
        }
        for labels in ([0, 5, 7], [], [3])
    ]
