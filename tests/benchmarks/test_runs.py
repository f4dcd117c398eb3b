"""Many trainings at once, on a train_net.py that only writes down how it was called."""

import argparse
import json

import numpy as np
import pytest
import scipy.stats

from benchmarks import runs

SCRIPT = """
import json, os, pathlib, sys
if "fail" in sys.argv:
    sys.exit("it went wrong")
folder = pathlib.Path(sys.argv[-1])
(folder / "results.json").write_text(json.dumps({"val": {"seed": int(sys.argv[1])}}))
print("threads", os.environ["OMP_NUM_THREADS"])
"""


@pytest.fixture(autouse=True)
def script(tmp_path, monkeypatch):
    (tmp_path / "train_net.py").write_text(SCRIPT)
    monkeypatch.setattr(runs, "ROOT", tmp_path)


def test_every_variant_and_seed_runs_and_is_tabulated(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 7)

    def run(variant, seed, args):
        folder = tmp_path / f"{variant}{seed}"
        runs.train_net([str(10 * seed), "OUTPUT_DIR", str(folder)], folder / "train.log", args)

    runs.run_all(run, ["a", "b"], argparse.Namespace(seeds=[1, 2], jobs=3, modules=[]))
    rows = {variant: [tmp_path / f"{variant}{seed}" / "results.json" for seed in (1, 2)] for variant in "ab"}
    assert runs.table("Title", {"seed": "Seed"}, runs.results(rows, "val")) == (
        "**Title**\n\n| | Seed |\n|---|---|\n| a | 15.0 ± 7.1 |\n| b | 15.0 ± 7.1 |\n"
    )
    assert (tmp_path / "b2" / "train.log").read_text() == "threads 2\n"


def test_one_seed_has_no_deviation():
    assert runs.table("Title", {"x": "X"}, {"row": [{"x": 1.25}]}).endswith("| row | 1.2 |\n")


ROWS = {"a": [{"x": 1.0, "y": 5.0}, {"x": 2.0, "y": 5.0}], "b": [{"x": 2.0, "y": 4.0}, {"x": 3.0, "y": 4.0}]}


def test_rows_beside_the_one_before_or_a_named_one():
    assert runs.table("Title", {"x": "X", "y": "Y"}, ROWS, ["x", "y"]).splitlines()[2:] == [
        "| | X | Y | X, step [95 %] | Y, step [95 %] |",
        "|---|---|---|---|---|",
        "| a | 1.5 ± 0.7 | 5.0 ± 0.0 |  |  |",
        "| b | 2.5 ± 0.7 | 4.0 ± 0.0 | +1.0 [+1.0, +1.0] | -1.0 [-1.0, -1.0] |",
    ]
    assert runs.table("Title", {"x": "X"}, ROWS, ["x"], over="b").splitlines()[2:] == [
        "| | X | X, over b [95 %] |",
        "|---|---|---|",
        "| a | 1.5 ± 0.7 | -1.0 [-1.0, -1.0] |",
        "| b | 2.5 ± 0.7 |  |",
    ]


def test_a_report_compares_with_the_row_that_a_table_has(tmp_path, capsys):
    def files(values):
        written = []
        for seed, value in enumerate(values):
            file = tmp_path / f"{value}_{seed}.json"
            file.write_text(json.dumps({"val": {"x": value, "run": {"seed": seed}}}))
            written.append(file)
        return written

    tables = {
        "Sweep": {"low": files([1.0, 2.0]), "whole": files([2.0, 3.0])},
        "Components": {"without": files([1.5, 2.5]), "with": files([4.0, 5.0])},
    }
    args = argparse.Namespace(dataset="val", output=tmp_path)
    runs.write_report({"x": "X"}, tables, args, ["x"], over=["another", "whole"])
    text = (tmp_path / "tables.md").read_text()
    assert capsys.readouterr().out == f"{text}\n" and (tmp_path / "tables.png").is_file()
    assert "| | X | X, over whole [95 %] |" in text and "| low | 1.5 ± 0.7 | -1.0 [-1.0, -1.0] |" in text
    assert "| | X | X, step [95 %] |" in text and "| with | 4.5 ± 0.7 | +2.5 [+2.5, +2.5] |" in text
    assert "Seeds 0, 1; threads: unknown" in text


def test_numbers_say_where_they_come_from():
    facts = {"threads": 1, "device": "cpu", "cpu": "a CPU", "torch": "2.0"}
    runs_of = [{"run": {**facts, "seed": seed, "commit": f"{seed}234567890"}} for seed in (2, 1, 10, 2)]
    assert runs.origin(runs_of) == (
        "Seeds 1, 2, 10; threads: 1; device: cpu (a CPU); torch 2.0; commit 1023456, 1234567, 2234567."
    )
    assert runs.origin([{"mIoU": 1.0}]).startswith("Seeds unknown; threads: unknown;")


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_picture_has_a_panel_for_every_table_and_metric(seeds):
    rows = {label: found[:seeds] for label, found in ROWS.items()}
    picture = runs.figure({"x": "X", "y": "Y"}, {"First": rows, "Second": {"b": rows["b"]}})
    assert len(picture.axes) == 4 and [axes.get_title(loc="left") for axes in picture.axes] == ["First", "", "Second", ""]
    of_seeds, means = picture.axes[0].lines[:seeds], picture.axes[0].lines[seeds]
    assert [list(line.get_xdata()) for line in of_seeds] == [[1.0, 2.0], [2.0, 3.0]][:seeds]
    assert list(means.get_xdata()) == ([1.5, 2.5] if seeds == 2 else [1.0, 2.0])


def test_a_failed_training_names_its_log(tmp_path):
    log = tmp_path / "somewhere" / "train.log"
    with pytest.raises(RuntimeError, match=r"train_net.py fail ended with code 1, see .*train.log"):
        runs.train_net(["fail"], log, argparse.Namespace(jobs=1, modules=[]))
    assert "it went wrong" in log.read_text()


def test_every_training_imports_what_the_command_imports(tmp_path):
    (tmp_path / "train_net.py").write_text("import sys\nprint(sys.argv[1:])\n")
    runs.train_net(["--eval-only"], tmp_path / "log", argparse.Namespace(jobs=1, modules=["mine.py", "my.package"]))
    assert (tmp_path / "log").read_text() == "['--import', 'mine.py', '--import', 'my.package', '--eval-only']\n"


def test_options_of_every_command(capsys):
    options = runs.parser("python -m benchmarks.x", "What it does.", dataset="val", output="output/x")
    args = options.parse(["--seeds", "4", "5", "--jobs", "2", "SOLVER.MAX_ITER", "7"])
    assert (args.seeds, args.jobs, args.dataset, args.output.as_posix()) == ([4, 5], 2, "val", "output/x")
    assert args.opts == ["SOLVER.MAX_ITER", "7"] and args.configs == runs.ROOT / "configs" / "demo"
    with pytest.raises(SystemExit):
        options.parse(["--sweep"])
    assert "unrecognized arguments: --sweep" in capsys.readouterr().err


def test_intervals_are_students():
    """scipy's own, from the mean and its standard error."""
    values = [1.0, 2.5, 3.0, 4.5, 2.0]
    expected = scipy.stats.t.interval(0.95, 4, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert runs.interval(values) == pytest.approx(expected)
    low, high = expected
    assert runs.paired(values, [0.0] * 5) == f"+2.6 [{low:+.1f}, {high:+.1f}]"
    assert runs.paired([3.0], [4.0]) == "-1.0"
    with pytest.raises(ValueError, match="at least two values, got 1"):
        runs.interval([1.0])
