"""What the ablation commands share: their options, many trainings through ``train_net.py``, and tables of the results."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from detectron2.utils.env import seed_all_rng
from matplotlib.figure import Figure
from scipy.stats import t as student
from tqdm import tqdm

from benchmarks.own_process import ROOT, imports_of
from zeroshot_d2.checkpoint import write_model
from zeroshot_d2.cli import Parser, load_config, positive
from zeroshot_d2.pictures.style import INK, SERIES_COLORS, finish, new_figure, plain_axes, save_figure
from zeroshot_d2.storage import write_text
from zeroshot_d2.trainer import Trainer
from zeroshot_d2.training_stream import kept_generators

T = TypeVar("T")

Variant = tuple[str, tuple[str, ...]]
"""A config of the command's folder of configs, and options of the command line."""

INITIAL = "initial.safetensors"
_BUILDING = threading.Lock()  # initial weights come from torch's generator, which all threads share


def parser(prog: str, description: str | None, dataset: str, output: str, *, titles: bool = True) -> Parser:
    """The options of every ablation command; ``dataset`` and ``output`` are defaults. ``titles``: there is ``--only``."""
    options = Parser(prog, description)
    options.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options.add_argument("--configs", type=Path, default=ROOT / "configs" / "demo", help="folder of the variants")
    options.add_argument("--dataset", default=dataset, help="the data set whose results are tabulated")
    options.add_argument("--output", type=Path, default=Path(output))
    if titles:
        options.add_argument("--only", metavar="TEXT", default="", help="only the tables with this in their title")
    options.add_argument("--jobs", type=positive, default=max(1, (os.cpu_count() or 1)), help="trainings at once")
    return options


def chosen(tables: Mapping[str, T], args: argparse.Namespace) -> dict[str, T]:
    """The tables that ``--only`` asks for.

    Raises:
        ValueError: no title has that text.
    """
    found = {title: rows for title, rows in tables.items() if args.only in title}
    if not found:
        raise ValueError(f"no table has --only {args.only!r} in its title; there are {', '.join(map(repr, tables))}")
    return found


def threads_of(args: argparse.Namespace) -> int:
    """Threads for each of ``args.jobs`` at once."""
    return max(1, (os.cpu_count() or 1) // args.jobs)


def train_net(arguments: Sequence[str], log: Path, args: argparse.Namespace) -> None:
    """Run ``train_net.py`` as one of ``args.jobs`` at once, its output in ``log``; it imports ``args.modules`` too.

    Raises:
        RuntimeError: it failed; the log is named.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        code = subprocess.run(
            [sys.executable, str(ROOT / "train_net.py"), *imports_of(args.modules), *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads_of(args))},
        ).returncode
    if code:
        raise RuntimeError(f"train_net.py {' '.join(arguments)} ended with code {code}, see {log}")


def write_initial_weights(
    file: Path, variant: Variant, whole: Variant, seed: int, configs: Path, modules: Sequence[str] = ()
) -> None:
    """Write the weights that ``variant`` begins with: those of ``whole`` at the same seed wherever name and shape agree.

    By itself a variant draws other random numbers than ``whole`` from the first part on that differs.

    Args:
        file: of the weights; ``MODEL.WEIGHTS`` of the variant's training.
        variant: what is trained.
        whole: whose weights are shared; by itself it begins with the same ones.
        seed: of both.
        configs: the folder of both.
        modules: what ``--import`` names.
    """

    def built(of: Variant) -> dict[str, torch.Tensor]:
        config, options = of
        cfg = load_config(configs / config, [*options, "SEED", seed], modules=modules)
        with kept_generators():
            seed_all_rng(seed)
            return Trainer.build_model(cfg).state_dict()

    with _BUILDING:
        own, shared = built(variant), built(whole)
    agree = {name: value for name, value in shared.items() if name in own and value.shape == own[name].shape}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_model(file, {**own, **agree}, None)


def folder_of(variant: Variant, seed: int, output: Path) -> Path:
    """Where a training of ``variant`` is written: a folder named by its config and options."""
    config, options = variant
    name = "_".join([Path(config).stem, *(option.rpartition(".")[2].lower() for option in options[::2]), *options[1::2]])
    return output / f"{name}_seed{seed}"


def train_variant(variant: Variant, whole: str, seed: int, args: argparse.Namespace, *settings: str) -> Path:
    """Train and evaluate ``variant`` unless its results are there, and return its folder.

    Args:
        variant: what is trained.
        whole: the config with which it shares initial weights, see :func:`write_initial_weights`.
        seed: of both.
        args: of the command.
        settings: further options of the training.
    """
    config, options = variant
    folder = folder_of(variant, seed, args.output)
    if not (folder / "results.json").is_file():
        given = tuple(args.opts)
        initial = folder / INITIAL
        write_initial_weights(initial, (config, (*options, *given)), (whole, given), seed, args.configs, args.modules)
        words = ["--config-file", str(args.configs / config), *options, *settings, "SEED", str(seed), *given]
        train_net([*words, "MODEL.WEIGHTS", str(initial), "OUTPUT_DIR", str(folder)], folder / "train.log", args)
    return folder


def run_all(run: Callable[[T, int, argparse.Namespace], object], variants: Collection[T], args: argparse.Namespace) -> None:
    """``run(variant, seed, args)`` for every variant and seed, ``args.jobs`` of them at once, with a progress bar."""
    with ThreadPoolExecutor(args.jobs) as pool:
        pending = [pool.submit(run, variant, seed, args) for seed in args.seeds for variant in variants]
        for future in tqdm(pending, desc="trainings", unit="run"):
            future.result()


def result_files(variant: Variant, args: argparse.Namespace, evaluation: str = "") -> list[Path]:
    """``results.json`` of each seed; ``evaluation`` is the folder of another than the one after training."""
    return [folder_of(variant, seed, args.output) / evaluation / "results.json" for seed in args.seeds]


def files_of_tables(
    tables: Mapping[str, Mapping[str, Variant]], args: argparse.Namespace
) -> dict[str, dict[str, list[Path]]]:
    """{title: {heading of the row: its :func:`result_files`}}, for :func:`write_report`."""
    return {title: {label: result_files(variant, args) for label, variant in rows.items()} for title, rows in tables.items()}


def results(rows: Mapping[str, Sequence[Path]], dataset: str) -> dict[str, list[dict[str, Any]]]:
    """{heading of the row: results of each seed on ``dataset``}, from {heading: its ``results.json`` files}."""
    return {label: [json.loads(file.read_text())[dataset] for file in files] for label, files in rows.items()}


def table(
    title: str,
    headings: Mapping[str, str],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    steps_of: Sequence[str] = (),
    over: str | None = None,
) -> str:
    """A Markdown table: mean ± sample standard deviation over the seeds, in percent.

    Args:
        title: above it.
        headings: {metric: heading of its column}.
        rows: what :func:`results` read.
        steps_of: metrics of ``headings``; further columns say how far each row lies above another, see :func:`paired`.
        over: that other row; by default the one before.
    """
    beside = "step" if over is None else f"over {over}"
    columns = [*headings.values(), *(f"{headings[metric]}, {beside} [95 %]" for metric in steps_of)]
    lines = [f"**{title}**", "", "| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    before: Sequence[Mapping[str, Any]] | None = None
    for label, found in rows.items():
        cells = [mean_and_deviation([result[metric] for result in found]) for metric in headings]
        other = before if over is None else rows[over]
        for metric in steps_of:
            if other is None or other is found:
                cells.append("")
            else:
                cells.append(paired([result[metric] for result in found], [result[metric] for result in other]))
        before = found
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def origin(results: Iterable[Mapping[str, Any]]) -> str:
    """A sentence on where numbers come from, by the "run" that they carry (:mod:`zeroshot_d2.provenance`)."""
    found = [result.get("run") or {} for result in results]

    def all_of(key: str, cut: int | None = None) -> str:
        return ", ".join(sorted({str(run.get(key, "unknown"))[:cut] for run in found}))

    seeds = ", ".join(map(str, sorted({run["seed"] for run in found if "seed" in run}))) or "unknown"
    return (
        f"Seeds {seeds}; threads: {all_of('threads')}; device: {all_of('device')} ({all_of('cpu')}); "
        f"torch {all_of('torch')}; commit {all_of('commit', 7)}."
    )


def figure(headings: Mapping[str, str], tables: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> Figure:
    """The tables as pictures: a panel for each table and metric, each row's mean with its 95 % interval, and a line for
    every seed through its values.

    Args:
        headings: {metric: name of its column}.
        tables: {title: what :func:`results` read}.
    """
    heights = [len(rows) + 1.6 for rows in tables.values()]
    picture = new_figure(1.8 + 2.3 * len(headings), 0.3 * sum(heights) + 0.4)
    grid = picture.subplots(len(tables), len(headings), squeeze=False, height_ratios=heights, sharey="row")
    for panels, (title, rows) in zip(grid, tables.items(), strict=True):
        places = range(len(rows))
        for axes, (metric, heading) in zip(panels, headings.items(), strict=True):
            values = [[result[metric] for result in found] for found in rows.values()]
            for seed in zip(*values, strict=True):
                axes.plot(seed, places, color=SERIES_COLORS[0], linewidth=0.8, marker=".", markersize=4)
            means = [statistics.mean(found) for found in values]
            bounds = [interval(found) if len(found) > 1 else (mean, mean) for found, mean in zip(values, means, strict=True)]
            axes.hlines(places, *zip(*bounds, strict=True), color=SERIES_COLORS[1], linewidth=3, alpha=0.5)
            axes.plot(means, places, "o", color=SERIES_COLORS[1], markersize=5)
            axes.set_yticks(list(places), list(rows), fontsize=8)
            axes.set_ylim(len(rows) - 0.5, -0.5)
            plain_axes(axes, grid="x")
            axes.set_xlabel(heading, fontsize=9, color=INK)
        panels[0].set_title(title, fontsize=9, color=INK, loc="left")
    return finish(picture)


def mean_and_deviation(values: Sequence[float]) -> str:
    """ "mean ± sample standard deviation", with one decimal."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean by Student's t.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two values, got {len(values)}")
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values) - half, statistics.mean(values) + half


def paired(values: Sequence[float], others: Sequence[float]) -> str:
    """How far ``values`` lie above ``others`` of the same seeds: "mean difference [95 % interval]"."""
    differences = [value - other for value, other in zip(values, others, strict=True)]
    if len(differences) < 2:
        return f"{differences[0]:+.1f}"
    low, high = interval(differences)
    return f"{statistics.mean(differences):+.1f} [{low:+.1f}, {high:+.1f}]"


def write_report(
    headings: Mapping[str, str],
    tables: Mapping[str, Mapping[str, Sequence[Path]]],
    args: argparse.Namespace,
    steps_of: Sequence[str],
    over: Collection[str] = (),
) -> None:
    """Print all tables and where their numbers come from, and write them as tables.md and tables.png into ``args.output``.

    Args:
        headings, steps_of: as for :func:`table`.
        tables: {title: {heading of the row: ``results.json`` of each seed}}.
        args: of the command.
        over: a table with one of these rows says how far the others lie above it, any other the steps from row to row.
    """
    read = {title: results(rows, args.dataset) for title, rows in tables.items()}
    text = "\n".join(
        table(title, headings, rows, steps_of, next((row for row in over if row in rows), None))
        for title, rows in read.items()
    )
    text += f"\n{origin(result for rows in read.values() for found in rows.values() for result in found)}\n"
    write_text(args.output / "tables.md", text)
    save_figure(figure(headings, read), args.output / "tables.png")
    print(text)
