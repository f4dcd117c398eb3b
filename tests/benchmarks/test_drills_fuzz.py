"""The drill "fuzz": what it says of each outcome, and a part of its corpus."""

import contextlib
import importlib
import json
import logging
import random
from collections import Counter

import pytest

from benchmarks.drills import fuzz
from benchmarks.drills.corpus import KINDS, all_cases, self_check
from benchmarks.drills.corpus.case import Case


def of_self_check(folder, wanted):
    """The outcomes of the self-check's cases that end by themselves."""
    found = []
    for case in self_check.cases(1):
        if case.name in ("crash", "hang"):
            continue
        opened = [str(folder / "canary-outside.txt")] if case.run.__name__ == "_reach_outside" else []
        found.append((case.name, fuzz.judge(case, folder, opened)[0]))
        for made in folder.glob("canary-*"):
            made.rmdir() if made.is_dir() else made.unlink()
    return [pair for pair in found if pair[0] in wanted]


def test_outcomes_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = of_self_check(tmp_path, fuzz.OUTCOMES)
    assert len(found) == 9 and all(expected == outcome for expected, outcome in found)


def test_a_warning_must_name_what_it_is_about(tmp_path):
    def run(folder):
        logging.getLogger("drill").warning("a.txt is passed over: correct it")
        return True

    for warns, expected in ((("a.txt",), "clear"), (("b.txt",), "wrong"), ((), "valid")):
        assert fuzz.judge(Case("kind", "name", run, None, bool, warns), tmp_path, [])[0] == expected


@pytest.mark.parametrize(
    ("message", "lacks"),
    [
        ("a.txt is empty: fetch it again", ""),
        ("it is empty: fetch it again", "does not name 'a.txt'"),
        ("a.txt is empty", "does not say what to do"),
        ("a.txt must\nbe\nwhole", "has 3 lines"),
        ("a.txt must be " + "x" * 700, "characters"),
        ("Traceback (most recent call last): a.txt must be", "traceback"),
    ],
)
def test_what_makes_a_message_clear(message, lacks):
    assert lacks in fuzz.is_clear(message, ["a.txt"])
    assert bool(fuzz.is_clear(message, ["a.txt"])) == bool(lacks)


@pytest.mark.slow
def test_a_crash_and_a_hang_are_counted_and_the_others_still_run():
    numbered = list(enumerate(self_check.cases(1)))
    found = list(fuzz.run_all(numbered, 1, workers=2, limit=3, seconds=120, corpus_of=self_check.cases))
    assert len(found) == len(numbered)
    assert [(case.name, outcome) for case, outcome in found if case.name != outcome.outcome] == []


def test_the_corpus_is_the_same_for_a_seed_and_large_enough():
    cases = all_cases(1)
    assert [(case.kind, case.name) for case in cases] == [(case.kind, case.name) for case in all_cases(1)]
    assert [case.name for case in cases] != [case.name for case in all_cases(2)]
    counts = Counter(case.kind for case in cases)
    assert list(counts) == list(KINDS) and len(cases) >= 600 and counts["hostile"] >= 40
    twice = [pair for pair, count in Counter((case.kind, case.name) for case in cases).items() if count > 1]
    assert twice == []
    assert all(case.names is not None or case.reads is not None for case in cases)  # each says what is expected of it


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "commands"])
def test_a_part_of_the_corpus(kind, tmp_path, monkeypatch):
    """The processes of the drill are left out: an input that would end one ends this test run, and is seen too."""
    monkeypatch.setenv("ZEROSHOT_D2_CACHE", str(tmp_path / "cache"))
    of_kind = importlib.import_module(f"benchmarks.drills.corpus.{kind}").cases(random.Random(1))
    for number, case in enumerate(of_kind[:: max(1, len(of_kind) // 3)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))
        with contextlib.chdir(folder):
            outcome, said = fuzz.judge(case, folder, [])
        assert outcome in ("clear", "valid"), f"{case.name}: {said}"


@pytest.mark.slow
def test_the_command_prints_and_writes_a_table(tmp_path, capsys):
    words = ["--kinds", "vocabularies", "--every", "10", "--workers", "1", "--output", str(tmp_path)]
    assert fuzz.main(words) == 0
    assert "| vocabularies" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    row = results["table"][0]
    assert row["inputs"] == len(results["cases"]) == sum(row[outcome] for outcome in fuzz.OUTCOMES) > 5
