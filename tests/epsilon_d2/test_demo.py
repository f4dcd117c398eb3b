"""The demo, short: trains, evaluates on the held-out seed and leaves its pictures."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image
from report_page import Page

from epsilon_d2 import demo
from zeroshot_d2 import demo_world


def test_trains_evaluates_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "TEST_SET", "epsilon_demo_test")
    demo_world.register_demo_world_multilabel("epsilon_demo_test", seed=4, num_images=24)
    demo_world.register_demo_world_multilabel("epsilon_demo_train", seed=5, num_images=32, vocabulary="seen")
    random = ["MODEL.EPSILON.BACKBONE.PRETRAINED", "", "MODEL.EPSILON.LABEL_EMBEDDINGS.TEMPLATES", "single"]
    options = ["--opts", *random, "DATASETS.TRAIN", "('epsilon_demo_train',)", "SOLVER.MAX_EPOCHS", "1"]
    options += ["DATALOADER.NUM_WORKERS", "0"]
    results = demo.main(["--output", str(tmp_path / "out"), *options])
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert [image["src"][:22] for image in page.all("img")] == ["data:image/png;base64,"] * 3
    assert f"{results['epsilon_demo_test']['GZSL_mAP']:.1f}" in page.text and "1 epochs of 32 images" in page.text
    for name in ("labels", "group_attention", "global_attention"):
        assert Image.open(tmp_path / "out" / f"{name}.png").width > 400
    printed = capsys.readouterr().out
    assert f"report: {tmp_path / 'out' / 'report.html'}" in printed and "| epsilon_demo_test" in printed

    weights = str(tmp_path / "out" / "model_final.pth")
    again = demo.main(["--output", str(tmp_path / "again"), "--weights", weights, "--with-baseline", *options])
    assert again["epsilon_demo_test (backbone only)"]["num_images"] == 24
    assert json.loads((tmp_path / "again" / "results.json").read_text()) == again
    # A batch of other images differs in the last digits.
    assert again["epsilon_demo_test"]["GZSL_mAP"] == pytest.approx(results["epsilon_demo_test"]["GZSL_mAP"], abs=1e-3)


def test_chance_is_the_mean_share_of_the_images_that_show_a_class(monkeypatch):
    demo_world.register_demo_world_multilabel("epsilon_chance", seed=4, num_images=5)
    monkeypatch.setattr(demo, "TEST_SET", "epsilon_chance")
    shown = np.zeros((5, len(demo_world.SPLIT)))
    for row, record in enumerate(DatasetCatalog.get("epsilon_chance")):
        shown[row, record["positive_labels"]] = 100
    unseen = demo_world.SPLIT.unseen_mask
    assert demo.chance() == pytest.approx((shown[:, unseen].mean(), shown.mean()))
