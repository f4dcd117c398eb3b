"""The comparison of all methods: its configs and tables, its cost, and SAN's own code where a clone is there."""

import json
import os
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import methods
from zeroshot_d2.cli import import_systems, system_of_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "demo"
CLONE = os.environ.get("SAN_CLONE")

import_systems()


@pytest.mark.parametrize("task", methods.METHODS)
def test_every_compared_method_is_there(task):
    configs = methods.METHODS[task].values()
    assert {system_of_config(CONFIGS / config).task for config in configs} == {task}
    baselines = {f"baselines/{path.name}" for path in (CONFIGS / "baselines").iterdir()}
    listed = {config for of_task in methods.METHODS.values() for config in of_task.values()}
    assert baselines <= listed


def test_results_of_all_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "METHODS", {"multilabel": {"Epsilon": "epsilon.yaml"}})
    args = Namespace(output=tmp_path, seeds=[1, 2])
    for seed, unseen in ((1, 40.0), (2, 44.0)):
        folder = methods.folder_of("epsilon.yaml", seed, args)
        folder.mkdir()
        content = {"demo_world_multilabel_held_out": {"ZSL_mAP": unseen, "GZSL_mAP": 60.0}}
        (folder / "results.json").write_text(json.dumps(content))
    cells = methods.results_table("multilabel", args).splitlines()[-1].split("|")
    assert [cell.strip() for cell in cells[1:-1]] == ["Epsilon", "42.0 ± 2.8", "60.0 ± 0.0"]


def test_the_command_trains_and_measures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(methods, "METHODS", {"multilabel": {"Fast0Tag": "baselines/fast0tag.yaml"}})
    monkeypatch.setattr(methods, "METRICS", {"multilabel": {"demo_world_multilabel_test": {"ZSL_mAP": "ZSL mAP"}}})
    monkeypatch.setattr(methods, "ROUNDS", 1)
    given = []

    def train_net(words, log, args):
        given.append(words)
        folder = Path(words[words.index("OUTPUT_DIR") + 1])
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"demo_world_multilabel_test": {"ZSL_mAP": 12.5}}))

    monkeypatch.setattr(methods.runs, "train_net", train_net)
    words = ["--task", "multilabel", "--seeds", "7", "--batch", "2", "--output", str(tmp_path)]
    methods.main(words)
    methods.main(words)  # what is there is not trained again
    assert len(given) == 1 and given[0][given[0].index("SEED") + 1] == "7"
    text = capsys.readouterr().out
    assert "12.5" in text and "57,696" in text and "No clone of SAN was given" in text
    assert (tmp_path / "tables.md").read_text().strip() in text


def test_a_folder_that_is_no_clone_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no clone of SAN"):
        methods.peer.import_san(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(CLONE is None, reason="SAN_CLONE names no clone of SAN")
def test_our_san_is_sans(tmp_path):
    args = Namespace(size=320, classes=5)
    sentence = methods.agreement_with_san(Path(CLONE or ""), args)
    assert "labels in 0.000 % of the pixels" in sentence
