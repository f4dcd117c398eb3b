"""The paper's ablations on the demo world: ``python -m benchmarks.ablation --seeds 1 2 3``.

Trains every variant of Table 4 and Table 5 with every seed through ``train_net.py``, evaluates GZS3 and, for Table 6, the
masks alone, and prints the tables in Markdown: mean and sample standard deviation over the seeds. Runs whose results are
already there are not repeated, so an interrupted call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
METRICS = ("pAcc", "mIoU_seen", "mIoU_unseen", "hIoU")
HEADINGS = ("pAcc", "mIoU(S)", "mIoU(U)", "hIoU")

TABLE_4 = {
    "Baseline": "ablation/baseline.yaml",
    "+PBC": "ablation/pbc.yaml",
    "+PBC+MRPE": "ablation/pbc_mrpe.yaml",
    "+PBC+MRPE+FES": "ablation/pbc_mrpe_fes.yaml",
    "+PBC+MRPE+FES+BDS": "alignzeg.yaml",
}
TABLE_5 = {"Ours w M-PDec": "ablation/transformer_decoder.yaml", "Ours": "alignzeg.yaml"}
TABLE_6 = {"Baseline": "ablation/baseline.yaml", "Ours": "alignzeg.yaml"}
# Not in the paper: the trained models of Table 4 with the correction of Eq. 7 switched off at test time.
WITHOUT_CORRECTION = {"+PBC": "ablation/pbc.yaml", "+PBC+MRPE+FES+BDS": "alignzeg.yaml"}


def train_net(arguments: list[str], log: Path, threads: int) -> None:
    """Run ``train_net.py``, its output in ``log``.

    Raises:
        RuntimeError: it failed; the log is named.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("w") as stream:
        code = subprocess.run(
            [sys.executable, str(ROOT / "train_net.py"), *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
        ).returncode
    if code:
        raise RuntimeError(f"train_net.py {' '.join(arguments)} ended with code {code}, see {log}")


def run(config: str, seed: int, args: argparse.Namespace) -> None:
    """Train one variant with one seed and evaluate it in all the ways that a table needs."""
    folder = args.output / f"{Path(config).stem}_seed{seed}"
    common = ["--config-file", str(args.configs / config)]
    options = ["SEED", str(seed), *args.opts]
    if not (folder / "results.json").is_file():
        train_net([*common, *options, "OUTPUT_DIR", str(folder)], folder / "train.log", args.threads)
    weights = ["--eval-only", "MODEL.WEIGHTS", str(folder / "model_final.pth")]
    evaluations = {"oracle": ["MODEL.ALIGNZEG.TEST.ORACLE", "True"]} if config in TABLE_6.values() else {}
    if config in WITHOUT_CORRECTION.values():
        evaluations["without_correction"] = ["MODEL.ALIGNZEG.PBC.POSTPROCESSOR", "NoCorrection"]
    for name, extra in evaluations.items():
        if not (folder / name / "results.json").is_file():
            train_net(
                [*common, *weights, *options, *extra, "OUTPUT_DIR", str(folder / name)], folder / f"{name}.log", args.threads
            )


def table(title: str, variants: dict[str, str], args: argparse.Namespace, evaluation: str = "") -> str:
    """A Markdown table of ``variants``: mean ± deviation over the seeds, in percent."""
    lines = [f"**{title}**", "", "| | " + " | ".join(HEADINGS) + " |", "|---|" + "---|" * len(HEADINGS)]
    for label, config in variants.items():
        results = [
            _results(args.output / f"{Path(config).stem}_seed{seed}" / evaluation / "results.json", args.dataset)
            for seed in args.seeds
        ]
        cells = []
        for metric in METRICS:
            values = [result[metric] for result in results]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _results(path: Path, dataset: str) -> dict[str, Any]:
    return json.loads(path.read_text())[dataset]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--configs", type=Path, default=ROOT / "configs" / "demo", help="folder of the variants")
    parser.add_argument("--dataset", default="demo_world_val", help="the data set whose GZS3 results are tabulated")
    parser.add_argument("--output", type=Path, default=Path("output/ablation"))
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1)), help="trainings at once")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for every run")
    args = parser.parse_args()
    args.threads = max(1, (os.cpu_count() or 1) // args.jobs)

    configs = sorted({*TABLE_4.values(), *TABLE_5.values(), *TABLE_6.values()})
    with ThreadPoolExecutor(args.jobs) as pool:
        pending = [pool.submit(run, config, seed, args) for seed in args.seeds for config in configs]
        for future in tqdm(pending, desc="trainings", unit="run"):
            future.result()
    report = "\n".join(
        [
            table("Table 4, components", TABLE_4, args),
            table("Table 5, pixel decoder", TABLE_5, args),
            table("Table 6, masks alone: proposals classified by the ground truth", TABLE_6, args, "oracle"),
            table(
                "Not in the paper: trained as in Table 4, Eq. 7 off at test time",
                WITHOUT_CORRECTION,
                args,
                "without_correction",
            ),
        ]
    )
    (args.output / "tables.md").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
