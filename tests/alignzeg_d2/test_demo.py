"""The demo end to end on a few images and iterations: its files, its report, and that the report needs no network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from report_page import Page

from zeroshot_d2.commands import demo
from zeroshot_d2.demo_world import SPLIT, register_demo_world

pytestmark = pytest.mark.slow

DATASETS = {"test_demo_train": "seen", "test_demo_val": "all", "test_demo_val_unseen": "unseen"}
OPTIONS = [
    *("MODEL.ALIGNZEG.CLIP.PRETRAINED", "", "MODEL.ALIGNZEG.CLIP.TEMPLATES", "single"),
    *("DATASETS.TRAIN", "('test_demo_train',)", "DATASETS.TEST", "('test_demo_val', 'test_demo_val_unseen')"),
    *("DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2", "TEST.IMS_PER_BATCH", "4"),
    *("MODEL.ALIGNZEG.LOSS.NUM_POINTS", "64", "MODEL.ALIGNZEG.PBC.GAMMA", "0.05"),
]
PICTURES = ("training_labels.png", "unseen_iou.png", "segmentation.png", "gamma.png", "corrections.png")


@pytest.fixture(scope="module")
def datasets() -> Iterator[None]:
    for name, vocabulary in DATASETS.items():
        register_demo_world(name, 55, 12, vocabulary=vocabulary)
    yield
    for name in DATASETS:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def run(*arguments: object, options: Sequence[str] = OPTIONS) -> None:
    assert demo.main([*map(str, arguments), *options]) == 0


@pytest.fixture(scope="module")
def output(datasets: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a demo of two iterations."""
    folder = tmp_path_factory.mktemp("demo")
    run("--system", "AlignZeg", "--output", folder, "--iterations", "2")
    return folder


def test_all_files_are_there(output: Path):
    expected = {*PICTURES, "report.html", "results.json", "gamma_sweep.json", "model_final.pth", "config.yaml"}
    assert expected <= {path.name for path in output.iterdir()}


def test_results_are_train_nets_and_the_oracles(output: Path):
    results = json.loads((output / "results.json").read_text())
    assert {name: result["protocol"] for name, result in results.items()} == {
        "test_demo_val": "GZS3",
        "test_demo_val_unseen": "ZS3",
        "test_demo_val (oracle)": "GZS3 (oracle)",
    }
    assert all(result["num_images"] == 12 for result in results.values())
    assert set(results["test_demo_val"]["IoU"]) == set(SPLIT.names)
    # whatever masks two iterations give: with the true classes they cannot be worse
    assert results["test_demo_val (oracle)"]["pAcc"] >= results["test_demo_val"]["pAcc"]


def test_the_sweep_holds_the_evaluated_threshold(output: Path):
    points = {point["gamma"]: point for point in json.loads((output / "gamma_sweep.json").read_text())}
    result = json.loads((output / "results.json").read_text())["test_demo_val"]
    assert points[0.05]["pAcc"] == pytest.approx(result["pAcc"], abs=0.05)
    assert points[0.05]["flagged"] > points[1.0]["flagged"] == 0


def test_the_report_is_complete_and_needs_no_network(output: Path):
    html = (output / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert [image["src"][:22] for image in page.all("img")] == ["data:image/png;base64,"] * len(PICTURES)
    assert all(image["alt"] for image in page.all("img"))
    assert not re.search(r"https?:|//\w|@import|url\(|<script|<link", re.sub(r"base64,[^\"]*", "", html))
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    for word in ("test_demo_val", "GZS3", "ZS3", "oracle", "mIoU(U)", "2 iterations", "31 classes"):
        assert word in page.text, word


def test_the_table_has_the_numbers_of_the_results(output: Path):
    text = Page((output / "report.html").read_text(encoding="utf-8")).text
    for result in json.loads((output / "results.json").read_text()).values():
        assert f"{result['pAcc']:.1f}" in text and f"{result['mIoU']:.1f}" in text


def test_weights_replace_the_training(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    weights = output / "model_final.pth"
    run("--system", "AlignZeg", "--output", tmp_path, "--weights", weights)
    ours, theirs = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path, output))
    assert ours.keys() == theirs.keys()
    for name, numbers in theirs.items():
        assert ours[name]["pAcc"] == pytest.approx(numbers["pAcc"], abs=0.05)  # a tie at a pixel may fall either way
    assert (tmp_path / "gamma_sweep.json").is_file()
    assert not (tmp_path / "model_final.pth").exists()
    printed = capsys.readouterr().out
    assert "| test_demo_val_unseen" in printed and f"report: {tmp_path / 'report.html'}" in printed
    assert f"loaded from {weights}" in Page((tmp_path / "report.html").read_text(encoding="utf-8")).text


def test_samples_that_are_not_the_papers_are_named(output: Path, tmp_path: Path):
    options = [*OPTIONS, "MODEL.ALIGNZEG.PBC.SAMPLES", "overlap"]
    run("--system", "AlignZeg", "--output", tmp_path, "--weights", output / "model_final.pth", options=options)
    reports = [Page((folder / "report.html").read_text(encoding="utf-8")).text for folder in (output, tmp_path)]
    assert ["other samples than the paper's" in text for text in reports] == [False, True]
    # its own settings, whatever the config was
    assert f"--config-file {tmp_path / 'config.yaml'} --eval-only MODEL.WEIGHTS" in reports[1]


def test_a_model_without_pbc_gets_a_shorter_report(datasets: None, tmp_path: Path):
    baseline = ("--config-file", "demo/ablation/baseline.yaml")
    run("--system", "AlignZeg", "--iterations", "1", *baseline, "--output", tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(page.all("img")) == 3
    assert "Predictive Bias Correction" not in page.text
    assert not (tmp_path / "gamma_sweep.json").exists()


def test_a_baseline_stands_beside_it_on_request(datasets: None, tmp_path: Path):
    run("--system", "AlignZeg", "--iterations", "1", "--with-baseline", "--output", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["test_demo_val (baseline)"]["protocol"] == "GZS3"
    alone = json.loads((tmp_path / "baseline" / "results.json").read_text())
    assert results["test_demo_val (baseline)"] == alone["test_demo_val"]
    assert "test_demo_val (baseline)" in Page((tmp_path / "report.html").read_text(encoding="utf-8")).text


def test_wrong_arguments_are_named(datasets: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = ["--system", "AlignZeg", "--output", tmp_path]
    with pytest.raises(SystemExit):
        run(*given, "--iterations", "0")
    assert "--iterations: must be a positive whole number, got '0'" in capsys.readouterr().err
    for option in ("--output", "--weights", "--config-file"):
        with pytest.raises(SystemExit):
            run(option, "x")
        assert f"{option} needs --system NAME" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(*given, "--with-baseline", "--config-file", "demo_near/alignzeg.yaml")
    assert "leave out --config-file" in capsys.readouterr().err
    with pytest.raises(ValueError, match="'Gamma' is no system"):
        run("--system", "Gamma")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        run(*given, "--weights", "nowhere.pth")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        run(*given, "--config-file", "nowhere.yaml")
    with pytest.raises(ValueError, match="GZS3"):
        run(*given, "--iterations", "1", options=[*OPTIONS, "DATASETS.TEST", "('test_demo_val_unseen',)"])
