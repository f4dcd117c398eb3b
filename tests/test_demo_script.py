"""``scripts/demo.sh``, which ``make demo`` runs: what it starts, on how many threads, and what is left when a part fails."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "demo.sh"


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Starts the script in an empty folder with another program in Python's place: it notes its arguments in ``calls``,
    and then does what the test says."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def start(does: str, *options: str) -> subprocess.Popen[str]:
        program = tmp_path / "python"
        program.write_text(f'#!/bin/sh\necho "$@ on ${{OMP_NUM_THREADS:-all}}" >> {tmp_path}/calls\n{does}\n')
        program.chmod(0o755)
        command = ["bash", str(SCRIPT), str(program), *options]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    return start


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def test_three_demos_and_the_end_of_each(script, tmp_path):
    half = (os.cpu_count() + 1) // 2
    with script('echo "the end of $*"', "--iterations", "5") as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    demo = "-m zeroshot_d2 demo --system {} --iterations 5"
    near = f"{demo.format('AlignZeg')} --config-file demo_near/alignzeg_overlap.yaml"
    first, second, last = calls(tmp_path)
    assert {first, second} == {f"{demo.format('AlignZeg')} on {half}", f"{near} on {half}"}
    assert last == f"{demo.format('Epsilon')} on all"
    assert output.count("the end of") == 3 and f"the end of {near}\n" in output
    assert (tmp_path / "output/demo/near.log").read_text() == f"the end of {near}\n"


def test_the_users_number_of_threads(script, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with script("true") as process:
        process.communicate(timeout=60)
    assert all(call.endswith(" on 7") for call in calls(tmp_path))


def test_a_failure_in_the_background_is_shown(script, tmp_path):
    with script('case "$*" in *near*) echo "what went wrong"; exit 3;; esac') as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "what went wrong" in output and "output/demo/near.log" in errors
    assert not any("Epsilon" in call for call in calls(tmp_path))


@pytest.mark.parametrize("how", ["failure", "interrupt"])
def test_nothing_stays_behind_in_the_background(script, tmp_path, how):
    leave = "sleep 1; exit 3" if how == "failure" else "exec sleep 600"
    with script(f'case "$*" in *near*) echo $$ > {tmp_path}/near; exec sleep 600;; esac\n{leave}') as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "near").is_file() or len(calls(tmp_path)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if how == "interrupt":
            os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "near").read_text()), 0)
