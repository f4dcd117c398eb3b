"""The benchmark of growth, on small sizes; no test asserts a time."""

import argparse
import json
import math
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from benchmarks import budget, growth
from benchmarks.growth import AXES, Curve, Point
from benchmarks.memory import count_peak_anew, megabytes
from zeroshot_d2.cli import find_config

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")

DEMO = ["--config-file", "demo/alignzeg.yaml", "--size", "64", "--classes", "5"]
ABOUT = {"cpu": "a CPU", "threads": 2, "torch": "2.14", "rounds": 2, "size": 64, "classes": 5, "rates": [1e9, 4e9]}


def arguments(folder, *words):
    """What a point is measured with."""
    return argparse.Namespace(
        config_file=find_config("demo/alignzeg.yaml"), modules=[], opts=list(words), size=32, classes=5, folder=folder
    )


# ---- what is measured ----


@pytest.fixture
def built(monkeypatch):
    """The models that are built, and the batches that they see."""
    found = []
    build = growth.build_model

    def spy(cfg):
        model = build(cfg)
        inference = model.inference

        def look(batch, output):
            results = inference(batch, output=output)
            found.append((model, batch, results))
            return results

        model.inference = look
        return model

    monkeypatch.setattr(growth, "build_model", spy)
    return found


@pytest.mark.parametrize(
    ("axis", "size", "expected"),
    [
        ("image_size", 48, (48, 5, 16, 1)),
        ("classes", 9, (32, 9, 16, 1)),
        ("proposals", 9, (32, 5, 9, 1)),
        ("batch", 3, (32, 5, 16, 3)),
    ],
)
def test_an_axis_changes_its_own_size_alone(axis, size, expected, built, tmp_path):
    point = AXES[axis].point(size, arguments(tmp_path))
    assert point.seconds > 0 and point.megabytes >= 0
    model, batch, results = built[-1]
    found = (batch[0]["image"].shape[-1], len(batch[0]["vocabulary"]), len(model.pixel_decoder.queries), len(batch))
    assert found == expected
    assert [tuple(result["sem_seg_labels"].shape) for result in results] == [(found[0], found[0])] * len(batch)
    assert all(
        int(result["sem_seg_labels"].min()) >= 0 and int(result["sem_seg_labels"].max()) < found[1] for result in results
    )


def test_class_scores_have_a_column_for_each_class():
    assert growth.scores_of_classes(7)().shape == (growth.epsilon_cost.BATCH, 7)


def test_rows_are_those_of_the_list(tmp_path):
    AXES["rows"].prepare(tmp_path, 40)
    try:
        point = AXES["rows"].point(40, arguments(tmp_path))
        assert point.seconds > 0 and len(DatasetCatalog.get("growth")) == 40
    finally:
        DatasetCatalog.pop("growth")
        MetadataCatalog.pop("growth")


def test_more_processes_than_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="17 processes cannot share the demo's batch of 16 images"):
        AXES["processes"].point(17, arguments(tmp_path))


def test_the_peak_is_counted_anew():
    def fill():
        return len(bytearray(b"x") * (200 << 20))

    fill()
    before = count_peak_anew()
    assert megabytes("VmHWM") - before < 100
    fill()
    assert megabytes("VmHWM") - before > 150


# ---- the report ----


def curve(axis, sizes, seconds, memory):
    """A curve of two rounds, the second one's values twice the first one's."""
    pairs = zip(seconds, memory, strict=True)
    return Curve(axis, sizes, [[Point(s, m), Point(2 * s, 2 * m)] for s, m in pairs])


def test_exponent_is_that_of_a_power_law():
    sizes = (2, 4, 16)
    found = curve("classes", sizes, [3 * k**1.5 for k in sizes], [7 * k for k in sizes])
    assert found.exponent("seconds") == pytest.approx(1.5) and found.exponent("megabytes") == pytest.approx(1)
    bent = curve("classes", sizes, [1, 1, 16], [0, 1, 1])
    assert bent.exponent("seconds") == pytest.approx(4 / 3) and bent.exponent("seconds", 1) == pytest.approx(2)
    assert math.isnan(bent.exponent("megabytes")) and bent.exponent("megabytes", 1) == 0


def test_an_image_grows_by_its_pixels():
    found = curve("image_size", (10, 20), [1, 4], [1, 16])
    assert found.exponent("seconds") == pytest.approx(1) and found.exponent("megabytes") == pytest.approx(2)


def test_table():
    text = growth.table([curve("batch", (1, 2, 4), [1, 2, 8], [10, 20, 20])], ABOUT)
    assert "a CPU, 2 threads, torch 2.14, medians of 2 round(s). The machine's rate was 2 GFLOP/s (1 to 4)." in text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[4:]]
    assert rows[0] == [AXES["batch"].title, "1", "1.5", "1 to 2", "15.0", "10.0 to 20.0"]
    assert rows[2] == ["", "4", "12", "8 to 16", "30.0", "20.0 to 40.0"]
    assert rows[3] == ["", "**exponent**", "**1.50**", "2.00 in the last step", "**0.50**", "0.00 in the last step"]


def test_picture_has_two_panels_for_each_axis():
    drawn = growth.picture(
        [curve("batch", (1, 4), [1, 2], [0, 1]), curve("image_size", (64, 128), [1, 2], [1, 2])]  # 0 has no logarithm
    )
    panels = drawn.axes
    assert len(panels) == 4
    assert [panel.get_title(loc="left").rpartition(" ")[2] for panel in panels] == ["0.50", "–", "0.50", "0.50"]
    assert [text.get_text() for text in panels[2].get_xticklabels()] == ["64²", "128²"]
    guide = panels[0].get_lines()[-1]
    assert list(guide.get_xdata()) == [1, 4] and list(guide.get_ydata()) == pytest.approx([1.5, 6])


# ---- the command ----


def test_command(tmp_path, capsys, monkeypatch):
    asked = []

    def point(name, size, args):
        asked.append((name, size))
        assert name != "rows" or growth.label_file(args.folder, size).is_file()
        return Point(size / 100, size)

    monkeypatch.setattr(growth, "run_point", point)
    monkeypatch.setattr(budget, "PRODUCT", 64)
    page = tmp_path / "docs/page.md"
    page.parent.mkdir()
    page.write_text(f"Before.\n{growth.BEGIN}\nold\n{growth.END}\nAfter.\n")
    words = ["--axes", "batch=1,2", "rows=10,20", "--rounds", "2", "--output", str(tmp_path / "new"), "--page", str(page)]
    growth.main([*words, *DEMO, "MODEL.ALIGNZEG.CLIP.TEMPLATES", "single"])
    assert asked == [("batch", 1), ("batch", 2), ("rows", 10), ("rows", 20)] * 2
    text = (tmp_path / "new/growth.md").read_text()
    assert capsys.readouterr().out == text
    content = json.loads((tmp_path / "new/results.json").read_text())
    assert [found["axis"] for found in content["axes"]] == ["batch", "rows"]
    assert content["axes"][1]["points"][1] == [{"seconds": 0.2, "megabytes": 20}] * 2
    assert content["about"]["classes"] == 5 and len(content["about"]["rates"]) == 2
    shown = page.read_text()
    assert shown.startswith("Before.\n") and shown.endswith("After.\n") and "old" not in shown
    assert text.strip() in shown and f"]({growth.PICTURE})" in shown
    for file in (tmp_path / "new" / growth.PICTURE, page.parent / growth.PICTURE):
        with Image.open(file) as image:
            assert image.width > 800 and image.height > 500


def test_a_point_in_a_process_of_its_own(tmp_path):
    assert growth.run_point("class_scores", 3, arguments(tmp_path)).seconds > 0


def test_a_point_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "PRODUCT", 64)
    with pytest.raises(SystemExit) as caught:
        growth.main(["--axes", "processes=17,18", "--output", str(tmp_path), *DEMO])
    said = "17 processes cannot share the demo's batch of 16 images: give fewer"
    assert caught.value.code == f"processes at 17 ended with 1: {said}"
    assert not (tmp_path / "results.json").exists()


@pytest.mark.slow
def test_processes_share_a_training_step(tmp_path):
    for processes in (1, 2):
        point = growth.run_point("processes", processes, arguments(tmp_path))
        assert point.seconds > 0 and point.megabytes > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--axes", "width"], "'width' is no axis: choose from image_size, classes"),
        (["--axes", "batch=2,1"], "'batch=2,1' needs at least two sizes that rise, as in batch=1,2"),
        (["--axes", "batch=2"], "'batch=2' needs at least two sizes that rise"),
        (["--axes", "batch=0,1"], "must be a positive whole number, got '0'"),
        (["--rounds", "0"], "must be a positive whole number, got '0'"),
        (["--config-file", "demo/epsilon.yaml"], "demo/epsilon.yaml is for Epsilon: give one of AlignZeg"),
        (["--config-file", "demo/nowhere.yaml"], "--config-file demo/nowhere.yaml does not exist"),
        (["--page", "docs/index.md"], "docs/index.md has no <!-- benchmarks.growth: begin -->"),
        (["MODEL.ALIGNZEG.NO_SUCH_KEY", "1"], "there is no key MODEL.ALIGNZEG.NO_SUCH_KEY"),
    ],
)
def test_bad_arguments_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        growth.main(words)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_the_page_has_the_marks():
    page = (Path(__file__).resolve().parents[2] / "docs/performance.md").read_text(encoding="utf-8")
    assert page.count(growth.BEGIN) == page.count(growth.END) == 1
