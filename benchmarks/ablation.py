"""The paper's ablations on the demo world: ``python -m benchmarks.ablation --seeds 1 2 3``.

Trains every variant of Table 4 and Table 5 with every seed through ``train_net.py``, evaluates GZS3 and, for Table 6, the
masks alone, and prints the tables in Markdown: mean and sample standard deviation over the seeds. Runs whose results are
already there are not repeated, so an interrupted call goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import runs
from zeroshot_d2.storage import write_text

METRICS = {"pAcc": "pAcc", "mIoU_seen": "mIoU(S)", "mIoU_unseen": "mIoU(U)", "hIoU": "hIoU"}

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


def folder_of(config: str, seed: int, output: Path) -> Path:
    return output / f"{Path(config).stem}_seed{seed}"


def run(config: str, seed: int, args: argparse.Namespace) -> None:
    """Train one variant with one seed and evaluate it in all the ways that a table needs."""
    folder = folder_of(config, seed, args.output)
    common = ["--config-file", str(args.configs / config)]
    options = ["SEED", str(seed), *args.opts]
    if not (folder / "results.json").is_file():
        runs.train_net([*common, *options, "OUTPUT_DIR", str(folder)], folder / "train.log", args)
    weights = ["--eval-only", "MODEL.WEIGHTS", str(folder / "model_final.pth")]
    evaluations = {"oracle": ["MODEL.ALIGNZEG.TEST.ORACLE", "True"]} if config in TABLE_6.values() else {}
    if config in WITHOUT_CORRECTION.values():
        evaluations["without_correction"] = ["MODEL.ALIGNZEG.PBC.POSTPROCESSOR", "NoCorrection"]
    for name, extra in evaluations.items():
        if not (folder / name / "results.json").is_file():
            settings = [*weights, *options, *extra, "OUTPUT_DIR", str(folder / name)]
            runs.train_net([*common, *settings], folder / f"{name}.log", args)


def table(title: str, variants: dict[str, str], args: argparse.Namespace, evaluation: str = "") -> str:
    """A Markdown table of ``variants``, from the results of one ``evaluation`` ("": the one after training)."""
    rows = {
        label: [folder_of(config, seed, args.output) / evaluation / "results.json" for seed in args.seeds]
        for label, config in variants.items()
    }
    return runs.table(title, METRICS, rows, args.dataset)


def main(argv: Sequence[str] | None = None) -> None:
    parser = runs.parser("python -m benchmarks.ablation", __doc__, dataset="demo_world_val", output="output/ablation")
    args = parser.parse(argv)

    configs = sorted({*TABLE_4.values(), *TABLE_5.values(), *TABLE_6.values()})
    runs.run_all(run, configs, args)
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
    write_text(args.output / "tables.md", report)
    print(report)


if __name__ == "__main__":
    main()
