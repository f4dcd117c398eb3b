"""The forms that the cost benchmark compares compute the same thing, and clones of other projects are found and used."""

import os
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog

from benchmarks import epsilon_cost, multilabel_peers

SIZE = {"images": 60, "classes": 30, "unseen": 8, "top_k": (2, 5)}
CLONES = {name: os.environ.get(f"{name.upper()}_CLONE") for name in ("SDL", "BiAM")}

# What stands in for a clone of each, with the interface of its code.
SDL_FILE = """
import torch
import torch.nn.functional as F

class SDLLoss(torch.nn.Module):
    def __init__(self, weight, wordvec_array):
        super().__init__()
        self.weight, self.words, self.embed_len = weight, wordvec_array[0], 300

    def forward(self, x, y):
        rows = x.view(len(x), self.embed_len, -1)
        scores = torch.einsum("nem,ek->nkm", rows, self.words).amax(dim=2)
        total = torch.zeros(()).cuda()
        for s, r, labels in zip(scores, rows, y == 1):
            pairs = F.softplus(s[~labels][None] - s[labels][:, None]).sum() / labels.sum()
            omega = 1 + (self.words[:, labels].var(dim=1).sum() if labels.sum() > 1 else 0)
            total = total + 2 * ((1 - self.weight) * omega * pairs + self.weight * r.var(dim=1).sum())
        return total / len(x)
"""
BIAM_FILE = """
import h5py
import torch
from sklearn.preprocessing import normalize

def compute_AP(predictions, labels):
    ap = torch.zeros(predictions.shape[1]).cuda()
    for k, (s, y) in enumerate(zip(predictions.T, labels.T)):
        hit = y[s.argsort(descending=True)] > 0
        if hit.any():
            ap[k] = (hit.cumsum(0) / torch.arange(1, len(hit) + 1))[hit].mean()
    return ap

def compute_F1(predictions, labels, mode_F1, k_val):
    assert mode_F1 == "overall"
    best = predictions.topk(k_val, dim=1).indices
    predictions.zero_()
    hits = (labels.gather(1, best) == 1).sum().cuda()
    p, r = hits / best.numel(), hits / (labels == 1).sum()
    return 2 * p * r / (p + r), p, r
"""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {"BATCH": 6, "WIDTH": 20, "ANNOTATED": 4}.items():
        monkeypatch.setattr(epsilon_cost, name, value)
    yield
    if "cost" in MetadataCatalog:
        MetadataCatalog.remove("cost")


@pytest.fixture
def clones(tmp_path):
    """Folders that stand in for clones, {name: folder}."""
    texts = {"SDL": SDL_FILE, "BiAM": BIAM_FILE}
    for peer in multilabel_peers.PEERS:
        file = tmp_path / peer.name / peer.file
        file.parent.mkdir(parents=True)
        file.write_text(texts[peer.name])
    return {peer.name: tmp_path / peer.name for peer in multilabel_peers.PEERS}


def clone(name):
    folder = CLONES[name]
    if folder is None:
        pytest.skip(f"{name.upper()}_CLONE names no clone of {name}")
    return Path(folder)


def test_plain_loss():
    data = epsilon_cost.loss_case(400)
    assert epsilon_cost.loss_ours(data) == pytest.approx(epsilon_cost.loss_plain(data), rel=1e-5)


@pytest.mark.parametrize("complete", [True, False])
def test_plain_evaluator(complete):
    data = epsilon_cost.batches(SIZE, complete)
    plain, ours = (form(data, SIZE, complete) for form in (epsilon_cost.evaluator_plain, epsilon_cost.evaluator_ours))
    assert len(plain) == 12 and {key: ours[key] for key in plain} == pytest.approx(plain)


def test_loss_beside_what_stands_in_for_sdl(clones):
    data = epsilon_cost.loss_case(40)
    ours, theirs = epsilon_cost.loss_ours(data, form="sdl"), epsilon_cost.loss_of_sdl(data, clones["SDL"])
    assert ours == pytest.approx(theirs, rel=1e-5) and ours["norm of the gradient"] > 0


def test_evaluator_beside_what_stands_in_for_biam(clones):
    data = epsilon_cost.batches(SIZE, True)
    theirs = epsilon_cost.evaluator_of_biam(data, SIZE, True, clones["BiAM"])
    ours = epsilon_cost.evaluator_ours(data, SIZE, True)
    assert len(theirs) == 14 and {key: ours[key] for key in theirs} == pytest.approx(theirs, rel=1e-5)


def test_loss_beside_sdls_own_code():
    data = epsilon_cost.loss_case(40)
    ours, theirs = epsilon_cost.loss_ours(data, form="sdl"), epsilon_cost.loss_of_sdl(data, clone("SDL"))
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_evaluator_beside_biams_own_code():
    data = epsilon_cost.batches(SIZE, True)
    theirs = epsilon_cost.evaluator_of_biam(data, SIZE, True, clone("BiAM"))
    ours = epsilon_cost.evaluator_ours(data, SIZE, True)
    assert len(theirs) == 14 and {key: ours[key] for key in theirs} == pytest.approx(theirs, rel=1e-5)


def test_folders_are_recognised_by_what_they_hold(clones, tmp_path):
    assert multilabel_peers.find_peers([clones["BiAM"], clones["SDL"]]) == clones
    assert multilabel_peers.find_peers([]) == {}
    with pytest.raises(FileNotFoundError, match=r"--peer .*nothing is a clone neither of SDL \(https.*\) nor of BiAM"):
        multilabel_peers.find_peers([clones["SDL"], tmp_path / "nothing"])
    with pytest.raises(ValueError, match="are both clones of SDL: name one"):
        multilabel_peers.find_peers([clones["SDL"], clones["SDL"]])


def test_every_case_is_there_once_and_only_chooses(clones):
    args = Namespace(images=100, nus_wide_images=200, only=None)
    plain, every = epsilon_cost.cases(args, {}), epsilon_cost.cases(args, clones)
    assert [case.beside for case in plain] == ["plain"] * 3
    assert [case.beside for case in every[3:]] == ["SDL's code", "SDL's code", "BiAM's code"]
    assert len({(case.name, case.beside) for case in every}) == 6
    args.only = "peers"
    assert [case.name for case in epsilon_cost.cases(args, clones)] == [case.name for case in every[3:]]
    args.only = "evaluator NUS-WIDE"
    assert {case.name for case in epsilon_cost.cases(args, clones)} == {every[1].name} and "200 images" in every[1].name


def fake_process(index, form, args):
    seconds = {"ours": 0.5, "other": 2.0}[form]
    return {"seconds": seconds, "megabytes": 10.0, "result": {"mAP": 50.0}, "rate": 8e10}


def test_the_command_takes_turns_and_prints_ratios(clones, monkeypatch, capsys):
    asked = []

    def process(index, form, args):
        asked.append((index, form))
        return fake_process(index, form, args)

    monkeypatch.setattr(epsilon_cost, "in_own_process", process)
    epsilon_cost.main(["--only", "peers", "--rounds", "2", "--peer", str(clones["SDL"])])
    assert asked == [(0, "ours"), (0, "other"), (1, "ours"), (1, "other")] * 2
    text = capsys.readouterr().out
    assert "4.0 (4.0 to 4.0)" in text and "80 GFLOP/s" in text and "loss, 925 classes" in text
    assert "No clone of BiAM was given (--peer): that code was not timed." in text
    epsilon_cost.main(["--only", "loss", "--rounds", "1"])
    assert "No clone of SDL or BiAM was given" in capsys.readouterr().out


@pytest.mark.slow
def test_each_form_runs_in_a_process_of_its_own(capsys):
    epsilon_cost.main(["--only", "evaluator NUS-WIDE", "--nus-wide-images", "64", "--rounds", "1"])
    assert "| evaluator NUS-WIDE, 64 images, 1,006 classes | plain" in capsys.readouterr().out


def test_a_process_that_fails_ends_the_command_with_its_last_words(clones, monkeypatch):
    class Failed:
        returncode, stderr, stdout = 1, "...\nRuntimeError: their code failed", ""

    monkeypatch.setattr(epsilon_cost.subprocess, "run", lambda *words, **options: Failed)
    with pytest.raises(SystemExit, match=r"--case 0 ours .*--peer /.* ended with an error:\n[^/]*their code failed"):
        epsilon_cost.main(["--only", "peers", "--rounds", "1", "--peer", str(clones["BiAM"])])


def test_results_that_differ_end_the_command(monkeypatch):
    def process(index, form, args):
        return fake_process(index, form, args) | {"result": {"mAP": 50.0 if form == "ours" else 50.1}}

    monkeypatch.setattr(epsilon_cost, "in_own_process", process)
    with pytest.raises(SystemExit, match=r"loss, 7,186 classes: the results of ours and of plain differ by 2.0e-03"):
        epsilon_cost.main(["--only", "loss", "--rounds", "1"])


def test_wrong_arguments_are_one_sentence(tmp_path, capsys):
    for words, message in (
        (["--only", "peers"], "--only peers needs the folder of a clone"),
        (["--peer", str(tmp_path)], "is a clone neither of SDL"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--images", "0"], "--images must be at least 1, got 0"),
    ):
        with pytest.raises(SystemExit):
            epsilon_cost.main(words)
        assert message in capsys.readouterr().err


def test_a_case_is_measured(monkeypatch):
    monkeypatch.setattr(epsilon_cost, "product_rate", lambda side, clock: 1e9)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    case = epsilon_cost.Case("double", "plain", lambda: 3.0, lambda x: {"y": 2 * x}, lambda x: {"y": x + x})
    measured = epsilon_cost.run_case(0, "ours", [case])
    assert measured["result"] == {"y": 6.0} and measured["seconds"] >= 0 and measured["rate"] == 1e9


def test_random_numbers_are_those_of_the_size():
    data = epsilon_cost.batches({**SIZE, "images": 513}, complete=False)
    assert [scores.shape for scores, _ in data] == [(512, 30), (1, 30)]
    labels = [np.concatenate([record["positive_labels"], record["negative_labels"]]) for _, part in data for record in part]
    assert len(labels) == 513 and all(len(np.unique(row)) == len(row) for row in labels)
