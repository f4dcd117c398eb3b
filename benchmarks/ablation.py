"""The paper's ablations on a demo world: ``python -m benchmarks.ablation --seeds 1 2 3 4 5 [--sweeps]``.

    python -m benchmarks.ablation --seeds 1 2 3 4 5 --configs configs/demo_near --dataset demo_near_val --output output/near

Trains every variant of Table 4 and Table 5 with every seed through ``train_net.py``, evaluates GZS3 and, for Table 6, the
masks alone, and prints the tables in Markdown: mean and sample standard deviation over the seeds, and the step from each row
to the next, or in a sweep over the whole, with its 95 % interval. The variants of a seed see the same batches and begin with
the same weights in all parts that they share. ``--sweeps`` adds Fig. 1 and 2 of the supplement: the weight of L_vir, and the
number of background prototypes; with ``--only Suppl`` these are all. Runs whose results are already there are not repeated,
so an interrupted call goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from functools import partial

from benchmarks import runs

METRICS = {"pAcc": "pAcc", "mIoU_seen": "mIoU(S)", "mIoU_unseen": "mIoU(U)", "hIoU": "hIoU"}

WHOLE = "alignzeg.yaml"  # what the others share parts with
WEIGHT, PROTOTYPES = "MODEL.ALIGNZEG.LOSS.VIR_WEIGHT", "MODEL.ALIGNZEG.GEPC.NUM_BACKGROUND_PROTOTYPES"
OFF = "without_correction"
OURS: runs.Variant = (WHOLE, ())
PBC: runs.Variant = ("ablation/pbc.yaml", ())
WITHOUT_BDS: runs.Variant = ("ablation/pbc_mrpe_fes.yaml", ())  # one background prototype
# {row: (variant, evaluation)}, "" being the one after training. The class indicator sends no gradient into the rest
# (Fig. 2), so the baseline's weights are those of +PBC, and Eq. 7 is off.
TABLE_4 = {
    "Baseline": (PBC, OFF),
    "+PBC": (PBC, ""),
    "+PBC+MRPE": (("ablation/pbc_mrpe.yaml", ()), ""),
    "+PBC+MRPE+FES": (WITHOUT_BDS, ""),
    "+PBC+MRPE+FES+BDS": (OURS, ""),
}
TABLE_5 = {"Ours w M-PDec": (("ablation/transformer_decoder.yaml", ()), ""), "Ours": (OURS, "")}
TABLE_6 = {"Baseline": (PBC, "oracle"), "Ours": (OURS, "oracle")}
# Not in the paper: the whole with the correction of Eq. 7 switched off at test time, and as it is.
CORRECTION = {"Ours, Eq. 7 off": (OURS, OFF), "Ours": (OURS, "")}
TABLES = {
    "Table 4, components": TABLE_4,
    "Table 5, pixel decoder": TABLE_5,
    "Table 6, masks alone: proposals classified by the ground truth": TABLE_6,
    "Not in the paper: the same weights with and without Eq. 7": CORRECTION,
}
SWEEPS = {
    "Suppl. Fig. 1, weight of the feature expansion's loss": {
        f"lambda_3 = {x:g}": ((WHOLE, (WEIGHT, str(x)) if x != 0.01 else ()), "") for x in (0.0001, 0.001, 0.01, 0.1, 1.0)
    },
    "Suppl. Fig. 2, number of background prototypes": {
        "M = 1": (WITHOUT_BDS, ""),
        **{f"M = {m}": ((WHOLE, (PROTOTYPES, str(m)) if m != 5 else ()), "") for m in (2, 5, 10, 20)},
    },
}
AS_IT_IS = ("lambda_3 = 0.01", "M = 5")  # the rows of the whole in the sweeps
EVALUATIONS = {
    OFF: ["MODEL.ALIGNZEG.PBC.POSTPROCESSOR", "NoCorrection"],
    "oracle": ["MODEL.ALIGNZEG.TEST.ORACLE", "True"],
}

Row = tuple[runs.Variant, str]


def run(rows: Collection[Row], variant: runs.Variant, seed: int, args: argparse.Namespace) -> None:
    """Train one variant with one seed and evaluate it in all the ways that ``rows`` need."""
    folder = runs.train_variant(variant, WHOLE, seed, args)
    config, options = variant
    words = ["--config-file", str(args.configs / config), "--eval-only", "MODEL.WEIGHTS", str(folder / "model_final.pth")]
    words += [*options, "SEED", str(seed), *args.opts]
    for name, extra in EVALUATIONS.items():
        if (variant, name) in rows and not (folder / name / "results.json").is_file():
            runs.train_net([*words, *extra, "OUTPUT_DIR", str(folder / name)], folder / f"{name}.log", args)


def main(argv: Sequence[str] | None = None) -> None:
    parser = runs.parser("python -m benchmarks.ablation", __doc__, dataset="demo_world_val", output="output/ablation")
    parser.add_argument("--sweeps", action="store_true", help="Fig. 1 and 2 of the supplement too")
    args = parser.parse(argv)

    tables = runs.chosen({**TABLES, **SWEEPS} if args.sweeps else TABLES, args)
    needed = {row for rows in tables.values() for row in rows.values()}
    runs.run_all(partial(run, needed), sorted({variant for variant, _ in needed}), args)
    files = {
        title: {label: runs.result_files(variant, args, evaluation) for label, (variant, evaluation) in rows.items()}
        for title, rows in tables.items()
    }
    runs.write_report(METRICS, files, args, ["mIoU_unseen", "hIoU"], over=AS_IT_IS)


if __name__ == "__main__":
    main()
