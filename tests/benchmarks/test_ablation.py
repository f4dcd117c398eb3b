"""The ablation's table: means and deviations, from the results that the runs wrote."""

import argparse
import json
from pathlib import Path

from benchmarks.ablation import TABLE_4, TABLE_5, TABLE_6, table

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_every_variant_is_a_config_of_each_data_set():
    for data_set in ("demo", "voc", "coco"):
        for config in {*TABLE_4.values(), *TABLE_5.values(), *TABLE_6.values()}:
            assert (CONFIGS / data_set / config).is_file()


def test_table(tmp_path):
    for seed, unseen in ((1, 50.0), (2, 54.0)):
        folder = tmp_path / f"baseline_seed{seed}"
        folder.mkdir()
        numbers = {"pAcc": 90.0, "mIoU_seen": 60.0, "mIoU_unseen": unseen, "hIoU": 55.0 + seed}
        (folder / "results.json").write_text(json.dumps({"val": numbers}))
    args = argparse.Namespace(output=tmp_path, seeds=[1, 2], dataset="val")
    text = table("Title", {"Baseline": "ablation/baseline.yaml"}, args)
    assert text.splitlines()[-1] == "| Baseline | 90.0 ± 0.0 | 60.0 ± 0.0 | 52.0 ± 2.8 | 56.5 ± 0.7 |"
