"""What training is expected to cost: what is counted, what is made of it, and that the page has it."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import expected_cost
from benchmarks.expected_cost import ASSUMPTIONS, Counted, config, count, hours, inputs, iterations, memory
from zeroshot_d2 import load_config

PAGE = (Path(__file__).resolve().parents[2] / "docs/model_zoo.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in PAGE.partition(expected_cost.BEGIN)[2].partition(expected_cost.END)[0].splitlines()
    if (cells := [cell.strip() for cell in line.strip("|").split("|")])[0].startswith("`")
}
CHEAP = "nus_wide/epsilon_ablation/backbone_only.yaml"


def test_the_page_has_a_row_of_every_config_and_calls_it_calculated():
    assert list(ROWS) == [f"configs/{name}" for name in expected_cost.photograph_configs()]
    assert all(len(cells) == len(expected_cost.HEADERS) - 1 for cells in ROWS.values())
    assert "the table is **calculated**, not measured" in PAGE


def test_the_row_of_the_page_is_what_the_script_gives():
    shown, found = ROWS[f"configs/{CHEAP}"], expected_cost.row(CHEAP)[1:]
    assert shown[-1] == found[-1] and shown[0] == found[0]
    for of_page, of_script in zip(shown[1:-1], found[1:-1], strict=True):
        assert float(of_page) == pytest.approx(float(of_script), rel=0.05, abs=0.051)  # its last digit


def test_the_page_names_the_assumptions():
    page = " ".join(PAGE.split())
    assert f"{ASSUMPTIONS.utilisation_amp:.0%}".replace("%", " %") + f" of {ASSUMPTIONS.peak_amp / 1e12:g} TFLOP/s" in page
    assert f"{ASSUMPTIONS.utilisation:.0%}".replace("%", " %") + f" of {ASSUMPTIONS.peak / 1e12:g} TFLOP/s" in page
    prepared = ASSUMPTIONS.prepared
    assert f"{prepared['segmentation']} photos a second for segmentation, {prepared['multilabel']} for tags" in page
    assert f"{ASSUMPTIONS.cuda / 1e9:g} GB for CUDA" in page


class Linear(nn.Module):
    """A frozen and a trained layer of ten by ten, on the mean colour of a photo."""

    def __init__(self):
        super().__init__()
        self.frozen, self.trained = nn.Linear(3, 10), nn.Linear(10, 10)
        self.frozen.requires_grad_(False)

    def forward(self, batch):
        colours = torch.stack([entry["image"].float().mean(dim=(1, 2)) for entry in batch])
        return {"loss": self.trained(self.frozen(colours)).sum()}


def test_operations_and_bytes_of_a_model_by_hand(monkeypatch):
    monkeypatch.setattr(expected_cost, "build_model", lambda cfg: Linear())
    found = count(config("demo/alignzeg.yaml"))
    assert (found.parameters, found.trained) == (3 * 10 + 10 + 110, 110)
    # forward: 2 x 3 x 10 and 2 x 10 x 10; backward: the gradient of the trained weights alone, as large as its forward
    assert found.operations == 2 * 3 * 10 + 2 * 10 * 10 + 2 * 10 * 10
    assert found.kept == 10 * 4  # the input of the trained layer


def test_hours_and_memory_by_hand():
    cfg = load_config(
        "voc/alignzeg.yaml", ["SOLVER.MAX_ITER", 3600, "SOLVER.IMS_PER_BATCH", 16, "DATALOADER.NUM_WORKERS", 2]
    )
    counted = Counted(parameters=10**9, trained=10**8, operations=93.6e12, kept=2e9)
    cfg.SOLVER.AMP.ENABLED = True
    assert hours(cfg, counted, 1) == (pytest.approx(16), "compute")  # a second an image
    assert hours(cfg, counted, 8) == (pytest.approx(2), "compute")
    assert memory(cfg, counted, 1) == pytest.approx(4e9 + 1.2e9 + 16e9 + 2e9)
    assert memory(cfg, counted, 8) == pytest.approx(4e9 + 1.2e9 + 2e9 + 2e9)
    quick = Counted(10**9, 10**8, 0.0, 0.0)
    assert hours(cfg, quick, 1) == (pytest.approx(16 / 30), "loading")
    cfg.SOLVER.AMP.ENABLED = False
    assert memory(cfg, counted, 8) == pytest.approx(4e9 + 1.2e9 + 4e9 + 2e9)
    assert hours(cfg, counted, 1)[0] == pytest.approx(16 * 93.6 / (0.7 * 19.5))


def test_epochs_are_turned_into_iterations():
    cfg = load_config("nus_wide/epsilon.yaml")
    assert iterations(cfg) == pytest.approx(7 * 161_789 / 96)
    assert iterations(load_config("voc/alignzeg.yaml")) == load_config("voc/alignzeg.yaml").SOLVER.MAX_ITER


def test_inputs_are_of_the_size_and_kind_that_training_has():
    segmentation, tags = (inputs(config(name))[0] for name in ("voc/alignzeg.yaml", "nus_wide/epsilon.yaml"))
    assert segmentation["image"].shape == (3, 640, 640) and segmentation["sem_seg"].shape == (640, 640)
    assert tags["image"].shape == (3, 224, 224) and len(tags["positive_labels"]) == expected_cost.LABELS


def test_the_table_goes_between_the_marks_of_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(expected_cost, "row", lambda name: [name, *"1234567", "loading"])
    page = tmp_path / "page.md"
    page.write_text(f"before\n{expected_cost.BEGIN}\nold\n{expected_cost.END}\nafter\n")
    expected_cost.main(["a.yaml", "--output", str(page)])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert re.search(r"^\| a\.yaml +\| 1 ", text, re.M)
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no <!-- benchmarks.expected_cost: begin --> and "):
        expected_cost.main(["a.yaml", "--output", str(page)])
