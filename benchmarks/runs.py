"""What the ablation commands share: their options, many trainings through ``train_net.py``, and tables of the results."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from detectron2.utils.env import seed_all_rng
from scipy.stats import t as student
from tqdm import tqdm

from zeroshot_d2.checkpoint import write_model
from zeroshot_d2.cli import Parser, load_config
from zeroshot_d2.trainer import Trainer
from zeroshot_d2.training_stream import kept_generators

ROOT = Path(__file__).resolve().parent.parent

Variant = TypeVar("Variant")


def parser(prog: str, description: str | None, dataset: str, output: str) -> Parser:
    """The options of every ablation command; ``dataset`` and ``output`` are defaults."""
    options = Parser(prog, description)
    options.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options.add_argument("--configs", type=Path, default=ROOT / "configs" / "demo", help="folder of the variants")
    options.add_argument("--dataset", default=dataset, help="the data set whose results are tabulated")
    options.add_argument("--output", type=Path, default=Path(output))
    options.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1)), help="trainings at once")
    return options


def train_net(arguments: Sequence[str], log: Path, args: argparse.Namespace) -> None:
    """Run ``train_net.py`` as one of ``args.jobs`` at once, its output in ``log``; it imports ``args.modules`` too.

    Raises:
        RuntimeError: it failed; the log is named.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    imports = [word for module in args.modules for word in ("--import", module)]
    with log.open("w") as stream:
        code = subprocess.run(
            [sys.executable, str(ROOT / "train_net.py"), *imports, *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        ).returncode
    if code:
        raise RuntimeError(f"train_net.py {' '.join(arguments)} ended with code {code}, see {log}")


def write_initial_weights(file: Path, config: Path, whole: Path, options: Sequence[str], args: argparse.Namespace) -> None:
    """Write the weights that ``config`` begins with: those of ``whole`` at the same seed wherever name and shape agree.

    By itself a variant draws other random numbers than ``whole`` from the first part on that differs.

    Args:
        file: of the weights; ``MODEL.WEIGHTS`` of the variant's training.
        config: the variant.
        whole: the config whose weights are shared; by itself it begins with the same ones.
        options: of the command line, for both; ``SEED`` among them.
        args: of the command, for its modules.
    """

    def built(path: Path) -> dict[str, torch.Tensor]:
        cfg = load_config(str(path), list(options), modules=args.modules)
        with kept_generators():
            seed_all_rng(cfg.SEED)
            return Trainer.build_model(cfg).state_dict()

    own, shared = built(config), built(whole)
    agree = {name: value for name, value in shared.items() if name in own and value.shape == own[name].shape}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_model(file, {**own, **agree}, None)


def json_of_own_process(module: str, words: Sequence[str], **environment: str) -> Any:
    """What ``python -m module words`` prints in its last line, as JSON.

    Raises:
        subprocess.CalledProcessError: it failed; the error has what it wrote to stderr.
    """
    command = [sys.executable, "-W", "ignore", "-m", module, *words]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run_all(
    run: Callable[[Variant, int, argparse.Namespace], None], variants: Collection[Variant], args: argparse.Namespace
) -> None:
    """``run(variant, seed, args)`` for every variant and seed, ``args.jobs`` of them at once, with a progress bar."""
    with ThreadPoolExecutor(args.jobs) as pool:
        pending = [pool.submit(run, variant, seed, args) for seed in args.seeds for variant in variants]
        for future in tqdm(pending, desc="trainings", unit="run"):
            future.result()


def table(
    title: str, headings: Mapping[str, str], rows: Mapping[str, Sequence[Path]], dataset: str, steps_of: str | None = None
) -> str:
    """A Markdown table: mean ± sample standard deviation over the seeds, in percent.

    Args:
        title: above it.
        headings: {metric in the results of ``dataset``: heading of its column}.
        rows: {heading of the row: ``results.json`` of each seed}.
        dataset: whose results.
        steps_of: a metric; a last column then says how far each row lies above the one before, see :func:`paired`.
    """
    columns = [*headings.values(), *([f"{headings[steps_of]}, step [95 %]"] if steps_of else [])]
    lines = [f"**{title}**", "", "| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    before: list[float] = []
    for label, files in rows.items():
        results = [json.loads(file.read_text())[dataset] for file in files]
        cells = [mean_and_deviation([result[metric] for result in results]) for metric in headings]
        if steps_of:
            values = [result[steps_of] for result in results]
            cells.append(paired(values, before) if before else "")
            before = values
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


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
