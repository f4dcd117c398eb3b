"""The demo, short: trains, evaluates on the held-out seed and leaves its pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from report_page import Page

from epsilon_d2 import demo
from zeroshot_d2 import demo_world
from zeroshot_d2.commands import demo as verb

pytestmark = pytest.mark.slow

OPTIONS = [
    *("MODEL.EPSILON.BACKBONE.PRETRAINED", "", "MODEL.EPSILON.LABEL_EMBEDDINGS.TEMPLATES", "single"),
    *("DATASETS.TRAIN", "('epsilon_demo_train',)", "SOLVER.MAX_EPOCHS", "1", "DATALOADER.NUM_WORKERS", "0"),
]


@pytest.fixture(autouse=True)
def datasets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few images to train and to test."""
    monkeypatch.setattr(demo, "TEST_SET", "epsilon_demo_test")
    monkeypatch.setattr(demo.Demo, "OPTIONS", ("DATASETS.TEST", "('epsilon_demo_test',)"))
    demo_world.register_demo_world_multilabel("epsilon_demo_test", seed=4, num_images=24)
    demo_world.register_demo_world_multilabel("epsilon_demo_train", seed=5, num_images=32, vocabulary="seen")
    yield
    for name in ("epsilon_demo_test", "epsilon_demo_train"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def run(folder: Path, *arguments: object) -> dict[str, dict[str, object]]:
    assert verb.main(["--system", "Epsilon", "--output", str(folder), *map(str, arguments), *OPTIONS]) == 0
    return json.loads((folder / "results.json").read_text())


def test_trains_evaluates_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    results = run(out)
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert [image["src"][:22] for image in page.all("img")] == ["data:image/png;base64,"] * 3
    assert f"{results['epsilon_demo_test']['GZSL_mAP']:.1f}" in page.text and "1 epochs of 32 images" in page.text
    for name in ("labels", "group_attention", "global_attention"):
        assert Image.open(out / f"{name}.png").width > 400
    printed = capsys.readouterr().out
    assert f"report: {out / 'report.html'}" in printed and "| epsilon_demo_test" in printed

    again = run(tmp_path / "again", "--weights", out / "model_final.pth", "--with-baseline")
    assert again["epsilon_demo_test (backbone only)"]["num_images"] == 24
    for metric in ("ZSL_mAP", "GZSL_mAP"):  # a tie in the ranking may fall either way
        assert again["epsilon_demo_test"][metric] == pytest.approx(results["epsilon_demo_test"][metric], abs=0.5)
    assert "(backbone only)" in Page((tmp_path / "again/report.html").read_text(encoding="utf-8")).text


def test_the_length_can_be_given_in_iterations(tmp_path: Path) -> None:
    results = run(tmp_path, "--iterations", "2")
    assert results["epsilon_demo_test"]["num_images"] == 24
    assert "2 iterations on 32 images" in Page((tmp_path / "report.html").read_text(encoding="utf-8")).text


def test_chance_is_the_mean_share_of_the_images_that_show_a_class() -> None:
    shown = np.zeros((24, len(demo_world.SPLIT)))
    for row, record in enumerate(DatasetCatalog.get("epsilon_demo_test")):
        shown[row, record["positive_labels"]] = 100
    unseen = demo_world.SPLIT.unseen_mask
    assert demo.chance() == pytest.approx((shown[:, unseen].mean(), shown.mean()))
