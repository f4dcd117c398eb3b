"""The ablation's table: means and deviations, from the results that the runs wrote."""

import argparse
import json
from pathlib import Path

from benchmarks.ablation import EVALUATIONS, TABLES, table

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_every_variant_is_a_config_of_each_data_set():
    for data_set in ("demo", "demo_near", "voc", "coco"):
        for config, evaluation in (row for rows in TABLES.values() for row in rows.values()):
            assert (CONFIGS / data_set / config).is_file() and evaluation in ("", *EVALUATIONS)


def test_table(tmp_path):
    for seed, unseen in ((1, 50.0), (2, 54.0)):
        for evaluation, gain in (("", 1.0 + seed), ("without_correction", 0.0)):
            folder = tmp_path / f"pbc_seed{seed}" / evaluation
            folder.mkdir(exist_ok=True)
            numbers = {"pAcc": 90.0, "mIoU_seen": 60.0, "mIoU_unseen": unseen, "hIoU": 55.0 + seed + gain}
            (folder / "results.json").write_text(json.dumps({"val": numbers}))
    args = argparse.Namespace(output=tmp_path, seeds=[1, 2], dataset="val")
    rows = {"Baseline": ("ablation/pbc.yaml", "without_correction"), "+PBC": ("ablation/pbc.yaml", "")}
    assert table("Title", rows, args).splitlines()[-2:] == [
        "| Baseline | 90.0 ± 0.0 | 60.0 ± 0.0 | 52.0 ± 2.8 | 56.5 ± 0.7 |  |",
        "| +PBC | 90.0 ± 0.0 | 60.0 ± 0.0 | 52.0 ± 2.8 | 59.0 ± 1.4 | +2.5 [-3.9, +8.9] |",
    ]
