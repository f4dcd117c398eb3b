"""The paper's ablations on a demo world: ``python -m benchmarks.ablation --seeds 1 2 3 4 5``.

    python -m benchmarks.ablation --seeds 1 2 3 4 5 --configs configs/demo_near --dataset demo_near_val --output output/near

Trains every variant of Table 4 and Table 5 with every seed through ``train_net.py``, evaluates GZS3 and, for Table 6, the
masks alone, and prints the tables in Markdown: mean and sample standard deviation over the seeds, and the step from each row
to the next with its 95 % interval. The variants of a seed see the same batches and begin with the same weights in all parts
that they share. Runs whose results are already there are not repeated, so an interrupted call goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from benchmarks import runs

METRICS = {"pAcc": "pAcc", "mIoU_seen": "mIoU(S)", "mIoU_unseen": "mIoU(U)", "hIoU": "hIoU"}

WHOLE = "alignzeg.yaml"  # what the others share parts with
INITIAL = "initial.safetensors"
OFF = "without_correction"
# {row: (config, evaluation)}, "" being the one after training. The class indicator sends no gradient into the rest
# (Fig. 2), so the baseline's weights are those of +PBC, and Eq. 7 is off.
TABLE_4 = {
    "Baseline": ("ablation/pbc.yaml", OFF),
    "+PBC": ("ablation/pbc.yaml", ""),
    "+PBC+MRPE": ("ablation/pbc_mrpe.yaml", ""),
    "+PBC+MRPE+FES": ("ablation/pbc_mrpe_fes.yaml", ""),
    "+PBC+MRPE+FES+BDS": (WHOLE, ""),
}
TABLE_5 = {"Ours w M-PDec": ("ablation/transformer_decoder.yaml", ""), "Ours": (WHOLE, "")}
TABLE_6 = {"Baseline": ("ablation/pbc.yaml", "oracle"), "Ours": (WHOLE, "oracle")}
# Not in the paper: the whole with the correction of Eq. 7 switched off at test time, and as it is.
CORRECTION = {"Ours, Eq. 7 off": (WHOLE, OFF), "Ours": (WHOLE, "")}
TABLES = {
    "Table 4, components": TABLE_4,
    "Table 5, pixel decoder": TABLE_5,
    "Table 6, masks alone: proposals classified by the ground truth": TABLE_6,
    "Not in the paper: the same weights with and without Eq. 7": CORRECTION,
}
EVALUATIONS = {
    OFF: ["MODEL.ALIGNZEG.PBC.POSTPROCESSOR", "NoCorrection"],
    "oracle": ["MODEL.ALIGNZEG.TEST.ORACLE", "True"],
}

Row = tuple[str, str]


def folder_of(config: str, seed: int, output: Path) -> Path:
    return output / f"{Path(config).stem}_seed{seed}"


def run(config: str, seed: int, args: argparse.Namespace) -> None:
    """Train one variant with one seed and evaluate it in all the ways that a table needs."""
    folder = folder_of(config, seed, args.output)
    common = ["--config-file", str(args.configs / config)]
    options = ["SEED", str(seed), *args.opts]
    if not (folder / "results.json").is_file():
        initial = ["MODEL.WEIGHTS", str(folder / INITIAL), "OUTPUT_DIR", str(folder)]
        runs.train_net([*common, *options, *initial], folder / "train.log", args)
    weights = ["--eval-only", "MODEL.WEIGHTS", str(folder / "model_final.pth")]
    for name, extra in EVALUATIONS.items():
        wanted = any((config, name) in rows.values() for rows in TABLES.values())
        if wanted and not (folder / name / "results.json").is_file():
            settings = [*weights, *options, *extra, "OUTPUT_DIR", str(folder / name)]
            runs.train_net([*common, *settings], folder / f"{name}.log", args)


def files(rows: Mapping[str, Row], args: argparse.Namespace) -> dict[str, list[Path]]:
    """{heading of the row: ``results.json`` of each seed}."""
    return {
        label: [folder_of(config, seed, args.output) / evaluation / "results.json" for seed in args.seeds]
        for label, (config, evaluation) in rows.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = runs.parser("python -m benchmarks.ablation", __doc__, dataset="demo_world_val", output="output/ablation")
    args = parser.parse(argv)

    configs = sorted({config for rows in TABLES.values() for config, _ in rows.values()})
    for seed, config in product(args.seeds, configs):
        folder = folder_of(config, seed, args.output)
        if not (folder / "results.json").is_file():
            options = ["SEED", str(seed), *args.opts]
            variant, whole = (args.configs / config, options), (args.configs / WHOLE, options)
            runs.write_initial_weights(folder / INITIAL, variant, whole, args.modules)
    runs.run_all(run, configs, args)
    runs.write_report(METRICS, {title: files(rows, args) for title, rows in TABLES.items()}, args, ["mIoU_unseen", "hIoU"])


if __name__ == "__main__":
    main()
