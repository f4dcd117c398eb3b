"""How time and memory grow with what a user makes larger: ``python -m benchmarks.growth``.

Each axis changes one size and leaves the others as they are (``--axes NAME`` chooses, ``NAME=SIZE,SIZE`` with other sizes):

* image_size, classes, proposals, batch: the labels that AlignZeg predicts, random weights and text prototypes;
* class_scores: Epsilon's class scores of a batch, by the number of classes;
* processes: a training step of the demo world's AlignZeg, one batch shared by the processes, a thread for each;
* rows: registering and loading a list of images with labels like Open Images' own.

Every point runs in a process of its own, and the rounds go through all points in turn. Seconds are the median over the
rounds. Memory is the peak of the process above what it held when model and input were there (Linux's VmHWM and VmRSS); of
several processes it is that of the largest. An exponent is the slope between the ends of an axis with logarithms on both
sides: 1 is a straight line.

Everything runs on the CPU, with as many threads as torch takes (OMP_NUM_THREADS changes that). The folder gets growth.md,
results.json, which has every round, and growth.png; ``--page FILE`` also puts the table between its marks in a page and the
picture beside it. KEY VALUE pairs override the config.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils import comm
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from tabulate import tabulate
from tqdm import tqdm

from benchmarks import budget, epsilon_cost, gpu, multilabel_loading
from benchmarks.alignzeg_cost import CLASSES, SIZE, fix_prototypes, inputs, measure
from benchmarks.memory import count_peak_anew, megabytes
from benchmarks.own_process import imports_of, json_of_own_process
from benchmarks.pages import around_table, put_table
from epsilon_d2.modeling.semantic_fuser import class_scores
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.cli import Parser, find_config, load_config, positive, system_of_config
from zeroshot_d2.launch import launch
from zeroshot_d2.multilabel.columns import LabelColumns
from zeroshot_d2.multilabel.registration import register_multilabel
from zeroshot_d2.pictures.style import INK, SERIES_COLORS, finish, new_figure, plain_axes, save_figure
from zeroshot_d2.provenance import run_facts
from zeroshot_d2.storage import read_json, write_json, write_text
from zeroshot_d2.trainer import distribute

CONFIG = "coco/alignzeg.yaml"
PICTURE = "growth.png"
BEGIN, END = "<!-- benchmarks.growth: begin -->", "<!-- benchmarks.growth: end -->"
STEPS = 5  # of a training, timed

Step = Callable[[], object]


@dataclass(frozen=True)
class Point:
    """What was measured in one process: seconds of a step, and the memory that the steps took."""

    seconds: float
    megabytes: float


# ----------------------------------------------------------------------------------------------------------- cases
def config(args: argparse.Namespace) -> CfgNode:
    """That of ``--config-file``, for random weights on the CPU.

    Raises:
        FileNotFoundError, ValueError: as :func:`zeroshot_d2.cli.load_config`; it is not for AlignZeg.
    """
    system = system_of_config(args.config_file).name
    if system != "AlignZeg":
        raise ValueError(f"--config-file {args.config_file} is for {system}: give one of AlignZeg, such as {CONFIG}")
    cfg = load_config(args.config_file, ["MODEL.DEVICE", "cpu", "MODEL.ALIGNZEG.CLIP.PRETRAINED", "", *args.opts])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ()
    return cfg


def prediction(
    args: argparse.Namespace,
    *,
    size: int | None = None,
    classes: int | None = None,
    proposals: int | None = None,
    batch: int = 1,
) -> Step:
    """AlignZeg's prediction of labels; what is not given is as the command line has it."""
    cfg = config(args)
    if proposals is not None:
        cfg.MODEL.ALIGNZEG.PIXEL_DECODER.NUM_QUERIES = proposals
    names = tuple(f"class number {k}" for k in range(args.classes if classes is None else classes))
    torch.manual_seed(0)
    model: Any = build_model(cfg).eval()
    fix_prototypes(model, len(names))
    images = inputs(batch, args.size if size is None else size, names)
    return lambda: model.inference(images, output="labels")


def scores_of_classes(classes: int) -> Step:
    """Epsilon's class scores (Eq. 9) of a batch, of the sizes of :mod:`benchmarks.epsilon_cost`."""
    generator = torch.Generator().manual_seed(0)
    semantics = torch.randn(epsilon_cost.BATCH, epsilon_cost.GROUPS, epsilon_cost.WIDTH, generator=generator)
    vectors = torch.randn(classes, epsilon_cost.WIDTH, generator=generator)
    return lambda: class_scores(semantics, vectors)


def label_file(folder: Path, rows: int) -> Path:
    return folder / f"{rows}.npz"


def write_rows(folder: Path, rows: int) -> None:
    """A label file of so many images, with as many labels an image as Open Images has."""
    labels = max(1, round(rows * multilabel_loading.LABELS / multilabel_loading.IMAGES))
    multilabel_loading.write_file(label_file(folder, rows), rows, labels)


def loading_rows(folder: Path, rows: int) -> Step:
    """Registering a file of :func:`write_rows` and loading its list."""
    file = label_file(folder, rows)
    split = ClassSplit(LabelColumns.open(file).class_ids)

    def load() -> None:
        register_multilabel("growth", split, "images", file, complete=False, replace=True)
        DatasetCatalog.get("growth")

    return load


def measured(step: Step, repeats: int) -> Point:
    """Seconds and memory of a step, in this process."""
    before = count_peak_anew()
    seconds = measure(step, repeats)
    return Point(seconds, megabytes("VmHWM") - before)


def training(processes: int, folder: Path) -> Point:
    """A training step of the demo world's AlignZeg, whose batch so many processes share.

    Raises:
        ValueError: the batch has fewer images than there are processes.
    """
    images = _demo_config().SOLVER.IMS_PER_BATCH
    if processes > images:
        raise ValueError(f"{processes} processes cannot share the demo's batch of {images} images: give fewer")
    file = folder / f"{processes}_processes.json"
    group = {"num_gpus": processes, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    launch(_train, argparse.Namespace(file=file, **group))
    return Point(**read_json(file))


def _demo_config() -> CfgNode:
    return gpu.config("AlignZeg", 0, gpu.TINY, "cpu", Path())


def _train(args: argparse.Namespace) -> None:
    """What each process of :func:`training` does; the first one writes the point."""
    torch.set_num_threads(1)
    cfg, rank, processes = _demo_config(), comm.get_rank(), comm.get_world_size()
    model = gpu.build(cfg, gpu.TINY)
    batch = gpu.inputs("AlignZeg", gpu.TINY, gpu.TINY.size, cfg.SOLVER.IMS_PER_BATCH)[rank::processes]
    case = gpu.Case("AlignZeg", 0, True, "float32", False, len(batch), processes)
    before = count_peak_anew()
    result = gpu.measured(case, distribute(model), cfg, batch, STEPS)
    peaks = comm.all_gather(megabytes("VmHWM") - before)
    if comm.is_main_process():
        write_json(args.file, asdict(Point(statistics.median(result.seconds), max(peaks))))


@dataclass(frozen=True)
class Axis:
    """What grows.

    Args:
        title: the thing that is counted.
        sizes: at which it is measured, rising.
        point: measures a size, in a process of its own.
        shown: how a size is written.
        amount: of the thing, at a size.
        prepare: makes, for a size, what its points read: (folder, size).
    """

    title: str
    sizes: tuple[int, ...]
    point: Callable[[int, argparse.Namespace], Point]
    shown: str = "{:,}"
    amount: Callable[[int], int] = lambda size: size
    prepare: Callable[[Path, int], None] | None = None


AXES: Mapping[str, Axis] = {
    "image_size": Axis(
        "pixels of an image, AlignZeg",
        (320, 640, 1280),
        lambda size, args: measured(prediction(args, size=size), 1),
        shown="{}²",
        amount=lambda size: size**2,
    ),
    "classes": Axis(
        "classes, AlignZeg",
        (20, 200, 2_000, 10_000),
        lambda size, args: measured(prediction(args, classes=size), 1),
    ),
    "class_scores": Axis(
        "classes, Epsilon's scores", (20, 200, 2_000, 10_000), lambda size, args: measured(scores_of_classes(size), 20)
    ),
    "proposals": Axis(
        "proposals, AlignZeg", (100, 200, 400), lambda size, args: measured(prediction(args, proposals=size), 1)
    ),
    "batch": Axis("images of a batch, AlignZeg", (1, 2, 4, 8), lambda size, args: measured(prediction(args, batch=size), 1)),
    "processes": Axis("processes, the demo's training", (1, 2), lambda size, args: training(size, args.folder)),
    "rows": Axis(
        "rows of a list",
        (90_000, 900_000, 9_000_000),
        lambda size, args: measured(loading_rows(args.folder, size), 5),
        prepare=write_rows,
    ),
}


def axis_and_sizes(text: str) -> tuple[str, tuple[int, ...]]:
    """An argparse type: an axis, its sizes behind ``=`` where they are not the usual ones."""
    name, given, words = text.partition("=")
    if name not in AXES:
        raise argparse.ArgumentTypeError(f"{name!r} is no axis: choose from {', '.join(AXES)}")
    if not given:
        return name, AXES[name].sizes
    sizes = tuple(positive(word) for word in words.split(","))
    if len(sizes) < 2 or any(after <= before for before, after in zip(sizes[:-1], sizes[1:], strict=True)):
        raise argparse.ArgumentTypeError(f"{text!r} needs at least two sizes that rise, as in {name}=1,2")
    return name, sizes


# ------------------------------------------------------------------------------------------------------- measuring
@dataclass(frozen=True)
class Curve:
    """What was measured along an axis.

    Args:
        axis: its name.
        sizes: rising.
        points: of each size, one a round.
    """

    axis: str
    sizes: tuple[int, ...]
    points: list[list[Point]]

    @property
    def amounts(self) -> list[int]:
        return [AXES[self.axis].amount(size) for size in self.sizes]

    def values(self, quantity: str) -> list[list[float]]:
        """ "seconds" or "megabytes" of each size, one a round."""
        return [[getattr(point, quantity) for point in points] for points in self.points]

    def exponent(self, quantity: str, first: int = 0) -> float:
        """The slope of the medians between a size and the last one, logarithms on both sides; NaN where one is 0."""
        medians = [statistics.median(values) for values in self.values(quantity)]
        if min(medians[first], medians[-1]) <= 0:
            return math.nan
        return math.log(medians[-1] / medians[first]) / math.log(self.amounts[-1] / self.amounts[first])


def run_point(name: str, size: int, args: argparse.Namespace) -> Point:
    """A point in a process of its own.

    Raises:
        ChildProcessError: it failed; what it said is part of the message.
    """
    words = ["--point", name, str(size), "--folder", str(args.folder), "--config-file", str(args.config_file)]
    words += ["--size", str(args.size), "--classes", str(args.classes)]
    words += imports_of(args.modules)
    try:  # several processes on the CPU talk through gloo
        found = json_of_own_process("benchmarks.growth", [*words, *args.opts], CUDA_VISIBLE_DEVICES="")
    except subprocess.CalledProcessError as error:
        said = error.stderr[-2000:].strip()
        raise ChildProcessError(f"{name} at {size} ended with {error.returncode}: {said}") from error
    return Point(**found)


def run(args: argparse.Namespace, cfg: CfgNode) -> tuple[list[Curve], dict[str, Any]]:
    """What :func:`write` takes, of a command line."""
    curves = [Curve(name, sizes, [[] for _ in sizes]) for name, sizes in dict(args.axes).items()]
    rates: list[float] = []
    for curve in curves:
        prepare = AXES[curve.axis].prepare
        if prepare is not None:
            for size in curve.sizes:
                prepare(args.folder, size)
    with tqdm(total=args.rounds * sum(len(curve.sizes) for curve in curves)) as progress:
        for _ in range(args.rounds):
            rates.append(budget.product_rate(budget.PRODUCT))
            for curve in curves:
                for size, points in zip(curve.sizes, curve.points, strict=True):
                    progress.set_description(f"{curve.axis} {size}")
                    points.append(run_point(curve.axis, size, args))
                    progress.update()
    facts = run_facts(cfg)
    about = {key: facts[key] for key in ("version", "commit", "command", "torch", "cpu", "threads")}
    about |= {"config": str(args.config_file), "size": args.size, "classes": args.classes, "rounds": args.rounds}
    return curves, {**about, "rates": rates}


# ---------------------------------------------------------------------------------------------------------- report
def table(curves: Sequence[Curve], about: Mapping[str, Any]) -> str:
    """The curves in Markdown, below the machine that they belong to."""
    rows = []
    for curve in curves:
        axis = AXES[curve.axis]
        for i, size in enumerate(curve.sizes):
            rows.append([axis.title if i == 0 else "", axis.shown.format(size)])
            for quantity, form in (("seconds", "{:.3g}"), ("megabytes", "{:.1f}")):
                values = curve.values(quantity)[i]
                rows[-1] += [form.format(statistics.median(values)), _spread(values, form)]
        rows.append(["", "**exponent**"])
        for quantity in ("seconds", "megabytes"):
            last = len(curve.sizes) - 2
            of_step = f"{_number(curve.exponent(quantity, last))} in the last step" if last else ""
            rows[-1] += [f"**{_number(curve.exponent(quantity))}**", of_step]
    headers = ["what grows", "size", "seconds", "least to most", "MB", "least to most"]
    rates = [rate / 1e9 for rate in about["rates"]]
    return "\n".join(
        [
            f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}, medians of {about['rounds']} round(s). "
            f"The machine's rate was {statistics.median(rates):.0f} GFLOP/s ({min(rates):.0f} to {max(rates):.0f}). "
            f"AlignZeg has images of {about['size']} x {about['size']} and {about['classes']} classes unless they grow.",
            "",
            tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True),
        ]
    )


def _spread(values: Sequence[float], form: str) -> str:
    return f"{form.format(min(values))} to {form.format(max(values))}"


def _number(exponent: float) -> str:
    return "–" if math.isnan(exponent) else f"{exponent:.2f}"


def picture(curves: Sequence[Curve]) -> Figure:
    """A row of panels per axis, time and memory, with a line of slope 1 from the first size."""
    figure = new_figure(7.5, 0.5 + 1.8 * len(curves))
    panels = figure.subplots(len(curves), 2, squeeze=False)
    for row, curve in zip(panels, curves, strict=True):
        for axes, quantity, unit in zip(row, ("seconds", "megabytes"), ("seconds", "MB"), strict=True):
            _panel(axes, curve, quantity, unit)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, fontsize=7, frameon=False)
    return finish(figure)


def _panel(axes: Axes, curve: Curve, quantity: str, unit: str) -> None:
    axis, amounts, values = AXES[curve.axis], curve.amounts, curve.values(quantity)
    medians = [statistics.median(each) for each in values]
    below = [median - min(each) for median, each in zip(medians, values, strict=True)]
    above = [max(each) - median for median, each in zip(medians, values, strict=True)]
    axes.set_xscale("log")
    axes.set_yscale("log", nonpositive="clip")
    axes.errorbar(
        amounts,
        medians,
        yerr=[below, above],
        color=SERIES_COLORS[1],
        marker="o",
        markersize=3.5,
        label="measured, least to most",
    )
    if medians[0] > 0:
        guide = [medians[0] * amount / amounts[0] for amount in (amounts[0], amounts[-1])]
        axes.plot(
            [amounts[0], amounts[-1]], guide, color=SERIES_COLORS[0], linestyle="--", label="a straight line: exponent 1"
        )
    axes.margins(x=0.1)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(amounts, [axis.shown.format(size) for size in curve.sizes])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    plain_axes(axes, grid="y")
    axes.tick_params(labelsize=7)
    axes.set_ylabel(unit, fontsize=8, color=INK)
    axes.set_title(f"{axis.title}: exponent {_number(curve.exponent(quantity))}", fontsize=8, color=INK, loc="left")


def write(args: argparse.Namespace, curves: Sequence[Curve], about: Mapping[str, Any]) -> str:
    """growth.md, results.json and growth.png of ``--output``, and ``--page``; the table."""
    text = table(curves, about)
    write_text(args.output / "growth.md", text + "\n")
    write_json(args.output / "results.json", {"about": about, "axes": [asdict(curve) for curve in curves]})
    drawn = picture(curves)
    save_figure(drawn, args.output / PICTURE)
    if args.page is not None:
        save_figure(drawn, args.page.parent / PICTURE)
        put_table(args.page, BEGIN, END, f"{text}\n\n![Time and memory by size, a row of panels per axis]({PICTURE})")
    return text


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("python -m benchmarks.growth", __doc__)
    parser.add_argument(
        "--axes",
        nargs="+",
        type=axis_and_sizes,
        default=[(name, axis.sizes) for name, axis in AXES.items()],
        metavar="NAME[=SIZE,SIZE]",
        help=f"{', '.join(AXES)}; all by default",
    )
    parser.add_argument("--rounds", type=positive, default=3, help="3 by default")
    parser.add_argument("--config-file", default=CONFIG, metavar="FILE", help=f"of AlignZeg, {CONFIG} by default")
    parser.add_argument("--size", type=positive, default=SIZE, help=f"side of the images in pixels, {SIZE} by default")
    parser.add_argument(
        "--classes", type=positive, default=len(CLASSES), help=f"of the vocabulary, {len(CLASSES)} by default"
    )
    parser.add_argument("--output", type=Path, default=Path("output/growth"), metavar="FOLDER")
    parser.add_argument("--page", type=Path, metavar="FILE", help="a page with the marks between which the table goes")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)  # one point, in the process that was started for it
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # what the points share
    args = parser.parse(argv)
    if args.point:
        name, size = args.point
        try:
            point = AXES[name].point(int(size), args)
        except ValueError as error:  # of a config that does not go with this size
            sys.exit(str(error))
        print(json.dumps(asdict(point)))
        return
    try:
        args.config_file = find_config(args.config_file).absolute()
        cfg = config(args)
        if args.page is not None:
            around_table(args.page, BEGIN, END)  # not only when all is measured
    except (FileNotFoundError, ValueError) as error:
        parser.fail(str(error))
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        try:
            curves, about = run(args, cfg)
        except ChildProcessError as error:
            sys.exit(str(error))
    print(write(args, curves, about))


if __name__ == "__main__":
    main()
