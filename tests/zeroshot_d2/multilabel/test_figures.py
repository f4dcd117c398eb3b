"""Numbers of finished runs for a curve: by the value of a key, and only of runs that belong together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from zeroshot_d2.commands import figures
from zeroshot_d2.multilabel.figures import sweep_points

GROUPS, LAMBDA = "MODEL.EPSILON.NUM_GROUPS", "MODEL.EPSILON.LOSS.LAMBDA"


def write_run(folder: Path, cfg: CfgNode, zsl: float, gzsl: float) -> Path:
    """What a training leaves, as far as a sweep reads it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "results.json").write_text(json.dumps({"some_test": {"ZSL_mAP": zsl, "GZSL_mAP": gzsl}}))
    return folder


@pytest.fixture
def runs(epsilon_cfg: Callable[..., CfgNode], tmp_path: Path) -> list[Path]:
    """Two seeds with two groups, and one with eight."""
    return [
        write_run(
            tmp_path / name,
            epsilon_cfg(GROUPS, groups, "SEED", seed, "OUTPUT_DIR", name, "MODEL.WEIGHTS", f"{name}/w.pth"),
            zsl,
            zsl + 20,
        )
        for name, groups, seed, zsl in (("a", 8, 1, 44.0), ("b", 2, 1, 40.0), ("c", 2, 2, 42.0))
    ]


def test_runs_are_grouped_by_the_value_of_the_key(runs: list[Path]) -> None:
    assert sweep_points(runs, GROUPS) == {
        8: {"ZSL": [44.0], "GZSL": [64.0]},
        2: {"ZSL": [40.0, 42.0], "GZSL": [60.0, 62.0]},
    }


def test_runs_that_do_not_belong_together(runs: list[Path], epsilon_cfg: Callable[..., CfgNode], tmp_path: Path) -> None:
    other = write_run(tmp_path / "d", epsilon_cfg(LAMBDA, 0.9), 1, 2)
    with pytest.raises(ValueError, match=rf"/d and .*/a differ in {LAMBDA} too: a sweep varies {GROUPS} alone"):
        sweep_points([*runs, other], GROUPS)
    with pytest.raises(ValueError, match="/a/config.yaml has no key NO.SUCH_KEY"):
        sweep_points(runs, "NO.SUCH_KEY")
    with pytest.raises(ValueError, match="no ZSL_mAP, GZSL_mAP on 'elsewhere'; it has results on some_test"):
        sweep_points(runs, GROUPS, "elsewhere")
    (runs[1] / "results.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"/b/results\.json does not exist"):
        sweep_points(runs, GROUPS)
    with pytest.raises(FileNotFoundError, match=r"config of a finished run .*nowhere/config\.yaml does not exist"):
        sweep_points([tmp_path / "nowhere"], GROUPS)


def test_the_command_needs_runs_and_no_model(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "--results", *map(str, runs), "--key", GROUPS]
    assert figures.main([*words, "--label", "groups", "--output", str(tmp_path / "sweep.pdf")]) == 0
    assert (tmp_path / "sweep.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(SystemExit):
        figures.main([*words[:-2], "--output", str(tmp_path)])
    assert "--key" in capsys.readouterr().err
