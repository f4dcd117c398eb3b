"""The demo, short: trains, evaluates on the held-out seed and leaves its pictures."""

import json

import pytest
from PIL import Image

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
    for name in ("labels", "group_attention", "global_attention"):
        assert Image.open(tmp_path / "out" / f"{name}.png").width > 400
    assert "trained and evaluated in" in capsys.readouterr().out

    weights = str(tmp_path / "out" / "model_final.pth")
    again = demo.main(["--output", str(tmp_path / "again"), "--weights", weights, *options])
    # A batch of other images differs in the last digits.
    assert again["epsilon_demo_test"]["GZSL_mAP"] == pytest.approx(results["epsilon_demo_test"]["GZSL_mAP"], abs=1e-3)
