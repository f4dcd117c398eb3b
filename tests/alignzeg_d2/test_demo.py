"""The demo end to end on a few images and iterations: its files, its report, and that the report needs no network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from report_page import Page

from zeroshot_d2.commands.check import main
from zeroshot_d2.demo_world import SPLIT, register_demo_world, render

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


@pytest.fixture(scope="module")
def output(datasets: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a demo of two iterations."""
    folder = tmp_path_factory.mktemp("demo")
    assert main(["--output", str(folder), "--iterations", "2", *OPTIONS]) == folder / "report.html"
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
    report = main(["--output", str(tmp_path), "--weights", str(weights), *OPTIONS])
    for name in ("results.json", "gamma_sweep.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((output / name).read_text())
    assert not (tmp_path / "model_final.pth").exists()
    printed = capsys.readouterr().out
    assert "| test_demo_val_unseen" in printed and f"report: {report}" in printed


def test_the_documented_lines_run(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    repository = Path(__file__).parents[2]
    (code,) = re.findall(r"```python\n(.*?)```", (repository / "docs/pictures.md").read_text(encoding="utf-8"), re.DOTALL)
    for documented, here in (
        ("configs/", f"{repository.as_posix()}/configs/"),
        ("output/demo/", f"{output.as_posix()}/"),
        ("cfg.merge_from_list([", "cfg.merge_from_list([*OPTIONS, "),
    ):
        assert documented in code
        code = code.replace(documented, here)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(render(2, 3).image).save("image.png")
    exec(code, {"OPTIONS": OPTIONS})
    assert (tmp_path / "classes.png").is_file()


def test_a_model_without_pbc_gets_a_shorter_report(datasets: None, tmp_path: Path):
    baseline = Path(__file__).parents[2] / "configs/demo/ablation/baseline.yaml"
    report = main(["--config-file", str(baseline), "--output", str(tmp_path), "--iterations", "1", *OPTIONS])
    html = report.read_text(encoding="utf-8")
    assert len(Page(html).all("img")) == 3
    assert "Predictive Bias Correction" not in Page(html).text
    assert not (tmp_path / "gamma_sweep.json").exists()


def test_a_baseline_stands_beside_it_on_request(datasets: None, tmp_path: Path):
    report = main(["--with-baseline", "--output", str(tmp_path), "--iterations", "1", *OPTIONS])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["test_demo_val (baseline)"]["protocol"] == "GZS3"
    alone = json.loads((tmp_path / "baseline" / "results.json").read_text())
    assert results["test_demo_val (baseline)"] == alone["test_demo_val"]
    assert "test_demo_val (baseline)" in Page(report.read_text(encoding="utf-8")).text


def test_wrong_arguments_are_named(datasets: None, tmp_path: Path):
    with pytest.raises(ValueError, match="--iterations.*0"):
        main(["--iterations", "0", "--output", str(tmp_path), *OPTIONS])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        main(["--weights", "nowhere.pth", "--output", str(tmp_path), *OPTIONS])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        main(["--config-file", "nowhere.yaml", "--output", str(tmp_path), *OPTIONS])
    with pytest.raises(ValueError, match="GZS3"):
        main(["--output", str(tmp_path), *OPTIONS, "DATASETS.TEST", "('test_demo_val_unseen',)"])
