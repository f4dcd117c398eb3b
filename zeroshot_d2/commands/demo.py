"""Train on the embedded demo world, evaluate, draw the papers' figures and write a report: every system that has a demo.

    python -m zeroshot_d2 demo
    python -m zeroshot_d2 demo --system AlignZeg --iterations 3000 --output output/longer
    python -m zeroshot_d2 demo --system Epsilon --weights output/demo/epsilon/model_final.pth
    python -m zeroshot_d2 demo --system AlignZeg --with-baseline

A folder gets ``results.json`` (as training writes it), the pictures as PNG, and ``report.html``, which holds them all and
needs no network.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from detectron2.config import CfgNode
from torch import nn

from ..checkpoint import Checkpointer
from ..cli import Parser, find_config, positive
from ..launch import check_weights, load, setup
from ..pictures.report import Section, Table, render_report
from ..run_folder import hold
from ..storage import write_json, write_text
from ..system import System, all_systems, find_system
from ..trainer import RESULTS_FILE, Results, Trainer


@dataclass
class DemoRun:
    """A demo's training and evaluation, for its report.

    Args:
        cfg: frozen.
        model: trained or loaded.
        results: {data set: metrics}; a demo may add to them.
        weights: the checkpoint that was loaded instead of a training, or None.
        seconds: that training and evaluation took.
        baseline: the model of the paper's baseline, where it was asked for, and its results.
        baseline_results: {data set: metrics}.
    """

    cfg: CfgNode
    model: nn.Module
    results: Results
    weights: str | None
    seconds: float
    baseline: nn.Module | None = None
    baseline_results: Results = field(default_factory=dict)

    @property
    def output(self) -> Path:
        """The folder of everything that is written."""
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def checkpoint(self) -> Path:
        """The model's weights."""
        return self.output / "model_final.pth" if self.weights is None else Path(self.weights)


@dataclass(frozen=True)
class DemoReport:
    """What a demo has to say; see :func:`zeroshot_d2.pictures.report.render_report`."""

    title: str
    lead: Sequence[str]
    table: Table
    explanations: Mapping[str, str]
    sections: Sequence[Section]
    summary: str


class Demo(Protocol):
    """The "demo" part of a system.

    Attributes:
        CONFIG: the config that it trains.
        BASELINE: that of the paper's baseline.
        OPTIONS: KEY VALUE pairs that hold for both.
    """

    CONFIG: str
    BASELINE: str
    OPTIONS: Sequence[str]

    @staticmethod
    def report(run: DemoRun) -> DemoReport:
        """Draw the pictures into ``run.output`` and describe the run."""
        ...


def train_or_load(config: str, opts: Sequence[str], weights: str | None) -> tuple[CfgNode, nn.Module, Results]:
    """Train from the start, or load ``weights``; either way evaluate on DATASETS.TEST and write ``results.json``."""
    options = [*opts, *([] if weights is None else ["MODEL.WEIGHTS", weights])]
    as_train = argparse.Namespace(
        config_file=str(find_config(config)), opts=options, modules=[], resume=False, eval_only=weights is not None
    )
    cfg = load(as_train)
    with hold(cfg.OUTPUT_DIR):
        cfg = setup(as_train, cfg)
        check_weights(cfg, as_train)
        if weights is None:
            trainer = Trainer(cfg)
            results = trainer.train() or {}
            return cfg, trainer.model.eval(), results
        model = Trainer.build_model(cfg)
        Checkpointer(model).load(weights)
        return cfg, model.eval(), Trainer.test(cfg, model)


def run_demo(system: System, args: argparse.Namespace) -> Path:
    """The demo of one system; the path of its report."""
    demo: Demo = system.part("demo")
    start = time.monotonic()
    opts = [*args.opts, *demo.OPTIONS]
    if args.iterations is not None:
        opts += ["SOLVER.MAX_EPOCHS", "0", "SOLVER.MAX_ITER", str(args.iterations)]
    output = [] if args.output is None else ["OUTPUT_DIR", str(args.output)]
    cfg, model, results = train_or_load(args.config_file or demo.CONFIG, [*opts, *output], args.weights)
    run = DemoRun(cfg, model, results, args.weights, time.monotonic() - start)
    if args.with_baseline:
        folder = ["OUTPUT_DIR", str(run.output / "baseline"), "MODEL.DEVICE", cfg.MODEL.DEVICE, "SEED", str(cfg.SEED)]
        _, run.baseline, run.baseline_results = train_or_load(demo.BASELINE, [*opts, *folder], None)
    report = demo.report(run)
    write_json(run.output / RESULTS_FILE, run.results)
    path = run.output / "report.html"
    details: dict[str, Any] = {"All settings of this run": cfg.dump(), "All numbers": json.dumps(run.results, indent=2)}
    write_text(path, render_report(report.title, report.lead, report.table, report.explanations, report.sections, details))
    print(f"\n{report.summary}\n\nreport: {path} ({time.monotonic() - start:.0f} s altogether)")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demos with command-line arguments ``argv``.

    Raises:
        FileNotFoundError: the config or the weights do not exist.
        ValueError: a system has no demo, or an argument does not fit.
    """
    parser = Parser("python -m zeroshot_d2 demo", __doc__)
    parser.add_argument("--system", metavar="NAME", help="the demo of this system alone; default: of all that have one")
    parser.add_argument("--config-file", metavar="FILE", help="another config than the demo's; needs --system")
    parser.add_argument("--output", type=Path, help="folder of everything that is written; needs --system")
    parser.add_argument("--iterations", type=positive, help="length of the training; default: the config's")
    parser.add_argument("--weights", help="a checkpoint to evaluate instead of training; needs --system")
    parser.add_argument(
        "--with-baseline", action="store_true", help="also train the paper's baseline and show it beside the system"
    )
    args = parser.parse(argv)
    if args.system is None:
        for option in ("config_file", "output", "weights"):
            if getattr(args, option) is not None:
                parser.fail(f"--{option.replace('_', '-')} needs --system NAME: each system has its own")
    if args.with_baseline and args.config_file is not None:
        parser.fail(
            "--with-baseline trains the baseline of the demo's own config: leave out --config-file or --with-baseline"
        )
    systems = (
        [system for system in all_systems() if system.has("demo")] if args.system is None else [find_system(args.system)]
    )
    for system in systems:
        run_demo(system, args)
    return 0
