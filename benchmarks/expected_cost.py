"""What training is expected to take on GPUs, calculated: ``python -m benchmarks.expected_cost [coco/alignzeg.yaml ...]``.

For every config of photographs one training step of one image is run at full size, on the CPU with random weights. Nothing
is timed. Counted are

* the operations of the step, forward and backward (torch.utils.flop_counter: matrix products and convolutions; a
  multiplication and an addition are two);
* the bytes that are kept between forward and backward: the storages that autograd saves, parameters left out.

The rest are assumptions, which stand in :data:`ASSUMPTIONS` and in the page:

    iterations    SOLVER.MAX_ITER, or SOLVER.MAX_EPOCHS times the images of DATASETS.TRAIN over the batch
    batch         SOLVER.IMS_PER_BATCH over the GPUs
    compute       batch x operations / (peak x utilisation)
    loading       batch / (DATALOADER.NUM_WORKERS x images that a worker prepares in a second)
    hours         iterations x the larger of the two
    memory        4 bytes a parameter, 12 more a trained one (gradient, two moments of Adam), batch x what is kept, which
                  mixed precision halves, and what CUDA needs for itself

``--output FILE`` puts the table between its marks in a page.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pages import put_table
from epsilon_d2 import tagger
from zeroshot_d2.cli import Parser, config_keys, load_config
from zeroshot_d2.clip import frozen_clip
from zeroshot_d2.clip.loader import create_clip, embedding_dim
from zeroshot_d2.datasets.builtin import MULTILABEL_DATASETS, SEM_SEG_DATASETS
from zeroshot_d2.system import find_system

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
GPUS = (1, 4, 8)
LABELS = 5  # of such an image, in multi-label classification
OPEN_IMAGES = 9_011_219  # the training images of the release; those with a label are fewer
BEGIN, END = "<!-- benchmarks.expected_cost: begin -->", "<!-- benchmarks.expected_cost: end -->"


@dataclass(frozen=True)
class Assumptions:
    """Of the machine.

    Args:
        gpu: its name.
        peak_amp, peak: operations a second, in mixed precision and in float32.
        utilisation_amp, utilisation: shares of them that training reaches.
        prepared: images that a loader worker prepares in a second, of each task.
        cuda: bytes that CUDA's context, libraries and unused gaps take.
    """

    gpu: str
    peak_amp: float
    peak: float
    utilisation_amp: float
    utilisation: float
    prepared: dict[str, float]
    cuda: float


ASSUMPTIONS = Assumptions(
    gpu="NVIDIA A100",
    peak_amp=312e12,
    peak=19.5e12,
    utilisation_amp=0.3,
    utilisation=0.7,
    prepared={"segmentation": 15, "multilabel": 100},
    cuda=2e9,
)


@dataclass(frozen=True)
class Counted:
    """What a config's training step needs.

    Args:
        parameters: all of the model's.
        trained: those that the optimiser changes.
        operations: of an image, forward and backward.
        kept: bytes of an image between forward and backward.
    """

    parameters: int
    trained: int
    operations: float
    kept: float


# -------------------------------------------------------------------------------------------------------- counting
class _RandomVectors:
    """In place of text prototypes and word vectors, which are computed once and do not count."""

    templates = ("a photo of a {}.",)

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, prompts: Sequence[str], **at_hand: Any) -> Tensor:
        return F.normalize(torch.randn(len(prompts), self.width), dim=-1)


# One for all configs, frozen as it is: to draw a ViT takes longer than to run it.
build_once = functools.cache(create_clip)


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Within the block models are built without pretrained weights, text towers and files."""
    with (
        mock.patch.object(frozen_clip, "create_clip", build_once),
        mock.patch.object(frozen_clip, "fingerprint", lambda clip: "random"),
        mock.patch.object(frozen_clip, "ClipTextEmbeddings", lambda *, name, **unused: _RandomVectors(embedding_dim(name))),
        mock.patch.object(tagger, "build_label_embeddings", lambda cfg: (_RandomVectors(300), {"sha256": ""})),
    ):
        yield


def config(name: str) -> CfgNode:
    """A config for random weights on the CPU."""
    cfg = load_config(CONFIGS / name)
    cfg.MODEL.DEVICE = "cpu"
    for key in config_keys(cfg):
        if key.startswith("MODEL.") and key.endswith((".CLIP.PRETRAINED", ".BACKBONE.PRETRAINED")):
            cfg.merge_from_list([key, ""])
    return cfg


def inputs(cfg: CfgNode) -> list[dict[str, Any]]:
    """A batch of one training input, as the mapper of the config's task gives it, with noise for a photo."""
    generator = torch.Generator().manual_seed(0)
    dataset = cfg.DATASETS.TRAIN[0]
    classes = len(MetadataCatalog.get(dataset).class_split)
    segmentation = find_system(cfg.MODEL.META_ARCHITECTURE).task == "segmentation"
    height, width = map(int, cfg.INPUT.CROP.SIZE) if segmentation else (cfg.INPUT.IMAGE_SIZE, cfg.INPUT.IMAGE_SIZE)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    entry: dict[str, Any] = {"image": image, "dataset_name": dataset, "height": height, "width": width}
    if segmentation:
        blocks = torch.randint(0, classes, (1, 1, 3, 3), generator=generator).float()
        entry["sem_seg"] = F.interpolate(blocks, size=(height, width))[0, 0].long()
    else:
        entry["positive_labels"] = torch.randperm(classes, generator=generator)[:LABELS].sort().values.numpy()
        entry["negative_labels"] = torch.zeros(0, dtype=torch.long).numpy()
    return [entry]


def count(cfg: CfgNode) -> Counted:
    """Run a training step of a config and count."""
    torch.manual_seed(0)
    with without_weights():
        model = build_model(cfg).train()
    batch = inputs(cfg)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = model(batch)
    del losses
    # Fused attention keeps no matrix of all pairs, so it is what memory is counted with; but only its plain form is counted
    # by torch on every device.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        sum(model(batch).values()).backward()
    parameters = list(model.parameters())
    return Counted(
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        operations=counter.get_total_flops(),
        kept=sum(kept.values()),
    )


# ------------------------------------------------------------------------------------------------------ estimating
def training_images(cfg: CfgNode) -> int:
    """How many images DATASETS.TRAIN has."""
    known = {dataset.name: dataset.num_images for dataset in (*SEM_SEG_DATASETS, *MULTILABEL_DATASETS)}
    return sum(known[name] or OPEN_IMAGES for name in cfg.DATASETS.TRAIN)


def iterations(cfg: CfgNode) -> float:
    if cfg.SOLVER.MAX_EPOCHS:
        return cfg.SOLVER.MAX_EPOCHS * training_images(cfg) / cfg.SOLVER.IMS_PER_BATCH
    return cfg.SOLVER.MAX_ITER


def memory(cfg: CfgNode, counted: Counted, gpus: int, assumed: Assumptions = ASSUMPTIONS) -> float:
    """Bytes that each of ``gpus`` GPUs needs."""
    batch = cfg.SOLVER.IMS_PER_BATCH / gpus
    kept = counted.kept / (2 if cfg.SOLVER.AMP.ENABLED else 1)
    return 4 * counted.parameters + 12 * counted.trained + batch * kept + assumed.cuda


def hours(cfg: CfgNode, counted: Counted, gpus: int, assumed: Assumptions = ASSUMPTIONS) -> tuple[float, str]:
    """(hours of training on ``gpus`` GPUs, what limits it: "compute" or "loading")."""
    batch = cfg.SOLVER.IMS_PER_BATCH / gpus
    amp = cfg.SOLVER.AMP.ENABLED
    speed = assumed.peak_amp * assumed.utilisation_amp if amp else assumed.peak * assumed.utilisation
    prepared = assumed.prepared[find_system(cfg.MODEL.META_ARCHITECTURE).task]
    seconds = {
        "compute": batch * counted.operations / speed,
        "loading": batch / (max(1, cfg.DATALOADER.NUM_WORKERS) * prepared),
    }
    limit = max(seconds, key=lambda key: seconds[key])
    return iterations(cfg) * seconds[limit] / 3600, limit


HEADERS = ["config", "trained", "TFLOP an image", *(f"GB, {n} GPU{'s' * (n > 1)}" for n in GPUS)]
HEADERS += [*(f"hours, {n} GPU{'s' * (n > 1)}" for n in GPUS), "limit"]


def row(name: str) -> list[str]:
    """The table's row of a config."""
    cfg = config(name)
    counted = count(cfg)
    times = [hours(cfg, counted, gpus) for gpus in GPUS]
    return [
        f"`configs/{name}`",
        f"{counted.trained / 1e6:.1f} M",
        f"{counted.operations / 1e12:.2f}",
        *(f"{memory(cfg, counted, gpus) / 1e9:.1f}" for gpus in GPUS),
        *(f"{time:.1f}" for time, _ in times),
        times[0][1],
    ]


def photograph_configs() -> list[str]:
    """The configs that are not a demo world's, whose trainings are measured in docs/results.md."""
    names = (path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith("demo"))


def main(argv: Sequence[str] | None = None) -> None:
    """Run with the command-line arguments ``argv``.

    Raises:
        ValueError: the page has no marks.
    """
    parser = Parser("python -m benchmarks.expected_cost", __doc__, takes_keys=False)
    parser.add_argument(
        "configs", nargs="*", default=photograph_configs(), help="below configs/; default: all but the demo's"
    )
    parser.add_argument("--output", type=Path, help="a page with the marks between which the table goes")
    args: argparse.Namespace = parser.parse(argv)
    rows: list[list[str]] = []
    for name in args.configs:
        rows.append(row(name))
        gc.collect()  # models have cycles, and two of them fill a machine's memory
        print(" | ".join(rows[-1]), flush=True)
    if args.output is not None:
        put_table(args.output, BEGIN, END, table(rows))


def table(rows: Sequence[Sequence[str]]) -> str:
    """The rows as Markdown."""
    return tabulate(rows, headers=HEADERS, tablefmt="pipe", disable_numparse=True)


if __name__ == "__main__":
    main()
