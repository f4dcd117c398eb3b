"""The variants of Table 3 and Fig. 3: their configs, folders and rows."""

import argparse
import json
from pathlib import Path

from benchmarks import runs
from benchmarks.epsilon_ablation import FIG_3A, FIG_3B, METRICS, TABLE_3

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_every_variant_is_a_config_and_has_a_folder_of_its_own(tmp_path):
    variants = {*TABLE_3.values(), *FIG_3A.values(), *FIG_3B.values()}
    assert all((CONFIGS / "demo" / config).is_file() for config, _ in variants)
    assert len({runs.folder_of(variant, seed, tmp_path) for variant in variants for seed in (1, 2)}) == 2 * len(variants)
    assert runs.folder_of(FIG_3A["M = 16"], 3, tmp_path) == tmp_path / "epsilon_num_groups_16_seed3"


def test_table(tmp_path):
    variant = FIG_3B["lambda = 0.1"]
    for seed, unseen in ((1, 40.0), (2, 44.0)):
        folder = runs.folder_of(variant, seed, tmp_path)
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps({"test": {"ZSL_mAP": unseen, "GZSL_mAP": 60.0}}))
    args = argparse.Namespace(output=tmp_path, seeds=[1, 2], dataset="test")
    files = runs.files_of_tables({"Title": {"lambda = 0.1": variant}}, args)
    read = runs.results(files["Title"], "test")
    lines = runs.table("Title", METRICS, read).splitlines()
    assert lines[2] == "| | mAP ZSL | mAP GZSL |" and lines[-1] == "| lambda = 0.1 | 42.0 ± 2.8 | 60.0 ± 0.0 |"
