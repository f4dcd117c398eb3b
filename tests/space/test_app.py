"""What a Space or a container starts, and that it installs what the project needs."""

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from zeroshot_d2 import __main__ as program

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("space_app", ROOT / "space/app.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    for name in ("MODELS", "SPACE_HOST", "GRADIO_ROOT_PATH"):
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that are run, in place of which nothing is."""
    lines: list[list[str]] = []
    monkeypatch.setattr(program, "main", lambda words: lines.append(list(words)) or 0)
    return lines


def test_the_demo_is_trained_once_and_shown(app, calls, tmp_path):
    assert app.start([]) == 0
    assert calls == [
        ["train", "--config-file", "demo/alignzeg.yaml"],
        ["train", "--config-file", "demo/epsilon.yaml"],
        ["web", "--host", "0.0.0.0"],
    ]
    calls.clear()
    for folder in ("output/demo", "output/demo/epsilon"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "model_final.pth").touch()
    assert app.start(["--port", "7861"]) == 0
    assert calls == [["web", "--host", "0.0.0.0", "--port", "7861"]]


def test_models_and_the_host_of_a_space(app, calls, monkeypatch):
    monkeypatch.setenv("MODELS", "runs/a, runs/b")
    monkeypatch.setenv("SPACE_HOST", "user-name.hf.space")
    monkeypatch.delenv("GRADIO_ROOT_PATH", raising=False)
    assert app.start([]) == 0
    assert calls == [
        [
            "web",
            "--host",
            "0.0.0.0",
            "--model",
            "runs/a",
            "--model",
            "runs/b",
            "--allow-host",
            "user-name.hf.space",
            "--allow-frame",
            "https://huggingface.co",
        ]
    ]
    assert app.os.environ["GRADIO_ROOT_PATH"] == "https://user-name.hf.space"
    del app.os.environ["GRADIO_ROOT_PATH"]


def test_a_training_that_fails_ends_it(app, monkeypatch):
    monkeypatch.setattr(program, "main", lambda words: 2 if words[0] == "train" else pytest.fail("served"))
    assert app.start([]) == 2


def test_detectron2_is_installed_where_it_is_missing(app, monkeypatch):
    run: list[list[str]] = []
    monkeypatch.setattr(app.subprocess, "run", lambda command, check: run.append(command))
    app.install_detectron2()
    assert run == []
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: None)
    app.install_detectron2()
    assert run == [[sys.executable, str(ROOT / "scripts/install_detectron2.py")]]


def lists_of(file: Path) -> dict[str, list[str]]:
    """{name: texts} of the lists, tuples and dicts of lists that a script assigns at its top."""
    found: dict[str, list[str]] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                continue
            if isinstance(value, list | tuple):
                found[node.targets[0].id] = list(value)
            elif isinstance(value, dict):
                found |= {f"{node.targets[0].id}.{key}": list(item) for key, item in value.items()}
    return found


def test_the_requirements_are_those_of_the_project():
    text = (ROOT / "space/requirements.txt").read_text(encoding="utf-8")
    given = {line for line in text.splitlines() if line and not line.startswith(("#", "--"))}
    setup, script = lists_of(ROOT / "setup.py"), lists_of(ROOT / "scripts/install_detectron2.py")
    needed = {*setup["INSTALL_REQUIRES"], *setup["EXTRAS_REQUIRE.opencv"], *setup["EXTRAS_REQUIRE.web"]}
    assert needed <= given
    names = {re.split("[>=]", line)[0] for line in needed}
    assert given - needed == {name for name in script["RUNTIME_NEEDS"] if name not in names}


def test_the_header_of_the_space():
    text = (ROOT / "space/README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---")[1])
    assert header["sdk"] == "gradio" and (ROOT / "space" / header["app_file"]).is_file()
    pinned = re.search(r"^gradio==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert pinned is not None and header["sdk_version"] == pinned[1]
    for folder in re.findall(r"`(\w+_d2|configs|scripts)`", text):
        assert (ROOT / folder).is_dir()
