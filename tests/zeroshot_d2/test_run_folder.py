"""OUTPUT_DIR belongs to one run at a time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from zeroshot_d2.run_folder import hold

HOLDER = """
import sys
from zeroshot_d2.run_folder import hold
with hold(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_while_the_first_lives(tmp_path, holder):
    message = rf"another run \(process {holder.pid}\) is writing to OUTPUT_DIR {tmp_path}"
    with pytest.raises(ValueError, match=message), hold(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with hold(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_another_folder_is_free(tmp_path, holder):
    with hold(tmp_path / "other"):
        pass
    with hold(""):
        pass


def test_what_a_killed_run_had_not_finished_is_removed(tmp_path):
    for name in (".unfinished-0a1b2c-model_0000004.pth", "model_0000003.pth", "log.txt"):
        (tmp_path / name).write_text("x")
    with hold(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "log.txt", "model_0000003.pth"]
    with pytest.raises(KeyError), hold(tmp_path):
        raise KeyError
    with hold(tmp_path):  # given back after an error too
        pass
