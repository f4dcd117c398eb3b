"""What the bias correction brings: neighbours, the linear probe, the summary, and a model from end to end."""

import json

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from alignzeg_d2.bias_report import BOTH, NO_CORRECTION, OWN, PERFECT
from benchmarks.correction import best_gamma, main, neighbours, probe, report_on, summary
from zeroshot_d2 import load_config
from zeroshot_d2.demo_world import register_demo_world

register_demo_world("correction_world", seed=32, num_images=8)


def test_neighbours_are_the_nearest_seen_classes():
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [2.0, 0.3], [0.8, 0.5]])
    seen = torch.tensor([True, True, True, False, False])
    assert neighbours(prototypes, seen) == {3: [2, 0], 4: [2, 0]}
    assert neighbours(prototypes, seen, count=1) == {3: [2], 4: [2]}


def test_a_probe_finds_what_a_plane_separates():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 6))
    folds = np.arange(400) % 2
    assert probe(features, features @ np.arange(6.0) > 1, folds) > 97
    assert 35 < probe(features, rng.random(400) < 0.5, folds) < 65
    assert probe(3 * features + 7, features[:, 0] > 0, folds) == pytest.approx(probe(features, features[:, 0] > 0, folds))
    assert probe(features, np.zeros(400, bool), folds) is None
    assert probe(features, folds == 1, folds) is None


def report(none, own, perfect):
    def numbers(value):
        return {"pAcc": 90.0, "mIoU_seen": 70.0, "mIoU_unseen": value - 1, "hIoU": value}

    return {
        "bias": {
            "corrections": {
                NO_CORRECTION: numbers(none),
                OWN: numbers(own),
                PERFECT: numbers(perfect),
                BOTH: numbers(perfect + 1),
            },
            "indicator": {"AUC": 90.0, "gamma": 0.3, "flagged_of_unseen": 80.0, "flagged_of_seen": 10.0},
            "ZS3_mIoU": 80.0,
            "unseen_pixels_to_seen": 30.0,
            "seen_pixels_to_unseen": 2.0,
        },
        "probe": {"a": 95.0, "b": None},
        "gamma_sweep": [{"gamma": 0.3, **numbers(own)}, {"gamma": 0.6, **numbers(own + 2)}, {"gamma": 1.0, **numbers(none)}],
    }


def test_thresholds_of_the_sweep():
    reports = [report(50.0, 53.0, 60.0), report(54.0, 56.0, 64.0)]
    assert best_gamma(reports) == 0.6
    lines = summary(reports, [0.6, 1.0]).splitlines()
    assert lines[6].startswith("| Eq. 7 at 0.6 | 90.0 ± 0.0 |") and lines[6].endswith("| 56.5 ± 2.1 | +4.5 [-1.9, +10.9] |")
    assert lines[7].endswith("| 52.0 ± 2.8 | +0.0 [+0.0, +0.0] |")
    assert "| best threshold, of those that were tried | 0.6 |" in lines
    with pytest.raises(ValueError, match=r"--gamma 0.5 was not tried; the thresholds are 0.3, 0.6, 1$"):
        summary(reports, [0.5])


def test_summary_by_hand():
    lines = summary([report(50.0, 53.0, 60.0), report(54.0, 56.0, 64.0)]).splitlines()
    assert lines[2] == "| no correction | 90.0 ± 0.0 | 70.0 ± 0.0 | 51.0 ± 2.8 | 52.0 ± 2.8 |  |"
    assert lines[3].endswith("| 54.5 ± 2.1 | +2.5 [-3.9, +8.9] |")
    assert "| share of the perfect indicator's gain that the own one brings, % | 25 |" in lines
    assert lines[-1].endswith("| 95.0, least 95.0 |")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    cfg = load_config("demo/alignzeg.yaml", ["DATASETS.TEST", "('correction_world',)", "OUTPUT_DIR", str(folder)])
    torch.manual_seed(0)
    DetectionCheckpointer(build_model(cfg), str(folder)).save("model_final")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


def test_a_model_from_end_to_end(model, tmp_path, capsys):
    words = ["--model", str(model), "--dataset", "correction_world", "--num-images", "4", "--output", str(tmp_path)]
    main(words)
    said = capsys.readouterr().out
    assert "perfect indicator" in said and (tmp_path / "correction_world.md").read_text() in said
    assert (tmp_path / "correction_world.png").read_bytes().startswith(b"\x89PNG")
    file = tmp_path / f"{model.name}_correction_world.json"
    found = json.loads(file.read_text())
    by_gamma = {point["gamma"]: point["hIoU"] for point in found["gamma_sweep"]}
    corrections = found["bias"]["corrections"]
    # Both ways of computing agree: the sweep's ends, and the report's corrections.
    assert by_gamma[1.0] == pytest.approx(corrections[NO_CORRECTION]["hIoU"])
    assert by_gamma[0.6] == pytest.approx(corrections[OWN]["hIoU"])
    assert set(found["probe"]) == set(found["neighbours"]) and len(found["probe"]) == 7
    file.write_text(json.dumps({**found, "probe": {}}))
    main(words)  # it is not made again
    assert json.loads(file.read_text())["probe"] == {}


def test_a_model_without_an_indicator(model, tmp_path):
    keys = ["MODEL.ALIGNZEG.PBC.POSTPROCESSOR", "NoCorrection", "DATASETS.TEST", "('correction_world',)"]
    cfg = load_config("demo/alignzeg.yaml", [*keys, "OUTPUT_DIR", str(tmp_path)])
    DetectionCheckpointer(build_model(cfg), str(tmp_path)).save("model_final")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    with pytest.raises(ValueError, match="has no class indicator"):
        report_on(tmp_path, "correction_world", 2)
