"""A short form of the drill on the web page."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("gradio", reason="the extra 'web' is not installed")
from benchmarks.drills import web

pytestmark = pytest.mark.slow


def test_strangers_at_the_page(user_folder, tmp_path):
    models = [str(user_folder / "output" / "demo"), str(user_folder / "output" / "demo" / "epsilon")]
    options = ["--requests", "30", "--clients", "4", "--warm-up", "0", "--keep-seconds", "4", "--output", str(tmp_path)]
    web.main([*options, "--model", models[0], "--model", models[1]])
    results = json.loads((tmp_path / "results.json").read_text())
    met = {row["aim"]: row["met"] for row in results["table"]}
    assert met.pop("memory before and after") in ("yes", "NO")  # the first requests load what later ones find loaded
    assert set(met.values()) == {"yes"}, results
    assert results["honest"] == {"answered": 24}
    assert results["hostile"]["foreign_path"] == {"refused": 1}


def test_the_watch_sees_a_file_that_is_opened(tmp_path):
    """The count of files would else be 0 whatever the page does."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "a.txt").write_text("secret")
    (tmp_path / "zeroshot_d2").mkdir()  # in place of the page
    (tmp_path / "zeroshot_d2" / "__init__.py").write_text("")
    (tmp_path / "zeroshot_d2" / "__main__.py").write_text("def main(words):\n    open(words[1]).close()\n")
    secret = str(tmp_path / "secrets" / "a.txt")
    command = [sys.executable, "-c", web.WATCHED_PAGE, str(tmp_path / "log"), str(tmp_path / "secrets"), secret]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert (tmp_path / "log").read_text() == f"{secret}\n"
