"""The ablation's table: means and deviations, from the results that the runs wrote."""

import argparse
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks import runs
from benchmarks.ablation import AS_IT_IS, EVALUATIONS, METRICS, PROTOTYPES, SWEEPS, TABLES, WHOLE, WITHOUT_BDS
from zeroshot_d2.cli import load_config
from zeroshot_d2.trainer import Trainer

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_every_variant_is_a_config_of_each_data_set():
    for data_set in ("demo", "demo_near", "voc", "coco"):
        for (config, _), evaluation in (row for rows in TABLES.values() for row in rows.values()):
            assert (CONFIGS / data_set / config).is_file() and evaluation in ("", *EVALUATIONS)


def test_the_sweeps_start_from_the_demos_settings(tmp_path):
    variants = {variant for rows in SWEEPS.values() for variant, _ in rows.values()}
    assert len(variants) == 9 and (WHOLE, ()) in variants
    assert len({runs.folder_of(variant, 1, tmp_path) for variant in variants}) == 9
    assert [row for rows in SWEEPS.values() for row in rows if rows[row][0] == (WHOLE, ())] == list(AS_IT_IS)
    cfg = load_config(CONFIGS / "demo" / WHOLE)
    assert cfg.MODEL.ALIGNZEG.LOSS.VIR_WEIGHT == 0.01 and cfg.MODEL.ALIGNZEG.GEPC.NUM_BACKGROUND_PROTOTYPES == 5


@pytest.mark.parametrize("data_set", ["demo", "demo_near", "voc", "coco"])
def test_without_bds_the_whole_has_one_background_prototype(data_set):
    """So Table 4 and Fig. 2 of the supplement share that training."""
    config, options = WITHOUT_BDS
    without = load_config(CONFIGS / data_set / config, [*options, "OUTPUT_DIR", "out"])
    assert without == load_config(CONFIGS / data_set / WHOLE, [PROTOTYPES, "1", "OUTPUT_DIR", "out"])


def test_only_chooses_tables_by_their_titles():
    tables = {**TABLES, **SWEEPS}
    assert runs.chosen(tables, argparse.Namespace(only="Suppl")) == SWEEPS
    assert runs.chosen(tables, argparse.Namespace(only="")) == tables
    with pytest.raises(ValueError, match=r"no table has --only 'Fig. 9' in its title; there are 'Table 4, components', "):
        runs.chosen(tables, argparse.Namespace(only="Fig. 9"))


def test_table(tmp_path):
    for seed, unseen in ((1, 50.0), (2, 54.0)):
        for evaluation, gain in (("", 1.0 + seed), ("without_correction", 0.0)):
            folder = tmp_path / f"pbc_seed{seed}" / evaluation
            folder.mkdir(exist_ok=True)
            numbers = {"pAcc": 90.0, "mIoU_seen": 60.0, "mIoU_unseen": unseen, "hIoU": 55.0 + seed + gain}
            (folder / "results.json").write_text(json.dumps({"val": numbers}))
    args = argparse.Namespace(output=tmp_path, seeds=[1, 2], dataset="val")
    pbc = ("ablation/pbc.yaml", ())
    rows = {"Baseline": runs.result_files(pbc, args, "without_correction"), "+PBC": runs.result_files(pbc, args)}
    read = runs.results(rows, "val")
    assert runs.table("Title", METRICS, read, ["hIoU"]).splitlines()[-2:] == [
        "| Baseline | 90.0 ± 0.0 | 60.0 ± 0.0 | 52.0 ± 2.8 | 56.5 ± 0.7 |  |",
        "| +PBC | 90.0 ± 0.0 | 60.0 ± 0.0 | 52.0 ± 2.8 | 59.0 ± 1.4 | +2.5 [-3.9, +8.9] |",
    ]


def initial_weights(tmp_path, config, whole):
    file = tmp_path / "initial.safetensors"
    runs.write_initial_weights(file, (config, ()), (whole, ()), 3, CONFIGS / "demo")
    return load_file(file)


def test_variants_begin_alike_in_what_they_share(tmp_path):
    whole = initial_weights(tmp_path, WHOLE, WHOLE)
    variant = initial_weights(tmp_path, "ablation/pbc.yaml", WHOLE)
    shared = [name for name in variant if name in whole and variant[name].shape == whole[name].shape]
    assert all(variant[name].equal(whole[name]) for name in shared)
    # What is built after the pixel decoder, the first part that differs.
    assert any(name.startswith("class_indicator.") for name in shared)
    own = set(variant) - set(shared)
    assert all(name.startswith(("pixel_decoder.", "classifier.background_prototypes")) for name in own) and len(own) > 2


def test_the_whole_begins_as_without_initial_weights(tmp_path):
    initial = initial_weights(tmp_path, WHOLE, WHOLE)
    settings = ["SEED", "3", "DATASETS.TRAIN", "('short_alignzeg_train',)", "OUTPUT_DIR", str(tmp_path)]
    begun = Trainer(load_config(CONFIGS / "demo" / WHOLE, settings)).model.state_dict()
    assert begun.keys() == initial.keys() and all(begun[name].equal(initial[name]) for name in begun)
