"""A system of one linear layer, brought by ``--import tests/toy_system.py``: for the tests of the trainer and the launcher.

Its model appends the loss of each iteration, with all digits, to ``OUTPUT_DIR/losses_<rank>.txt``.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from zeroshot_d2 import System, register_system

NUM_TRAIN, NUM_VAL, DIM = 10, 5, 4


def add_toy_config(cfg: CfgNode) -> None:
    cfg.MODEL.META_ARCHITECTURE = "Toy"
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN = ("toy_train",)
    cfg.DATASETS.TEST = ("toy_val",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SOLVER.MAX_ITER = 12
    cfg.SOLVER.CHECKPOINT_PERIOD = 5
    cfg.SOLVER.BASE_LR = 0.05
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SEED = 3


@META_ARCH_REGISTRY.register()
class Toy(nn.Module):
    """Linear regression of the sum of the input, with noise that is the same for the whole batch."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, 1)
        self.sometimes = nn.Parameter(torch.ones(()))  # has a gradient only where image 0 is in the batch
        self.output_dir = Path(cfg.OUTPUT_DIR)
        self.kill_at = int(os.environ.get("TOY_KILL_AT", -1))  # the process dies in this iteration, as by kill -9

    def forward(self, batch: list[dict[str, Any]]) -> Any:
        x = torch.stack([sample["x"] for sample in batch])  # (N, DIM)
        prediction = self.linear(x).squeeze(1)
        if not self.training:
            return [{"prediction": value.item()} for value in prediction]
        iteration = get_event_storage().iter
        if iteration == self.kill_at:
            os._exit(9)
        error = prediction + 0.1 * torch.randn(()) - x.sum(1)
        first = torch.tensor([sample["image_id"] == 0 for sample in batch])
        if first.any():
            error = torch.where(first, error * self.sometimes, error)
        loss = error.square().mean()
        with (self.output_dir / f"losses_{comm.get_rank()}.txt").open("a") as file:
            file.write(f"{iteration} {loss.item()!r}\n")
        return {"loss_toy": loss}


class ToyMapper:
    """Draws augmentation noise from all three generators; None (or an error) for a dataset dict marked as broken."""

    def __init__(self, cfg: CfgNode, is_train: bool) -> None:
        self.is_train, self.skip_unreadable = is_train, cfg.INPUT.SKIP_UNREADABLE

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        if dataset_dict.get("broken"):
            if self.skip_unreadable:
                return None
            raise ValueError(f"cannot read {dataset_dict['file_name']}")
        x = torch.linspace(0, 1, DIM) + 0.1 * dataset_dict["image_id"]
        if self.is_train:
            x = x + random.random() + float(np.random.rand()) + torch.rand(DIM)  # noqa: NPY002
        return {**dataset_dict, "x": x}


class ToyEvaluator(DatasetEvaluator):
    def __init__(self, cfg: CfgNode, dataset_name: str) -> None:
        self.reset()

    def reset(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, float]]) -> None:
        self.seen += [(i["image_id"], o["prediction"]) for i, o in zip(inputs, outputs, strict=True)]

    def evaluate(self) -> dict[str, Any] | None:
        gathered = comm.gather(self.seen)
        if not comm.is_main_process():
            return None
        seen = sorted(pair for part in gathered for pair in part)
        score = sum(prediction for _, prediction in seen)
        return {"toy": {"protocol": "ZS3", "score": score, "absent": None, "images": [image for image, _ in seen]}}


def register_toy(name: str, num_images: int, broken: tuple[int, ...] = ()) -> None:
    """Register ``num_images`` samples; those in ``broken`` cannot be read."""
    dicts = [{"file_name": f"{name}/{i}.jpg", "image_id": i, "broken": i in broken} for i in range(num_images)]
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(evaluator_type="zero_shot_multilabel")


if "toy_train" not in DatasetCatalog:
    register_toy("toy_train", NUM_TRAIN)
    register_toy("toy_val", NUM_VAL)
    register_toy("toy_broken", NUM_TRAIN, broken=(2, 7))
    register_toy("toy_all_broken", NUM_TRAIN, broken=tuple(range(NUM_TRAIN)))


TOY = System("Toy", "multilabel", add_toy_config, mapper=ToyMapper, evaluator=ToyEvaluator)
register_system(TOY)
