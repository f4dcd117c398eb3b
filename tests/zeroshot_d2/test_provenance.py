"""Where numbers come from."""

import json
import subprocess
import sys

import pytest
import torch

from zeroshot_d2 import __version__, load_config, provenance


@pytest.fixture(autouse=True)
def fresh():
    provenance._commit.cache_clear()
    yield
    provenance._commit.cache_clear()


def test_the_facts_of_a_run(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/someone/train_net.py", "--config-file", "demo/alignzeg.yaml"])
    facts = provenance.run_facts(load_config("demo/alignzeg.yaml", ["SEED", "7"]))
    assert (facts["version"], facts["seed"], facts["processes"], facts["device"]) == (__version__, 7, 1, "cpu")
    assert facts["command"] == "train_net.py --config-file demo/alignzeg.yaml"
    assert facts["threads"] == torch.get_num_threads() and facts["torch"] == torch.__version__ and facts["cpu"]
    json.dumps(facts)


def test_the_commit_of_a_clone_and_whether_files_were_changed(tmp_path, monkeypatch):
    file = tmp_path / "package" / "provenance.py"
    file.parent.mkdir()
    file.write_text("1")
    monkeypatch.setattr(provenance, "__file__", str(file))
    assert provenance._commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    provenance._commit.cache_clear()
    commit = provenance._commit()
    assert commit is not None and len(commit) == 40
    file.write_text("2")
    provenance._commit.cache_clear()
    assert provenance._commit() == f"{commit}+"


def test_what_a_rerun_gives_again():
    results = {"val": {"hIoU": 1.0, "run": {"seed": 7}}, "test": {"hIoU": 2.0}}
    assert provenance.without_run(results) == {"val": {"hIoU": 1.0}, "test": {"hIoU": 2.0}}
    assert results["val"]["run"] == {"seed": 7}
