"""The figure commands of Epsilon, and those of docs/pictures.md."""

from __future__ import annotations

import glob
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from PIL import Image

from benchmarks.epsilon_ablation import FIG_3A, FIG_3B, GROUPS, LAMBDA, folder_of
from epsilon_d2.pictures.attention import AttendedImage, attentions_figure
from zeroshot_d2.commands.check import main
from zeroshot_d2.demo_world import register_demo_world_multilabel
from zeroshot_d2.multilabel.figures import sweep_points
from zeroshot_d2.multilabel.pictures import sweep_figure

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/demo/epsilon.yaml")


def write_run(folder: Path, cfg: CfgNode, zsl: float, gzsl: float) -> Path:
    """What a training leaves, as far as a sweep reads it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "results.json").write_text(json.dumps({"some_test": {"ZSL_mAP": zsl, "GZSL_mAP": gzsl}}))
    return folder


@pytest.fixture
def runs(epsilon_cfg, tmp_path) -> list[Path]:
    """Two seeds with two groups, and one with eight."""
    return [
        write_run(tmp_path / name, epsilon_cfg(GROUPS, groups, "SEED", seed, "OUTPUT_DIR", name), zsl, zsl + 20)
        for name, groups, seed, zsl in (("a", 8, 1, 44.0), ("b", 2, 1, 40.0), ("c", 2, 2, 42.0))
    ]


def test_runs_are_grouped_by_the_value_of_the_key(runs):
    assert sweep_points(runs, GROUPS) == {
        8: {"ZSL": [44.0], "GZSL": [64.0]},
        2: {"ZSL": [40.0, 42.0], "GZSL": [60.0, 62.0]},
    }


def test_runs_that_do_not_belong_together(runs, epsilon_cfg, tmp_path):
    other = write_run(tmp_path / "d", epsilon_cfg(LAMBDA, 0.9), 1, 2)
    with pytest.raises(ValueError, match=rf"/d and .*/a differ in {LAMBDA} too: a sweep varies {GROUPS} alone"):
        sweep_points([*runs, other], GROUPS)
    with pytest.raises(ValueError, match="/a/config.yaml has no key NO.SUCH_KEY"):
        sweep_points(runs, "NO.SUCH_KEY")
    with pytest.raises(ValueError, match="no ZSL_mAP, GZSL_mAP on 'elsewhere'; it has results on some_test"):
        sweep_points(runs, GROUPS, "elsewhere")
    (runs[1] / "results.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"/b/results\.json does not exist: .* a finished run"):
        sweep_points(runs, GROUPS)


def test_sweep_curves_are_means_with_the_deviation_of_the_runs():
    figure = sweep_figure({8: {"ZSL": [44.0], "GZSL": [64.0]}, 2: {"ZSL": [40.0, 42.0], "GZSL": [60.0, 60.0]}}, "groups")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["2", "8"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("groups", "mAP (%)")
    zsl, gzsl = axes.containers
    assert zsl[0].get_ydata().tolist() == [41.0, 44.0] and gzsl[0].get_ydata().tolist() == [60.0, 64.0]
    (bar,) = zsl[2]
    np.testing.assert_allclose(bar.get_segments()[0][:, 1], [41 - 2**0.5, 41 + 2**0.5])
    assert axes.get_title().endswith("1 to 2 runs")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ZSL", "GZSL"]
    with pytest.raises(ValueError, match="at least one value"):
        sweep_figure({}, "groups")


def test_attention_has_a_row_per_module_and_a_column_per_group():
    maps = np.random.default_rng(0).random((3, 4, 4))
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    figure = attentions_figure([AttendedImage(image, {"GPA": maps, "GFP": 2 * maps})] * 2)
    rows = np.reshape(figure.axes, (4, 4))
    assert [axes.get_ylabel() for axes in rows[:, 0]] == ["GPA", "GFP", "GPA", "GFP"]
    for row, factor in zip(rows, (1, 2, 1, 2), strict=True):
        for group, axes in zip(maps, row[1:], strict=True):
            np.testing.assert_array_equal(axes.get_images()[1].get_array(), factor * group)
    with pytest.raises(ValueError, match="GPA or GFP"):
        attentions_figure([AttendedImage(image, {})])


def test_arguments_that_do_not_fit(epsilon_checkpoint, tmp_path):
    register_demo_world_multilabel("figures_multilabel", seed=62, num_images=3)
    given = ["--dataset", "figures_multilabel", "--output", str(tmp_path), "--weights", str(epsilon_checkpoint)]
    with pytest.raises(ValueError, match="'demo_world_val' has labels of another kind"):
        main(["top10", "--config-file", CONFIG, *given, "--dataset", "demo_world_val"])
    with pytest.raises(FileNotFoundError, match=r"--config-file nowhere\.yaml does not exist"):
        main(["top10", "--config-file", "nowhere.yaml", *given])
    with pytest.raises(FileNotFoundError, match=r"weights nowhere\.pth do not exist"):
        main(["top10", "--config-file", CONFIG, *given, "--weights", "nowhere.pth"])
    with pytest.raises(ValueError, match="number of images must be positive, got 0"):
        main(["top10", "--config-file", CONFIG, *given, "--num-images", "0"])
    # three images, fewer than asked for, and a key changed
    path = main(["attention", "--config-file", CONFIG, *given, "--num-images", "5", "MODEL.DEVICE", "cpu"])
    assert path == tmp_path / "attention.png" and Image.open(path).height > 4 * 200


# ---- docs/pictures.md ----

PAGE = (ROOT / "docs/pictures.md").read_text(encoding="utf-8").replace("\\\n", " ")
COMMANDS = re.findall(r"^python -m epsilon_d2\.figures (.*)$", PAGE, re.M)


def test_commands_of_the_page(user_folder, epsilon_cfg, monkeypatch):
    assert {command.split()[0] for command in COMMANDS} == {"top10", "attention", "sweep"}
    monkeypatch.chdir(user_folder)
    for variant in {*FIG_3A.values(), *FIG_3B.values()}:
        for seed in (1, 2):
            cfg = epsilon_cfg(*variant[1], "SEED", seed)
            write_run(folder_of(variant, seed, Path("output/epsilon_ablation")), cfg, 40 + seed, 60 - seed)
    for command in COMMANDS:
        words = [word for part in shlex.split(command) for word in (sorted(glob.glob(part)) if "*" in part else [part])]
        path = main(words)
        assert path == Path(words[-1]) and Image.open(path).width > 500
