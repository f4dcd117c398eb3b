"""Where the time of a step of full-size AlignZeg goes: ``python -m benchmarks.budget --output FOLDER``.

ViT-B/16 with random weights on random images. For each stage of inference, of a training step, and of the data loader:

* seconds, of this stage alone: what runs within another stage counts with the inner one (of the loader, CPU time);
* GFLOP of its matrix products and convolutions, attention counted as plain products, and the share that they reach of this
  machine's rate: that of a product of two 2048 x 2048 float32 matrices, measured in the same rounds;
* memory: in inference the most that tensors of the stage take beyond what was there when it began, in training what the
  stage leaves behind for the backward pass (parameters do not count).

"prompts" is a difference: the rounds alternate between the model as it is and without its prompts. Seconds are medians over
the rounds, with the least and the most beside them. What the FLOPs of a step take at the machine's rate is its limit.

The folder gets budget.md, budget.json, which has every round, and budget.png. KEY VALUE pairs override the model's config.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import statistics
import tempfile
import time
import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from detectron2.modeling import build_model
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from alignzeg_d2 import inference as outputs
from alignzeg_d2 import proposal_segmenter, semantic_inference
from alignzeg_d2.alignzeg import AlignZeg
from benchmarks import loading
from benchmarks.alignzeg_cost import CLASSES, SIZE, config, fix_prototypes, inputs
from benchmarks.memory import megabytes
from zeroshot_d2.cli import Parser, positive
from zeroshot_d2.pictures.style import INK, MUTED, SERIES_COLORS, finish, new_figure, plain_axes, save_figure
from zeroshot_d2.solver import build_optimizer
from zeroshot_d2.storage import write_json, write_text

PRODUCT = 2048  # side of the matrices that give the machine's rate
REST, TRUNK, PROMPTS, BACKWARD = "everything else", "CLIP trunk", "prompts", "backward"

# The modules of a stage. One may lie within another.
MODULES = {
    "image_encoder": "image encoder",
    "clip_image_encoder": TRUNK,
    "feature_fusion": "fusion",
    "pixel_decoder": "MRPE",
    "pixel_decoder.bias_mlp": "attention bias",
    "semantic_decoder": "semantic decoder",
    "criterion": "losses",
}


def functions(model: AlignZeg) -> list[tuple[Any, str, str]]:
    """What belongs to a stage and is no module: whose attribute it is, its name, and the stage."""
    return [
        (model.semantic_decoder, "pool", "attention bias"),
        (model, "classify", "classification"),
        (proposal_segmenter, "correct", "classification"),
        (semantic_inference, "_masks", "upsampling"),
        (outputs, "semantic_scores", "semantic inference"),
        (outputs, "best_classes", "semantic inference"),
        (model.criterion, "_match", "matcher"),
    ]


# --------------------------------------------------------------------------------------------------------- stages
class Stages(ABC):
    """Which stages are open, the innermost last; what is measured between two boundaries of stages, a subclass says.

    Attributes:
        found: {stage: what was measured of it}.
    """

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self._open: list[str] = []

    @abstractmethod
    def _boundary(self) -> None:
        """A stage begins or ends; the open ones are those up to here."""

    def begin(self, name: str) -> None:
        self._boundary()
        self._open.append(name)

    def end(self) -> None:
        self._boundary()
        self._open.pop()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.begin(name)
        yield
        self.end()


class Shares(Stages):
    """How much of a growing total falls to each stage, to the innermost of those that are open."""

    def __init__(self, total: Callable[[], float]) -> None:
        super().__init__()
        self._total, self._since = total, total()

    def _boundary(self) -> None:
        now = self._total()
        if self._open:
            self.found[self._open[-1]] += now - self._since  # type: ignore[assignment]
        self._since = now


class LiveBytes(TorchDispatchMode):
    """In the block: ``live``, the bytes of tensors that operators have made and that are still there, and ``peak``."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, tuple[weakref.ref[UntypedStorage], int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):
            self._know(storage, 0)  # what was made outside; also, what comes out may be a view of it
        result = func(*args, **kwargs)
        for storage in _storages(result):
            self._know(storage, storage.nbytes())
        return result

    def _know(self, storage: UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._known:
            return

        def gone(_: object) -> None:
            self.live -= self._known.pop(key)[1]

        self._known[key] = weakref.ref(storage, gone), size
        self.live += size
        self.peak = max(self.peak, self.live)


class Peaks(Stages):
    """The most bytes that are alive within each stage, those within included, beyond those when it began."""

    def __init__(self, memory: LiveBytes) -> None:
        super().__init__()
        self._memory = memory
        self._before: list[int] = []

    def _boundary(self) -> None:
        for name, before in zip(self._open, self._before, strict=True):
            self.found[name] = max(self.found[name], self._memory.peak - before)
        self._memory.peak = self._memory.live

    def begin(self, name: str) -> None:
        super().begin(name)
        self._before.append(self._memory.live)

    def end(self) -> None:
        super().end()
        self._before.pop()


class SavedBytes(saved_tensors_hooks):
    """In the block: ``total``, the bytes that autograd keeps for a backward pass, the parameters of ``model`` left out."""

    def __init__(self, model: nn.Module) -> None:
        self.total = 0
        self._known = {storage._cdata: storage for storage in _storages(list(model.parameters()))}
        super().__init__(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known[storage._cdata] = storage  # held, so that no other one gets its address
            self.total += storage.nbytes()
        return tensor


def _storages(tree: Any) -> list[UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Flops(TorchDispatchMode):
    """In the block: ``total``, FLOPs by torch's formulas, two to a multiplication with its addition.

    FlopCounterMode, whose formulas they are, also tells modules apart, which fails at a parameter's view in a block without
    gradients, such as CLIP's prompts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        return result


@contextlib.contextmanager
def counted_flops() -> Iterator[Flops]:
    """In the block attention takes the way of plain products: torch has no formulas for the CPU's fused operators."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), Flops() as flops:
            yield flops
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextlib.contextmanager
def observed(model: AlignZeg, stages: Stages) -> Iterator[None]:
    """In the block, what ``model`` does is told to ``stages``."""

    def told(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with stages.stage(name):
                return function(*args, **kwargs)

        return call

    with contextlib.ExitStack() as undo:
        for path, name in MODULES.items():
            module = model.get_submodule(path)
            undo.callback(module.register_forward_pre_hook(lambda *_, name=name: stages.begin(name)).remove)
            undo.callback(module.register_forward_hook(lambda *_: stages.end()).remove)
        for owner, function, name in functions(model):
            undo.enter_context(mock.patch.object(owner, function, told(getattr(owner, function), name)))
        yield


# ---------------------------------------------------------------------------------------------------- measurements
Step = Callable[[Stages], None]


@dataclass(frozen=True)
class Part:
    """A stage.

    Args:
        name: of the stage.
        seconds: of each round.
        flop: 0 where there is no product.
        bytes: of memory; None where it was not measured.
    """

    name: str
    seconds: list[float]
    flop: float = 0
    bytes: int | None = None


@dataclass(frozen=True)
class Budget:
    """A step and its stages.

    Args:
        title: what a step is.
        parts: the stages, which add up to the step.
        seconds: of the step, in each round.
        rates: of the product, FLOPs per second, in each round; empty where no FLOPs were counted.
        memory: what ``bytes`` of a part means.
        peak_bytes: the most that tensors of the step take, beyond weights and input; None where it was not measured.
        process_megabytes: the most that the process held so far; None where it was not looked at.
    """

    title: str
    parts: list[Part]
    seconds: list[float]
    rates: list[float]
    memory: str = ""
    peak_bytes: int | None = None
    process_megabytes: float | None = None

    @property
    def flop(self) -> float:
        return sum(part.flop for part in self.parts)

    @property
    def rate(self) -> float:
        """The machine's, in FLOPs per second; NaN where it was not measured."""
        return statistics.median(self.rates) if self.rates else math.nan

    def limit(self, flop: float) -> float:
        """Seconds that so many FLOPs take at the machine's rate."""
        return flop / self.rate if flop else 0.0


def measured(model: AlignZeg, step: Step, stages: Stages) -> dict[str, float]:
    """What ``stages`` found of each stage of a step."""
    with observed(model, stages), stages.stage(REST):
        step(stages)
    return dict(stages.found)


@contextlib.contextmanager
def without_prompts(model: AlignZeg) -> Iterator[None]:
    encoder = model.clip_image_encoder
    prompts, encoder.prompts = encoder.prompts, None
    try:
        yield
    finally:
        encoder.prompts = prompts


def budget_of(model: AlignZeg, step: Step, title: str, rounds: int) -> Budget:
    """The budget of a step."""
    rates = []
    forms: list[Callable[[], contextlib.AbstractContextManager[None]]] = [contextlib.nullcontext]
    if model.clip_image_encoder.prompts is not None:
        forms.append(lambda: without_prompts(model))
    seconds: list[list[dict[str, float]]] = [[] for _ in forms]
    for number in range(rounds + 1):
        for form, found in zip(forms, seconds, strict=True):
            with form():
                of_round = measured(model, step, Shares(time.perf_counter))
            if number:  # the first round warms up
                found.append(of_round)
        if number:
            rates.append(product_rate(PRODUCT))
    process = megabytes("VmHWM")
    flops, held = [], []
    for form in forms:
        with form():
            with counted_flops() as counted:
                flops.append(measured(model, step, Shares(_total_of(counted))))
            held.append(_memory(model, step))
    names = [name for name in _order(model) if name in seconds[0][0]]
    parts = [
        Part(
            name,
            [of_round.get(name, 0.0) for of_round in seconds[0]],
            flops[0].get(name, 0),
            None if name == REST else int(held[0].get(name, 0)),
        )
        for name in names
    ]
    if len(forms) == 2:
        parts = _with_prompts(parts, seconds[1], flops[1], held[1] if model.training else None)
    with LiveBytes() as memory:
        peak = measured(model, step, Peaks(memory))[REST]
    return Budget(
        title,
        parts,
        [sum(of_round.values()) for of_round in seconds[0]],
        rates,
        "kept for the backward pass" if model.training else "most in use within",
        int(peak),
        process,
    )


def _total_of(counted: Flops | SavedBytes) -> Callable[[], float]:
    return lambda: counted.total


def _order(model: AlignZeg) -> list[str]:
    last = [REST]
    if model.training:
        last = ["matcher", "losses", BACKWARD, "optimiser", REST]
    names = [*MODULES.values(), "classification", "upsampling", "semantic inference"]
    return [*(name for name in dict.fromkeys(names) if name not in last), *last]


def _memory(model: AlignZeg, step: Step) -> dict[str, float]:
    if model.training:
        saved = SavedBytes(model)
        with saved:
            return measured(model, step, Shares(_total_of(saved)))
    with LiveBytes() as live:
        return measured(model, step, Peaks(live))


def _with_prompts(
    parts: Sequence[Part], seconds: Sequence[dict[str, float]], flops: dict[str, float], held: dict[str, float] | None
) -> list[Part]:
    """``parts`` of a model with prompts, what they add to CLIP's trunk and to the backward pass taken apart."""
    result = []
    for part in parts:
        if part.name not in (TRUNK, BACKWARD):
            result.append(part)
            continue
        name = part.name
        without = [of_round[name] for of_round in seconds]
        added = [both - alone for both, alone in zip(part.seconds, without, strict=True)]
        memory, more = part.bytes, None
        if held is not None and part.bytes is not None:
            memory = int(held.get(name, 0))
            more = part.bytes - memory
        result.append(Part(name, without, flops.get(name, 0), memory))
        result.append(Part(PROMPTS if name == TRUNK else f"{name}, {PROMPTS}", added, part.flop - flops.get(name, 0), more))
    return result


def inference_step(model: AlignZeg, batch: list[dict[str, Any]], output: str) -> Step:
    def step(stages: Stages) -> None:
        model.inference(batch, output=output)

    return step


def training_step(model: AlignZeg, batch: list[dict[str, Any]], optimizer: torch.optim.Optimizer) -> Step:
    def step(stages: Stages) -> None:
        optimizer.zero_grad()
        loss: Tensor = sum(model(batch).values())
        with stages.stage(BACKWARD):
            loss.backward()
        with stages.stage("optimiser"):
            optimizer.step()

    return step


def product_rate(
    side: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """FLOPs per second of a product of two square matrices."""
    a, b = torch.rand(2, side, side, device=device, dtype=dtype)
    torch.mm(a, b)
    synchronise(device)
    start = clock()
    torch.mm(a, b)
    synchronise(device)
    return 2 * side**3 / (clock() - start)


def synchronise(device: torch.device | str) -> None:
    """Wait for what a GPU has been given to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


# --------------------------------------------------------------------------------------------------------- loader
def loading_budget(rounds: int, images: int = 8) -> Budget:
    """The budget of one image of COCO-Stuff's training loader, by the stages of :mod:`benchmarks.loading`."""
    with tempfile.TemporaryDirectory() as folder:
        case = loading.segmentation_case(Path(folder), images)
        case.run()  # warms up
        found = [case.run() for _ in range(rounds)]
    parts = [Part(name, [of_round[name] / 1000 for of_round in found]) for name in loading.STAGES]
    return Budget(
        "loading one image for training, CPU time", parts, [sum(of_round.values()) / 1000 for of_round in found], []
    )


# ---------------------------------------------------------------------------------------------------------- report
def table(budget: Budget) -> str:
    """A budget in Markdown."""
    rows = [_row(budget, part.name, part.seconds, part.flop, part.bytes) for part in budget.parts]
    rows.append(_row(budget, "**together**", budget.seconds, budget.flop, budget.peak_bytes))
    headers = ["stage", "seconds", "least to most", "GFLOP", "share of the rate", f"MB, {budget.memory}"]
    shown = len(headers)
    if not budget.flop:
        shown = 3
    text = tabulate([row[:shown] for row in rows], headers=headers[:shown], tablefmt="github", disable_numparse=True)
    lines = [f"**{budget.title}**", "", text, ""]
    if budget.flop:
        seconds, limit = statistics.median(budget.seconds), budget.limit(budget.flop)
        least, most = min(budget.rates) / 1e9, max(budget.rates) / 1e9
        lines.append(
            f"The machine's rate was {budget.rate / 1e9:.0f} GFLOP/s ({least:.0f} to {most:.0f}). The step's FLOPs alone "
            f"take {limit:.3g} s at it: the step takes {seconds / limit:.2f} times as long."
        )
    if budget.process_megabytes is not None:
        lines.append(
            "The last row's memory is the most that tensors take at once; the process held "
            f"{budget.process_megabytes:.0f} MB at most so far."
        )
    return "\n".join(lines).rstrip() + "\n"


def _row(budget: Budget, name: str, seconds: Sequence[float], flop: float, held: int | None) -> list[str]:
    median = statistics.median(seconds)
    return [
        name,
        f"{median:.4f}",
        f"{min(seconds):.4f} to {max(seconds):.4f}",
        f"{flop / 1e9:.3g}" if flop else "–",
        f"{100 * budget.limit(flop) / median:.0f}%" if flop and median > 0 else "–",
        "–" if held is None else f"{held / 2**20:.1f}",
    ]


def picture(budgets: Sequence[Budget]) -> Figure:
    """A panel per budget, a bar per stage, and in it what the stage's FLOPs take at the machine's rate."""
    counts = [len(budget.parts) for budget in budgets]
    figure = new_figure(7.5, 0.9 * len(budgets) + 0.27 * sum(counts))
    panels = figure.subplots(len(budgets), 1, squeeze=False, gridspec_kw={"height_ratios": counts})[:, 0]
    for axes, budget in zip(panels, budgets, strict=True):
        medians = [statistics.median(part.seconds) for part in budget.parts]
        limits = [budget.limit(part.flop) for part in budget.parts]
        places = np.arange(len(medians))
        taken = axes.barh(places, medians, height=0.72, color=SERIES_COLORS[0], label="measured")
        axes.barh(places, limits, height=0.34, color=SERIES_COLORS[1], label="its FLOPs at the machine's rate")
        axes.bar_label(taken, [f"{1000 * value:.3g} ms" for value in medians], padding=3, fontsize=7, color=MUTED)
        axes.set_yticks(places, [part.name for part in budget.parts])
        axes.invert_yaxis()
        plain_axes(axes, grid="x")
        axes.margins(x=0.12)
        axes.set_xlabel("seconds", fontsize=8, color=INK)
        title = f"{budget.title}: {statistics.median(budget.seconds):.3g} s"
        if budget.flop:
            title += f", of which its FLOPs take {budget.limit(budget.flop):.3g} s"
        axes.set_title(title, fontsize=9, color=INK, loc="left")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=7, frameon=False)
    return finish(figure)


def write(folder: Path, budgets: Sequence[Budget], about: Mapping[str, Any]) -> str:
    """budget.md, budget.json and budget.png of ``folder``; the first one's text.

    Args:
        folder: made where it does not exist.
        budgets: of a run.
        about: the machine and the settings.
    """
    text = ", ".join(f"{name} {value}" for name, value in about.items()) + ".\n\n"
    text += "\n".join(table(budget) for budget in budgets)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "budget.md", text)
    write_json(folder / "budget.json", {"about": about, "budgets": [asdict(budget) for budget in budgets]})
    save_figure(picture(budgets), folder / "budget.png")
    return text


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("python -m benchmarks.budget", __doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--size", type=positive, default=SIZE, help=f"side of the images in pixels, {SIZE} by default")
    parser.add_argument(
        "--classes", type=positive, default=len(CLASSES), help=f"of the vocabulary, {len(CLASSES)} by default"
    )
    parser.add_argument("--prompts", type=int, default=0, help="learnt tokens of CLIP's trunk, none by default")
    parser.add_argument(
        "--batch", type=positive, default=2, help="images of a training step, 2 by default; inference has one"
    )
    parser.add_argument("--rounds", type=positive, default=5, help="5 by default")
    parser.add_argument("--threads", type=positive, help="of torch; as many as it takes by default")
    parser.add_argument("--result", choices=proposal_segmenter.OUTPUTS, default="scores", help="of inference")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--training", action="store_true", help="and loading, but no inference")
    only.add_argument("--inference", action="store_true", help="alone")
    args = parser.parse(argv)
    if args.prompts < 0:
        parser.fail(f"--prompts {args.prompts} must not be negative")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    print(write(args.output, *run(args)), end="")


def run(args: argparse.Namespace) -> tuple[list[Budget], dict[str, Any]]:
    """What :func:`write` takes, of a command line."""
    cfg = config(args.prompts, args.opts)
    names = tuple(f"class number {k}" for k in range(args.classes))
    torch.manual_seed(0)
    model = build_model(cfg)
    fix_prototypes(model, args.classes)
    budgets: list[Budget] = []
    if not args.training:
        step = inference_step(model.eval(), inputs(1, args.size, names), args.result)
        budgets.append(budget_of(model, step, f"inference, one image, {args.result}", args.rounds))
    if not args.inference:
        optimizer = build_optimizer(cfg, model)
        step = training_step(model.train(), inputs(args.batch, args.size, names), optimizer)
        budgets.append(budget_of(model, step, f"training step, {args.batch} images", args.rounds))
        budgets.append(loading_budget(args.rounds))
    about = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "size": args.size,
        "classes": args.classes,
        "prompts": args.prompts,
        "rounds": args.rounds,
    }
    return budgets, about


if __name__ == "__main__":
    main()
