"""Every method on the demo world: ``python -m benchmarks.methods --seeds 1 2 3 [--task segmentation] [--peer CLONE]``.

Trains each method with the demo's budget and every seed through ``train_net.py``, and prints Markdown tables: mean and
sample standard deviation over the seeds, trained and held parameters, and the time of an image and of a training step,
measured in turn in one process. Runs whose results are already there are not repeated, so an interrupted call goes on
where it stopped.

The methods share this project's parts, so the times compare what is the methods' own, and are no yardstick for the speed
of the parts. ``--peer`` names a clone of SAN (https://github.com/MendelXu/SAN): its own code, with random weights at 640
pixels, is then compared with this project's SAN on the same weights, and timed beside AlignZeg.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.data import get_detection_dataset_dicts
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from baselines_d2.import_san import clip_weights, learnt_weights
from benchmarks import peer, runs
from zeroshot_d2.cli import load_config
from zeroshot_d2.solver import build_optimizer
from zeroshot_d2.storage import write_text
from zeroshot_d2.system import find_system

# {row: config below configs/demo}
METHODS: Mapping[str, Mapping[str, str]] = {
    "segmentation": {
        "AlignZeg": "alignzeg.yaml",
        "SAN": "baselines/san.yaml",
        "SAN + PBC": "baselines/san_pbc.yaml",
        "SAN + GEPC": "baselines/san_gepc.yaml",
        "ZegCLIP": "baselines/zegclip.yaml",
        "SimBaseline": "baselines/simbaseline.yaml",
        "ZegFormer": "baselines/zegformer.yaml",
    },
    "multilabel": {
        "Epsilon": "epsilon.yaml",
        "Fast0Tag": "baselines/fast0tag.yaml",
        "SDL": "baselines/sdl.yaml",
        "LESA": "baselines/lesa.yaml",
        "BiAM": "baselines/biam.yaml",
        "(ML)2P-Encoder": "baselines/ml2p.yaml",
    },
}
# {data set: {metric: heading}}
METRICS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "segmentation": {
        "demo_world_val": {"pAcc": "pAcc", "mIoU_seen": "mIoU(S)", "mIoU_unseen": "mIoU(U)", "hIoU": "hIoU"},
        "demo_world_val_unseen": {"mIoU": "ZS3 mIoU"},
    },
    "multilabel": {
        "demo_world_multilabel_held_out": {"ZSL_mAP": "ZSL mAP", "GZSL_mAP": "GZSL mAP"},
    },
}
ROUNDS = 5  # of a measurement


def run(config: str, seed: int, args: argparse.Namespace) -> None:
    """Train and evaluate a method, unless its results are there."""
    folder = folder_of(config, seed, args)
    if not (folder / "results.json").is_file():
        tests = METRICS[args.task_of[config]]
        words = ["--config-file", str(args.configs / config), *args.opts]
        words += ["DATASETS.TEST", str(tuple(tests)), "SEED", str(seed), "OUTPUT_DIR", str(folder)]
        runs.train_net(words, folder / "train.log", args)


def folder_of(config: str, seed: int, args: argparse.Namespace) -> Path:
    return Path(args.output) / f"{Path(config).stem}_seed{seed}"


def results_table(task: str, args: argparse.Namespace) -> str:
    """Mean and deviation over the seeds, a row for each method."""
    columns: list[tuple[str, str, str]] = [
        (dataset, metric, heading) for dataset, metrics in METRICS[task].items() for metric, heading in metrics.items()
    ]
    rows = []
    for name, config in METHODS[task].items():
        files = [folder_of(config, seed, args) / "results.json" for seed in args.seeds]
        results = [json.loads(file.read_text()) for file in files]
        cells = [runs.mean_and_deviation([r[dataset][metric] for r in results]) for dataset, metric, _ in columns]
        rows.append([name, *cells])
    return _markdown(["", *(heading for *_, heading in columns)], rows)


# ----------------------------------------------------------------------------------------------------------- cost
class Method:
    """A method with random weights and a batch of demo images, for its cost."""

    def __init__(self, config: Path, opts: Sequence[object], batch_size: int) -> None:
        cfg = load_config(config, opts)
        torch.manual_seed(0)
        self.model: nn.Module = build_model(cfg)
        system = find_system(cfg.MODEL.META_ARCHITECTURE)
        self.trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.held = sum(p.numel() for p in self.model.parameters())
        self._optimizer = build_optimizer(cfg, self.model)
        self._batches = []
        for is_train, names in ((True, cfg.DATASETS.TRAIN), (False, cfg.DATASETS.TEST[:1])):
            mapper = system.part("mapper")(cfg, is_train=is_train)
            records = get_detection_dataset_dicts(names, filter_empty=False)
            self._batches.append([mapper({**records[i], "seed": i}) for i in range(batch_size)])

    def training_step(self) -> None:
        self.model.train()
        losses: dict[str, Tensor] = self.model(self._batches[0])
        self._optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        self._optimizer.step()

    @torch.no_grad()
    def inference(self) -> None:
        self.model.eval()
        self.model(self._batches[1])


def cost_table(task: str, args: argparse.Namespace) -> str:
    """Parameters and milliseconds of each method, measured in turn."""
    methods = {name: Method(args.configs / config, args.opts, args.batch) for name, config in METHODS[task].items()}
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in methods}
    for round_ in tqdm(range(ROUNDS + 1), desc=f"cost, {task}", leave=False):
        for name, method in methods.items():
            for times, step in zip(seconds[name], (method.inference, method.training_step), strict=True):
                taken = _timed(step)
                if round_:  # the first does not count
                    times.append(taken)
    rows = []
    for name, method in methods.items():
        infer, train = (1000 * statistics.median(times) for times in seconds[name])
        rows.append(
            [name, f"{method.trained:,}", f"{method.held:,}", f"{infer / args.batch:.1f}", f"{train / args.batch:.1f}"]
        )
    headings = ["", "trained parameters", "held with them", "ms per image, inference", "ms per image, training step"]
    return _markdown(headings, rows)


def _timed(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


# ----------------------------------------------------------------------------------------------------------- peer
def compare_with_san(clone: Path, args: argparse.Namespace) -> str:
    """SAN's own code beside this project's: whether the values agree, then seconds and memory, in turn.

    Raises:
        FileNotFoundError: the folder is no clone of SAN.
        RuntimeError: SAN's code ends with an error, or the values do not agree.
    """
    lines = [agreement_with_san(clone, args), ""]
    rows = []
    for step in ("inference", "training"):
        cases = [who for who in peer.WHO if step == "training" or "prompts" not in who]
        workers = {who: _Worker(who, step, clone, args) for who in cases}
        try:
            for _ in tqdm(range(ROUNDS), desc=f"{step}, beside SAN's code", leave=False):
                for worker in workers.values():
                    worker.step()
        finally:
            for worker in workers.values():
                worker.close()
        theirs = workers["san"]
        for who, worker in workers.items():
            spread = f"{min(worker.seconds):.2f} to {max(worker.seconds):.2f}"
            ratio, memory = theirs.median / worker.median, worker.peak_mb / theirs.peak_mb
            rows.append(
                [who, step, f"{worker.median:.2f}", spread, f"{worker.peak_mb:.0f}", f"{ratio:.2f}", f"{memory:.2f}"]
            )
    headings = ["", "step", "median s", "s", "peak MB", "times as fast as SAN", "of SAN's memory"]
    return "\n".join([*lines, _markdown(headings, rows)])


def agreement_with_san(clone: Path, args: argparse.Namespace) -> str:
    """This project's SAN with the weights of SAN's code, beside its output for an image; a sentence.

    Raises:
        RuntimeError: a score differs by more than masks that are upsampled once instead of twice explain.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, clip_file = Path(folder) / "san.pth", Path(folder) / "clip.pt"
        _run_peer(["san", "save", "--file", str(file)], clone, args)
        saved = torch.load(file, weights_only=True)
        torch.save(clip_weights(saved["model"]), clip_file)
        opts = ["MODEL.SAN.CLIP.PRETRAINED", str(clip_file), "MODEL.ALIGNZEG.TEST.OUTPUT", "scores"]
        model = peer.build_ours("coco/baselines/san_all.yaml", args.classes, opts).eval()
        unknown = model.load_state_dict(learnt_weights(saved["model"]), strict=False).unexpected_keys
        assert not unknown, unknown
        with torch.no_grad():
            (output,) = model(peer.our_inputs(1, args.size, args.classes, training=False))
    ours, theirs = output["sem_seg"], saved["sem_seg"]
    worst = float((ours - theirs).abs().max() / theirs.abs().max())
    changed = float((ours.argmax(0) != theirs.argmax(0)).float().mean())
    if worst > 0.05 or changed > 0.01:
        raise RuntimeError(
            f"SAN's code and this project's differ: by {100 * worst:.2f} % of the largest score, and in {100 * changed:.2f} "
            "% of the labels"
        )
    return (
        f"SAN's own code and this project's SAN, the same random weights, an image of {args.size} pixels, {args.classes} "
        f"classes: scores differ by at most {worst:.1e} of the largest, labels in {100 * changed:.3f} % of the pixels."
    )


def _peer_command(words: Sequence[str], clone: Path, args: argparse.Namespace) -> list[str]:
    sizes = ["--size", str(args.size), "--classes", str(args.classes)]
    return [sys.executable, "-W", "ignore", "-m", "benchmarks.peer", *words, "--clone", str(clone.absolute()), *sizes]


def _run_peer(words: Sequence[str], clone: Path, args: argparse.Namespace) -> None:
    done = subprocess.run(_peer_command(words, clone, args), cwd=runs.ROOT, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"SAN's code in {clone} ended with an error:\n{done.stderr[-2000:]}")


class _Worker:
    """A process of :mod:`benchmarks.peer`."""

    def __init__(self, who: str, step: str, clone: Path, args: argparse.Namespace) -> None:
        self.seconds: list[float] = []
        self.peak_mb = 0.0
        self._who = who
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by close)
        self._process = subprocess.Popen(
            _peer_command([who, step], clone, args),
            cwd=runs.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._answer()

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def step(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._answer())
        self.seconds.append(answer["seconds"])
        self.peak_mb = answer["peak_mb"]

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"{self._who} ended with an error:\n{self._errors.read()[-2000:]}")
        return line

    def close(self) -> None:
        self._process.communicate()
        self._errors.close()


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["left", *["right"] * (len(headings) - 1)]
    return tabulate(rows, headers=headings, tablefmt="github", colalign=align, disable_numparse=True) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    options = runs.parser("python -m benchmarks.methods", __doc__, dataset="", output="output/methods", titles=False)
    options.add_argument("--task", choices=METHODS, nargs="+", default=list(METHODS))
    options.add_argument("--batch", type=int, default=16, help="images of a step whose cost is measured")
    options.add_argument("--no-cost", action="store_true", help="leave out the measurements of time")
    options.add_argument("--no-training", action="store_true", help="measure the cost alone")
    options.add_argument("--peer", type=Path, metavar="CLONE", help="a clone of SAN, whose own code is timed too")
    options.add_argument("--size", type=int, default=640, help="pixels of an image beside --peer")
    options.add_argument("--classes", type=int, default=171, help="classes beside --peer")
    args = options.parse(argv)
    args.task_of = {config: task for task, configs in METHODS.items() for config in configs.values()}
    report = []
    if not args.no_training:
        runs.run_all(run, [config for task in args.task for config in METHODS[task].values()], args)
    for task in args.task:
        report.append(f"**{task}**\n")
        if not args.no_training:
            report.append(results_table(task, args))
        if not args.no_cost:
            report.append(cost_table(task, args))
    if args.peer is not None:
        report.append(compare_with_san(args.peer, args))
    elif not args.no_cost:
        report.append("No clone of SAN was given (--peer): its own code was not timed.\n")
    text = "\n".join(report)
    write_text(args.output / "tables.md", text)
    print(text)


if __name__ == "__main__":
    main()
