"""The benchmark of start-up: its cases are commands of the project, and what a process took is its own."""

import subprocess
import sys

import pytest

from benchmarks import startup
from benchmarks.startup import Seconds


def test_cases_are_words_of_the_command_line(tmp_path):
    (tmp_path / "photos").mkdir()
    cases = startup.cases(tmp_path / "model", tmp_path)
    assert next(iter(cases)) == startup.IMPORTS
    compile(cases[startup.IMPORTS][1], "imports", "exec")
    one, two = cases["first photo"], cases["two photos"]
    assert cases["first photo ever"] == one and two[: len(one)] == one and len(two) == len(one) + 1
    for words in (one, two):
        assert all((tmp_path / "photos" / file).is_file() for file in words[words.index("--input") + 1 :])


def test_the_cache_is_empty_for_the_first_photo_ever(tmp_path, monkeypatch):
    cache, seen = tmp_path / "cache", []

    def run(words, environment):
        assert environment["ZEROSHOT_D2_CACHE"] == str(cache)
        seen.append((words, cache.exists()))
        cache.mkdir(exist_ok=True)
        return Seconds(2.0 + len(words), 1.0)

    monkeypatch.setattr(startup, "run", run)
    measured = startup.measure(tmp_path / "model", tmp_path, rounds=2)
    words = startup.cases(tmp_path / "model", tmp_path)
    names = [*words, *words]
    assert [given for given, _ in seen] == [words[name] for name in names]
    assert [found for _, found in seen[1:]] == [name != "first photo ever" for name in names[1:]]
    assert measured[startup.SECOND_PHOTO] == [Seconds(1.0, 0.0)] * 2
    assert all(len(runs) == 2 for runs in measured.values())


def test_a_process_has_its_own_times():
    loop = "import time\nwhile time.process_time() < 1: pass"
    busy, idle = startup.run(("-c", loop), {}), startup.run(("-c", "pass"), {})
    assert 0 < idle.cpu < busy.cpu and idle.wall > 0


def test_a_failure_says_what_the_process_said():
    with pytest.raises(RuntimeError, match=r"(?s)ended with 3: .*no such thing"):
        startup.run(("-c", "import sys; print('no such thing'); sys.exit(3)"), {})


def test_table_compares_with_the_imports_of_the_same_round():
    measured = {startup.IMPORTS: [Seconds(2, 3), Seconds(4, 5)], "--help": [Seconds(3, 3), Seconds(4, 5)]}
    rows = startup.table(measured).splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0] == ["imports alone", "3.00", "4.00", "1.00 (1.00 to 1.00)", ""]
    assert cells[1] == ["--help", "3.50", "4.00", "1.25 (1.00 to 1.50)", "0.50"]


def test_help_says_what_is_measured():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.startup", "--help"],
        cwd=startup.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "--rounds" in done.stdout
