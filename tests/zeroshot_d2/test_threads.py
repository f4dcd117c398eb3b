"""Idle threads give up their core soon, unless the user has said how they wait."""

import os
import subprocess
import sys

import pytest

from zeroshot_d2 import threads

# What the environment says at the moment when torch is first looked for.
_AT_IMPORT_OF_TORCH = """
import os, sys

class Witness:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("seen", os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)  # without torch's seconds

sys.meta_path.insert(0, Witness())
import MODULE
"""


@pytest.mark.parametrize(
    ("module", "users", "seen"),
    [
        ("zeroshot_d2.__main__", {}, "3000 None"),
        ("train_net", {}, "3000 None"),
        ("alignzeg_d2", {}, "3000 None"),
        ("epsilon_d2", {}, "3000 None"),
        ("baselines_d2", {}, "3000 None"),
        ("benchmarks.budget", {}, "3000 None"),
        ("zeroshot_d2", {"GOMP_SPINCOUNT": "7"}, "7 None"),
        ("zeroshot_d2", {"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_the_variable_is_there_before_torch(module, users, seen, pytestconfig):
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = _AT_IMPORT_OF_TORCH.replace("MODULE", module)
    command = [sys.executable, "-c", code]
    run = subprocess.run(
        command, env={**clean, **users}, cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True
    )
    assert run.stdout.split("\n")[0] == f"seen {seen}", run.stderr


@pytest.mark.parametrize("first", [True, False])
def test_the_log_says_what_holds(monkeypatch, first):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_too_late", False)
    if first:
        monkeypatch.delitem(sys.modules, "torch")
    threads.wait_briefly()
    assert "GOMP_SPINCOUNT 3000" in threads.how_threads_wait()
    assert ("torch was imported before" in threads.how_threads_wait()) is not first


def test_a_setting_of_the_user_is_in_the_log(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setattr(threads, "_too_late", False)
    threads.wait_briefly()
    assert threads.how_threads_wait().endswith("OMP_WAIT_POLICY passive")
