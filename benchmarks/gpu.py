"""How fast the full-size models are on a GPU: ``python -m benchmarks.gpu --output FOLDER``.

It takes at most 6 minutes on one card.

AlignZeg without prompts and with 20 (640 x 640, 171 classes) and Epsilon (224 x 224, 1,006 classes), random weights, in
training and inference, in float32, float16 and bfloat16, compiled and not, with 1 to 16 images a batch:

* images per second, of the median step; batches come from the CPU's memory, results stay on the card;
* the most memory that tensors held on the card (torch.cuda.max_memory_allocated);
* the share that the network's products and convolutions reach of the card's rate: that of a product of two large matrices of
  the same precision, measured at the start;
* whether a training waits for its loader: images per second of the training pipeline on this machine's CPUs, beside it;
* whether everything stayed finite, and how many steps float16's scaler skipped.

Where there are two cards, two processes also train together through NCCL. The most important cases come first, and what the
time does not suffice for is listed as such. gpu.json is written after every case, gpu.md is its table. The command ends with
status 1 where a case failed by anything but a lack of memory.

``--device cpu --tiny`` runs the same on a CPU with small models, to try the command itself; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from alignzeg_d2.alignzeg import AlignZeg
from benchmarks import alignzeg_cost, loading
from benchmarks.budget import counted_flops, product_rate, synchronise
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.cli import Parser, load_config, positive
from zeroshot_d2.launch import launch
from zeroshot_d2.precision import PRECISIONS, compile_parts, missing_compiler
from zeroshot_d2.solver import build_optimizer
from zeroshot_d2.storage import read_json, write_json, write_text
from zeroshot_d2.trainer import distribute
from zeroshot_d2.training_step import TrainingStep
from zeroshot_d2.training_stream import Mapper, TrainingLoader

DATASET = "gpu_benchmark"  # the name of Epsilon's vocabulary
LABELS, LABEL_WIDTH = 10, 300  # present in an image; of GloVe's vectors
WARM_UP, PHOTOS = 2, 16  # steps; images of the loader
COMPILING, RUNNING, JOINING = 90, 10, 45  # seconds that must be left for a case that compiles, any other, two processes
PAIR_FILE = "two_processes.json"
NOT_REACHED = "not reached in the time"


@dataclass(frozen=True)
class Sizes:
    """Of the models and their input.

    Args:
        size: side of AlignZeg's images.
        classes: of its vocabulary.
        labels: classes of Epsilon's vocabulary.
        epsilon: its config.
        batches: images a step, the most important first.
        product: side of the matrices that give the card's rate.
    """

    size: int
    classes: int
    labels: int
    epsilon: str
    batches: tuple[int, ...]
    product: int


FULL = Sizes(alignzeg_cost.SIZE, len(alignzeg_cost.CLASSES), 1006, "nus_wide/epsilon.yaml", (16, 1, 4, 8, 2), 8192)
TINY = Sizes(64, 5, 12, "demo/epsilon.yaml", (2, 1), 128)

MODELS = (("AlignZeg", 20), ("AlignZeg", 0), ("Epsilon", 0))  # and their prompts


@dataclass(frozen=True)
class Case:
    """What is measured: ``precision`` is a key of :data:`zeroshot_d2.precision.PRECISIONS`, ``batch`` of each process."""

    system: str
    prompts: int
    training: bool
    precision: str
    compiled: bool
    batch: int
    processes: int = 1

    @property
    def seconds_needed(self) -> int:
        return COMPILING if self.compiled else RUNNING

    @property
    def model(self) -> tuple[str, int, bool]:
        """What cases have in common that run on the same model."""
        return self.system, self.prompts, self.compiled


@dataclass(frozen=True)
class Result:
    """Of a case; ``problem`` says why there are no figures, or "" where there are.

    Args:
        case: what was measured.
        problem: one sentence.
        failed: whether the problem is neither a lack of memory nor of time.
        seconds: of each step.
        images_per_second: of all processes, from the median step.
        peak_megabytes: of tensors on the card; None on a CPU.
        share_of_rate: of the rate of this precision; None where it is not known.
        waits_for_loader: whether the pipeline is slower than the training; None in inference.
        finite: whether all losses, or all outputs, were.
        skipped_steps: by float16's scaler, warming up included.
    """

    case: Case
    problem: str = ""
    failed: bool = False
    seconds: tuple[float, ...] = ()
    images_per_second: float | None = None
    peak_megabytes: float | None = None
    share_of_rate: float | None = None
    waits_for_loader: bool | None = None
    finite: bool | None = None
    skipped_steps: int = 0


def cases(sizes: Sizes, device: str) -> list[list[Case]]:
    """All cases, in groups, the most important first; a group changes models as rarely as it can."""
    every = ("bfloat16", "float32", "float16") if device == "cuda" else ("bfloat16", "float32")
    first, second, *others = sizes.batches
    groups = (
        (False, every, (first, second)),
        (True, every[:1], (first,)),
        (True, every[1:2], (first,)),
        (False, every, others),
        (True, every[2:], (first,)),
        (True, every, (second, *others)),
    )
    return [
        [
            Case(system, prompts, training, precision, compiled, batch)
            for system, prompts in MODELS
            for precision in precisions
            for training in (True, False)
            for batch in batches
        ]
        for compiled, precisions, batches in groups
    ]


# ---------------------------------------------------------------------------------------------------------- models
@contextlib.contextmanager
def vocabulary(sizes: Sizes, folder: Path) -> Iterator[Path]:
    """In the block Epsilon's vocabulary is registered; the file of its label vectors, which are random."""
    names = tuple(f"label {k}" for k in range(sizes.labels))
    rng = np.random.default_rng(0)
    file = folder / "vectors.npz"
    np.savez(file, names=np.array(names), vectors=rng.standard_normal((len(names), LABEL_WIDTH), dtype=np.float32))
    DatasetCatalog.register(DATASET, list)
    MetadataCatalog.get(DATASET).set(class_split=ClassSplit(names))
    try:
        yield file
    finally:
        DatasetCatalog.remove(DATASET)
        MetadataCatalog.remove(DATASET)


def config(system: str, prompts: int, sizes: Sizes, device: str, vectors: Path) -> CfgNode:
    """That of a model with random weights on ``device``; ``vectors``: file of Epsilon's label vectors."""
    if system == "Epsilon":
        labels = "MODEL.EPSILON.LABEL_EMBEDDINGS"
        random = ["MODEL.EPSILON.BACKBONE.PRETRAINED", "", f"{labels}.SOURCE", "file", f"{labels}.FILE", str(vectors)]
        cfg = load_config(sizes.epsilon, [*random, "DATASETS.TRAIN", (DATASET,), "DATASETS.TEST", ()])
    elif sizes is TINY:
        clip = "MODEL.ALIGNZEG.CLIP"
        cfg = load_config("demo/alignzeg.yaml", [f"{clip}.PRETRAINED", "", f"{clip}.NUM_PROMPTS", prompts])
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ()
    else:
        cfg = alignzeg_cost.config(prompts)
    cfg.MODEL.DEVICE = device
    return cfg


def build(cfg: CfgNode, sizes: Sizes) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(cfg)
    if isinstance(model, AlignZeg):
        alignzeg_cost.fix_prototypes(model, sizes.classes)
    return model


def inputs(system: str, sizes: Sizes, image_size: int, count: int) -> list[dict[str, Any]]:
    """Random images with labels; ``image_size`` is the side of Epsilon's."""
    if system == "AlignZeg":
        return alignzeg_cost.inputs(count, sizes.size, alignzeg_cost.CLASSES[: sizes.classes])
    generator = torch.Generator().manual_seed(0)
    shape = (3, image_size, image_size)
    return [
        {
            "image": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
            "positive_labels": torch.randperm(sizes.labels, generator=generator)[:LABELS].numpy(),
            "dataset_name": DATASET,
        }
        for _ in range(count)
    ]


def flop_of_image(model: nn.Module, batch: list[dict[str, Any]], training: bool) -> float:
    """FLOPs of the products and convolutions of one image; the model is not compiled yet."""
    model.train(training)
    with counted_flops() as counted:
        found = model(batch)
        if training:
            sum(found.values()).backward()
    model.zero_grad()
    return counted.total / len(batch)


# ------------------------------------------------------------------------------------------------------- measuring
class Repeated:
    """One batch over and over, as :class:`zeroshot_d2.training_step.TrainingStep` takes a loader."""

    def __init__(self, batch: list[dict[str, Any]]) -> None:
        self.batch, self.images = batch, ["a random image"]

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        while True:
            yield self.batch


def measured(case: Case, model: nn.Module, cfg: CfgNode, batch: list[dict[str, Any]], repeats: int) -> Result:
    """Time, memory and soundness of ``repeats`` steps of a case.

    Raises:
        FloatingPointError: a loss is not finite.
        torch.cuda.OutOfMemoryError: the card's memory does not suffice.
    """
    device = torch.device(cfg.MODEL.DEVICE)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    model.train(case.training)
    model.zero_grad()  # gradients of the case before
    precision = PRECISIONS[case.precision]
    trainer = None
    if case.training:
        loader: Any = Repeated(batch)
        trainer = TrainingStep(model, loader, build_optimizer(cfg, model), precision=precision)
    else:
        model.precision = precision  # type: ignore[assignment]  # as TEST.PRECISION sets it
    seconds, finite = [], True
    with EventStorage() as storage:
        for number in range(WARM_UP + repeats):
            synchronise(device)
            start = time.perf_counter()
            result = None
            if trainer is None:
                result = model(batch)
            else:
                trainer.run_step()
            synchronise(device)
            if number >= WARM_UP:
                seconds.append(time.perf_counter() - start)
            finite = finite and _is_finite(result)  # a training ends at a loss that is not
            del result  # ahead of the next one
            storage.step()
    return Result(
        case,
        seconds=tuple(seconds),
        images_per_second=case.processes * case.batch / statistics.median(seconds),
        peak_megabytes=torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None,
        finite=finite,
        skipped_steps=0 if trainer is None else trainer.skipped,
    )


def _is_finite(result: Any) -> bool:
    tensors = (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def loading_rate(records: list[dict[str, Any]], mapper: Mapper, batch: int, workers: int) -> float:
    """Images per second of a training loader on its own."""
    loader = iter(TrainingLoader(records, mapper, batch_size=batch, seed=0, num_workers=workers))
    next(loader)  # workers are started
    count = 4 * max(1, workers)
    start = time.perf_counter()
    for _ in range(count):
        next(loader)
    return count * batch / (time.perf_counter() - start)


def loading_rates(batch: int, workers: int) -> dict[str, float]:
    """:func:`loading_rate` of COCO-Stuff's pipeline and of NUS-WIDE's, on the photos of :mod:`benchmarks.loading`."""
    with tempfile.TemporaryDirectory() as folder:
        segmentation = loading.segmentation_case(Path(folder), PHOTOS)
        multilabel, _ = loading.multilabel_cases(Path(folder), PHOTOS, height=375, width=500)
        return {
            system: loading_rate(case.records, case.mapper, batch, workers)
            for system, case in (("AlignZeg", segmentation), ("Epsilon", multilabel))
        }


# --------------------------------------------------------------------------------------------------- two processes
def pair_case(sizes: Sizes) -> Case:
    """What two processes train together, a batch each."""
    return Case("AlignZeg", 20, True, "bfloat16", False, sizes.batches[0], processes=2)


def _one_of_two(args: argparse.Namespace) -> None:
    """What each of two processes does; the first one writes the result."""
    sizes = TINY if args.tiny else FULL
    case = pair_case(sizes)
    cfg = config(case.system, case.prompts, sizes, args.device, Path())
    model = build(cfg, sizes)
    batch = inputs(case.system, sizes, cfg.INPUT.get("IMAGE_SIZE", sizes.size), case.batch)
    result = measured(case, distribute(model), cfg, batch, args.repeats)
    if comm.is_main_process():
        write_json(args.output / PAIR_FILE, asdict(result))


def two_processes(args: argparse.Namespace) -> Result:
    """The result of :func:`pair_case`."""
    joined = argparse.Namespace(
        **{**vars(args), "num_gpus": 2, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"},
    )
    launch(_one_of_two, joined)
    file = args.output / PAIR_FILE
    found = read_json(file)
    file.unlink()
    return Result(**{**found, "case": Case(**found["case"]), "seconds": tuple(found["seconds"])})


# ---------------------------------------------------------------------------------------------------------- running
class Run:
    """The results so far, their files, and the model that is at hand."""

    def __init__(self, args: argparse.Namespace, vectors: Path, about: dict[str, Any]) -> None:
        self.args, self.vectors, self.about = args, vectors, about
        self.sizes = TINY if args.tiny else FULL
        self.end = time.monotonic() + 60 * args.minutes
        self.results: list[Result] = []
        self.rates: dict[str, float] = {}
        self.loading: dict[str, float] = {}
        self.flop: dict[tuple[str, int, bool], float] = {}
        self._model: tuple[tuple[str, int, bool], CfgNode, nn.Module] | None = None

    def all(self) -> None:
        # Ahead of everything on the card: the workers are forks.
        self.loading = loading_rates(self.sizes.batches[0], self.args.workers)
        for name in dict.fromkeys(case.precision for group in self.groups for case in group):
            dtype = PRECISIONS[name] or torch.float32
            side, device = self.sizes.product, self.args.device
            self.rates[name] = statistics.median(product_rate(side, device, dtype) for _ in range(5))
        for number, group in enumerate(self.groups):
            for case in group:
                self.add(self.tried(case, case.seconds_needed, partial(self.measured, case)))
            if number == 0 and self.has_two():
                self._drop()
                pair = pair_case(self.sizes)
                self.add(self.tried(pair, JOINING, lambda: two_processes(self.args)))

    @property
    def groups(self) -> list[list[Case]]:
        return cases(self.sizes, self.args.device)

    def has_two(self) -> bool:
        """Whether there are two cards, or two processes of a machine without one."""
        if self.args.processes < 2:
            return False
        return torch.cuda.device_count() > 1 if self.args.device == "cuda" else not torch.cuda.is_available()

    def tried(self, case: Case, needed: float, measure: Callable[[], Result]) -> Result:
        """The result of ``measure``, or what kept it from having one."""
        if self.end - time.monotonic() < needed:
            return Result(case, problem=NOT_REACHED)
        lacking = missing_compiler(self.args.device) if case.compiled else ""
        if lacking:
            return Result(case, problem=f"not compiled: {lacking}")
        try:
            return self.completed(measure())
        except torch.cuda.OutOfMemoryError:
            return Result(case, problem="out of memory")
        except FloatingPointError as error:
            return Result(case, problem=str(error), failed=True, finite=False)
        except (RuntimeError, ChildProcessError) as error:  # a compiler's, a process's: the other cases are worth having
            traceback.print_exc()
            return Result(case, problem=f"{type(error).__name__}: {error}".splitlines()[0], failed=True)

    def measured(self, case: Case) -> Result:
        """Of one process; the model is built where it is not the last case's."""
        self._clear()
        if self._model is None or self._model[0] != case.model:
            self._drop()
            cfg = config(case.system, case.prompts, self.sizes, self.args.device, self.vectors)
            model = build(cfg, self.sizes)
            for training in (True, False):
                key = (case.system, case.prompts, training)
                if key not in self.flop:
                    self.flop[key] = flop_of_image(model, self.batch(cfg, case, 1), training)
            cfg.MODEL.COMPILE = case.compiled
            compile_parts(model, cfg)
            self._model = case.model, cfg, model
        _, cfg, model = self._model
        return measured(case, model, cfg, self.batch(cfg, case, case.batch), self.args.repeats)

    def batch(self, cfg: CfgNode, case: Case, count: int) -> list[dict[str, Any]]:
        return inputs(case.system, self.sizes, cfg.INPUT.get("IMAGE_SIZE", self.sizes.size), count)

    def completed(self, result: Result) -> Result:
        """``result`` beside the card's rate and the loader's."""
        case, images = result.case, result.images_per_second
        assert images is not None
        flop = self.flop.get((case.system, case.prompts, case.training))
        share = None if flop is None else images * flop / (case.processes * self.rates[case.precision])
        waits = self.loading[case.system] < images if case.training else None
        return replace(result, share_of_rate=share, waits_for_loader=waits)

    def _drop(self) -> None:
        self._model = None
        self._clear()

    def _clear(self) -> None:
        """Take what nothing refers to any more off the card."""
        if self.args.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def add(self, result: Result) -> None:
        """Keep a result, and write the files."""
        if result.problem:
            self._clear()  # what a failed case leaves on the card
        self.results.append(result)
        content = {
            "about": self.about,
            "rates": self.rates,
            "loading": self.loading,
            "results": [asdict(result) for result in self.results],
        }
        write_json(self.args.output / "gpu.json", content)
        write_text(self.args.output / "gpu.md", table(self.results, self.rates, self.loading, self.about))
        print(" ".join(_row(result)[:6]), result.problem or f"{result.images_per_second:.4g} images/s", flush=True)


# ---------------------------------------------------------------------------------------------------------- report
def table(results: Sequence[Result], rates: dict[str, float], loading: dict[str, float], about: dict[str, Any]) -> str:
    """The results in Markdown, as docs/performance.md shows them."""
    headers = ["model", "step", "precision", "compiled", "batch", "processes"]
    headers += ["images/s", "MB", "share of the rate", "waits for the loader", "remarks"]
    unreached = [result for result in results if result.problem == NOT_REACHED]
    rows = [_row(result) for result in results if result not in unreached]
    lines = [
        ", ".join(f"{name} {value}" for name, value in about.items()) + ".",
        "",
        "Rates: " + ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in rates.items()) + ".",
        "Loaders: " + ", ".join(f"{system} {rate:.4g} images/s" for system, rate in loading.items()) + ".",
        "",
        tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True),
    ]
    if unreached:
        lines += ["", f"{len(unreached)} further cases were {NOT_REACHED}."]
    return "\n".join(lines) + "\n"


def _row(result: Result) -> list[str]:
    case = result.case
    remarks = [result.problem] if result.problem else []
    if result.finite is False and not result.problem:
        remarks.append("not finite")
    if result.skipped_steps:
        remarks.append(f"{result.skipped_steps} steps skipped")
    return [
        f"{case.system}, {case.prompts} prompts" if case.system == "AlignZeg" else case.system,
        "training" if case.training else "inference",
        case.precision,
        "yes" if case.compiled else "no",
        str(case.batch),
        str(case.processes),
        "–" if result.images_per_second is None else f"{result.images_per_second:.4g}",
        "–" if result.peak_megabytes is None else f"{result.peak_megabytes:.0f}",
        "–" if result.share_of_rate is None else f"{100 * result.share_of_rate:.0f}%",
        "–" if result.waits_for_loader is None else "yes" if result.waits_for_loader else "no",
        "; ".join(remarks),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.gpu", __doc__, takes_keys=False)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models, to try the command")
    parser.add_argument("--minutes", type=float, default=6, help="no case starts that may end later, 6 by default")
    parser.add_argument("--repeats", type=positive, default=10, help="timed steps of a case, 10 by default")
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=workers, help="of the loader; as many as there are CPU cores")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=2, help="1: no two processes on two cards")
    args = parser.parse(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.fail("--device cuda: this machine has no GPU that torch can use; --device cpu --tiny tries the command")
    if args.workers < 0:
        parser.fail(f"--workers {args.workers} must not be negative")
    args.output.mkdir(parents=True, exist_ok=True)
    on_gpu = args.device == "cuda"
    about = {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU, only to try the command",
        "cards": torch.cuda.device_count(),
        "torch": torch.__version__,
        "CPU cores": os.cpu_count(),
        "loader workers": args.workers,
        "float32 products": torch.get_float32_matmul_precision(),
        "tiny": args.tiny,
    }
    with tempfile.TemporaryDirectory() as folder, vocabulary(TINY if args.tiny else FULL, Path(folder)) as vectors:
        run = Run(args, vectors, about)
        run.all()
    failed = [result for result in run.results if result.failed]
    for result in failed:
        print(f"failed: {' '.join(_row(result)[:6])}: {result.problem}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
