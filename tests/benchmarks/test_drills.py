"""The drills in short; the full ones are in docs/reliability.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def drill(folder: Path, name: str, *options: str) -> list[dict[str, object]]:
    """The table of a drill that found nothing wrong."""
    command = [sys.executable, "-m", "benchmarks.drills", name, "--output", str(folder), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())["table"]


@pytest.mark.slow
def test_killed_runs_resume_to_the_same_bits(tmp_path):
    table = drill(tmp_path, "kill", "--kills", "3", "--one-process")
    assert table[-1]["runs"] == 3 and table[-1]["resumed to the same bits"] == 3


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_half(tmp_path):
    table = drill(tmp_path, "disk", "--moments", "3", "--one-process")
    assert table[-1]["runs"] == 3 and table[-1]["as it should"] == 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it looks for processes in /proc")
def test_several_processes_agree(tmp_path):
    table = drill(tmp_path, "processes", "--cases", "agree", "few", "--iterations", "3")
    assert len(table) == 6 and {row["reached"] for row in table} == {"yes"}


def test_an_unknown_drill(capsys):
    from benchmarks.drills.__main__ import main

    assert main([]) == main(["earthquake"]) == 2
    assert "{kill,disk,fuzz,web,processes,soak}" in capsys.readouterr().err
