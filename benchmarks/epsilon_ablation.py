"""Table 3 and Fig. 3 on the demo world: ``python -m benchmarks.epsilon_ablation --seeds 1 2 3 [--sweeps] [--readings]``.

Trains every variant with every seed through ``train_net.py`` and prints Markdown tables: mean and sample standard deviation
over the seeds of ZSL and GZSL mAP, and how far each row of Table 3 lies above the whole, with the 95 % interval. The
variants of a seed see the same batches and begin with the same weights in all parts of the same shape. Runs whose results
are already there are not repeated, so an interrupted call goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from benchmarks import runs

METRICS = {"ZSL_mAP": "mAP ZSL", "GZSL_mAP": "mAP GZSL"}
GROUPS, LAMBDA = "MODEL.EPSILON.NUM_GROUPS", "MODEL.EPSILON.LOSS.LAMBDA"
RANK_FORM, VARIANCE = "MODEL.EPSILON.LOSS.RANK_FORM", "MODEL.EPSILON.LOSS.VARIANCE"

WHOLE = "epsilon.yaml"  # what the others share parts with
OURS = "ours, M = 8"
# {row: (config, options)}; the letters are the paper's.
TABLE_3 = {
    "a  Backbone Only, M = 8": ("epsilon_ablation/backbone_only.yaml", ()),
    "b  Backbone Only, M = 2": ("epsilon_ablation/backbone_only_m2.yaml", ()),
    "c  +GPA, M = 8": ("epsilon_ablation/gpa.yaml", ()),
    "d  +GPA, M = 2": ("epsilon_ablation/gpa_m2.yaml", ()),
    "e  +GFP, M = 8": ("epsilon_ablation/gfp.yaml", ()),
    "f  +GFP, M = 2": ("epsilon_ablation/gfp_m2.yaml", ()),
    OURS: (WHOLE, ()),
}
FIG_3A = {f"M = {m}": (WHOLE, (GROUPS, str(m)) if m != 8 else ()) for m in (1, 2, 4, 8, 16)}
# The paper's 0.1 to 0.9, and below them, where the demo config's 0.01 lies.
LAMBDAS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.9)
FIG_3B = {f"lambda = {x}": (WHOLE, (LAMBDA, str(x)) if x != 0.01 else ()) for x in LAMBDAS}

# Readings of Eq. 10 and Eq. 12 (readings 13, 15 and 26 of the paper map): {title: (form of L_r, variance of L_reg)}.
READINGS = {
    "alpha as printed, Eq. 12 over the groups": ("paper", "groups"),
    "SDL's form, Eq. 12 over the groups": ("sdl", "groups"),
    "alpha as printed, Eq. 12 within each group's vector": ("paper", "within"),
}
RATES = {"": "2.0e-3", ", half the learning rate": "1.0e-3"}


def reading(rank_form: str, variance: str) -> dict[str, runs.Variant]:
    """The rows of one reading: lambda over the range of Fig. 3b, at the demo's learning rate and at half of it."""
    return {
        f"lambda = {x}{title}": (
            WHOLE,
            (RANK_FORM, rank_form, VARIANCE, variance, LAMBDA, str(x), "SOLVER.BASE_LR", rate),
        )
        for title, rate in RATES.items()
        for x in (0.01, 0.1, 0.3, 0.5, 0.9)
    }


def run(variant: runs.Variant, seed: int, args: argparse.Namespace) -> None:
    """Train and evaluate one variant with one seed."""
    runs.train_variant(variant, WHOLE, seed, args, "DATASETS.TEST", f"('{args.dataset}',)")


def main(argv: Sequence[str] | None = None) -> None:
    parser = runs.parser(
        "python -m benchmarks.epsilon_ablation",
        __doc__,
        dataset="demo_world_multilabel_test",
        output="output/epsilon_ablation",
    )
    parser.add_argument("--sweeps", action="store_true", help="Fig. 3 too: the number of groups, and lambda")
    parser.add_argument("--readings", action="store_true", help="Fig. 3b in each reading of Eq. 10 and Eq. 12")
    args = parser.parse(argv)

    tables: dict[str, Mapping[str, runs.Variant]] = {"Table 3, components": TABLE_3}
    if args.sweeps:
        tables |= {"Fig. 3a, number of groups": FIG_3A, "Fig. 3b, weight of the regularizer": FIG_3B}
    if args.readings:
        tables |= {f"Fig. 3b, {title}": reading(*forms) for title, forms in READINGS.items()}
    tables = runs.chosen(tables, args)
    variants = sorted({variant for rows in tables.values() for variant in rows.values()})
    runs.run_all(run, variants, args)
    runs.write_report(METRICS, runs.files_of_tables(tables, args), args, [*METRICS], over=[OURS])


if __name__ == "__main__":
    main()
