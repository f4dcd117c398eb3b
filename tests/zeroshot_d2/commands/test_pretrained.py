"""Models as folders on the command line: save-pretrained, push-to-hub, and --model with what they wrote."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import hub_server
import numpy as np
import pytest
from comparisons import assert_close
from PIL import Image
from saved_runs import save_run

from zeroshot_d2 import cli
from zeroshot_d2.__main__ import main
from zeroshot_d2.commands.web import model_configs
from zeroshot_d2.demo_world import render


@pytest.fixture(scope="module", params=["AlignZeg", "Epsilon"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, the same as one folder, and a photo."""
    folder = tmp_path_factory.mktemp("commands")
    save_run(folder / "run", request.param)
    Image.fromarray(render(7, 0).image).save(folder / "a.png")
    words = ["--model", str(folder / "run"), "--output", str(folder / "model"), "--license", "mit"]
    assert main(["--traceback", "save-pretrained", *words]) == 0
    return folder


@pytest.fixture
def here(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    """The current folder is that of ``runs``, and the Hub one on loopback."""
    monkeypatch.chdir(runs)
    cli._fetched.cache_clear()
    with hub_server.used(tmp_path) as hub:
        yield hub
    cli._fetched.cache_clear()


def classes(model: str, output: Path) -> list[dict[str, object]]:
    words = ["--model", model, "--input", "a.png", "--output", str(output), "--vocabulary", "dark water, zebra, light sand"]
    assert main(["--traceback", "predict", *words]) == 0
    return json.loads((output / "a.json").read_text())["classes"]


def test_predictions_are_those_of_the_run(here: hub_server.Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--traceback", "push-to-hub", "--model", "model", "--repo", "ann/demo"]) == 0
    commit = here.repositories["ann/demo"].branches["main"]
    assert capsys.readouterr().out == f"hub:ann/demo@{commit}\n"
    sent = here.repositories["ann/demo"].files()
    assert sent["README.md"] == Path("model/README.md").read_bytes()  # as it is
    expected = classes("run", tmp_path / "run")
    for number, model in enumerate(("model", "hub:ann/demo", f"hub:ann/demo@{commit}")):
        found = classes(model, tmp_path / str(number))
        assert [entry["name"] for entry in found] == [entry["name"] for entry in expected]
        assert_close(np.array([e["score"] for e in found]), np.array([e["score"] for e in expected]))


def test_a_model_on_the_hub_is_asked_for_once_by_a_command(here: hub_server.Hub, tmp_path: Path) -> None:
    assert main(["--traceback", "push-to-hub", "--model", "run", "--repo", "ann/demo"]) == 0
    here.asked.clear()
    classes("hub:ann/demo", tmp_path)
    assert sum("/revision/" in request for request in here.asked) == 1


def test_a_run_is_saved_and_sent(here: hub_server.Hub) -> None:
    words = ["--model", "run", "--repo", "ann/new", "--revision", "v1", "--private", "--license", "cc-by-4.0"]
    assert main(["--traceback", "push-to-hub", *words]) == 0
    repository = here.repositories["ann/new"]
    card = repository.files("v1")["README.md"].decode()
    assert repository.private and 'Predictor.from_pretrained("hub:ann/new")' in card and "license: cc-by-4.0" in card
    assert set(repository.files("v1")) == {".gitattributes", "README.md", "config.yaml", "model.safetensors"}
    assert set(repository.files("main")) == {".gitattributes"}


def test_the_web_page_takes_it(here: hub_server.Hub) -> None:
    assert main(["--traceback", "push-to-hub", "--model", "model", "--repo", "ann/demo"]) == 0
    models = [Path("model"), Path("hub:ann/demo")]
    found = model_configs(argparse.Namespace(model=models, config_file=None, weights=None, opts=[]))
    assert [Path(cfg.MODEL.WEIGHTS).name for cfg in found.values()] == ["model.safetensors"] * 2


def test_training_starts_from_it(here: hub_server.Hub, tmp_path: Path) -> None:
    """MODEL.WEIGHTS may be a file of safetensors, whose classes are known then."""
    from zeroshot_d2.checkpoint import ModelRecord, read_record

    cfg = cli.load_config("model/config.yaml", weights="model/model.safetensors")
    cfg.DATASETS.TRAIN = ()
    before = read_record("model/model.safetensors")
    assert before is not None and ModelRecord.for_training(cfg, object()).trained == before.trained  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["save-pretrained", "--model", "run", "--output", "."], ". holds other files, such as a.png: name a new folder"),
        (["save-pretrained", "--model", "absent", "--output", "new"], "--model absent is no folder"),
        (
            ["save-pretrained", "--model", "hub:ann/none", "--output", "new"],
            "the Hub has no model ann/none, or does not show",
        ),
        (
            ["predict", "--model", "hub:ann", "--input", "a.png", "--output", "o"],
            "hub:ann is no model on the Hub: write hub:",
        ),
        (["push-to-hub", "--model", "model", "--repo", "ann"], "--repo must be OWNER/NAME, got 'ann'"),
        (["push-to-hub", "--model", "run", "--repo", "a/b", "--results", "none.json"], "results none.json does not exist"),
    ],
)
def test_faults_are_one_sentence(
    here: hub_server.Hub, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("error: ") and said.count("\n") == 2
    assert not here.repositories and not Path("new").exists()


def test_without_a_token_it_is_said(
    here: hub_server.Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push-to-hub", "--model", "model", "--repo", "ann/demo"]) == 2
    assert "without a token of the Hub: set HF_TOKEN" in capsys.readouterr().err


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/pretrained.md from top to bottom, with a Hub on loopback."""
    page = (Path(__file__).parents[3] / "docs/pretrained.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    save_run(Path("output/demo"), "AlignZeg", "MODEL.ALIGNZEG.CLIP.PRETRAINED", "bundled")
    Path("photos").mkdir()
    for name in ("photos/a.png", "photo.jpg"):
        Image.fromarray(render(7, 0).image).save(name)
    cli._fetched.cache_clear()
    with hub_server.used(tmp_path) as hub:
        for language, code in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.M | re.S):
            if language == "python":
                exec(code, {})
                continue
            for line in code.splitlines():
                assert main(["--traceback", *shlex.split(line.removeprefix("python -m zeroshot_d2 "))]) == 0
        assert hub.repositories["owner/name"].private and "1 of 1 files done" in capsys.readouterr().out
    cli._fetched.cache_clear()
