"""The figure commands of Epsilon, and those of docs/pictures.md."""

from __future__ import annotations

import glob
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.epsilon_ablation import FIG_3A, FIG_3B
from benchmarks.runs import INITIAL, folder_of
from epsilon_d2.predictor import EpsilonPredictor
from zeroshot_d2.__main__ import main
from zeroshot_d2.commands import figures
from zeroshot_d2.demo_world import register_demo_world_multilabel
from zeroshot_d2.system import find_system

ROOT = Path(__file__).parents[2]
DATASET = "figures_multilabel"


@pytest.fixture(scope="module", autouse=True)
def dataset() -> Iterator[None]:
    register_demo_world_multilabel(DATASET, seed=62, num_images=3)
    yield
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


Draw = Callable[..., Figure]


@pytest.fixture
def draw(epsilon_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """``draw("top10", "--num-images", "2")``: the figure that the command would write for the short training."""

    def run(figure: str, *arguments: str) -> Figure:
        drawn: list[Figure] = []
        monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
        given = ["--model", str(epsilon_checkpoint.parent), "--dataset", DATASET, "--output", str(tmp_path)]
        assert figures.main([figure, *given, *arguments]) == 0
        return drawn[0]

    return run


def test_the_first_labels_are_the_predictors(draw: Draw, trained_epsilon_cfg: Callable[..., CfgNode]) -> None:
    predictor = EpsilonPredictor(trained_epsilon_cfg("DATASETS.TEST", f"('{DATASET}',)"))
    records = DatasetCatalog.get(DATASET)
    unseen = predictor.vocabulary.unseen_mask
    shown = [record for record in records if unseen[record["positive_labels"]].any()]
    (axes,) = [axes for axes in draw("top10", "--num-images", "1").axes if axes.texts]
    best = predictor(shown[0]["file_name"]).classes(top_k=10)
    assert [text.get_text().removeprefix("★ ") for text in axes.texts[::2]] == [entry["name"] for entry in best]
    assert [text.get_text().startswith("★ ") for text in axes.texts[::2]] == [entry["unseen"] for entry in best]
    right = [entry["index"] in shown[0]["positive_labels"] for entry in best]
    assert [text.get_fontweight() == "bold" for text in axes.texts[::2]] == right


def test_attention_has_a_row_per_image_and_module(draw: Draw) -> None:
    figure = draw("attention", "--num-images", "2", "MODEL.DEVICE", "cpu")
    rows = np.reshape(figure.axes, (4, 9))
    assert [axes.get_ylabel() for axes in rows[:, 0]] == ["GPA", "GFP"] * 2


def test_fewer_images_than_asked_for(draw: Draw) -> None:
    assert len(draw("attention", "--num-images", "5").axes) == 3 * 2 * 9


def test_arguments_that_do_not_fit(draw: Draw, epsilon_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="'demo_world_val' has labels of another kind"):
        draw("top10", "--dataset", "demo_world_val")
    with pytest.raises(ValueError, match="number of images must be positive, got 0"):
        draw("top10", "--num-images", "0")
    with pytest.raises(ValueError, match="the system 'Epsilon' has no figure 'tsne'; choose one of"):
        draw("tsne")
    output = ["--output", "a.png"]
    with pytest.raises(FileNotFoundError, match=r"--config-file nowhere\.yaml does not exist"):
        figures.main(["top10", "--config-file", "nowhere.yaml", "--weights", str(epsilon_checkpoint), *output])
    with pytest.raises(FileNotFoundError, match=r"--weights nowhere\.pth do not exist"):
        figures.main(["top10", "--config-file", "demo/epsilon.yaml", "--weights", "nowhere.pth", *output])


# ---- docs/pictures.md ----

PAGE = (ROOT / "docs/pictures.md").read_text(encoding="utf-8").replace("\\\n", " ")
COMMANDS = [command for command in re.findall(r"^python -m zeroshot_d2 (figures .*)$", PAGE, re.M) if "epsilon" in command]


def test_the_page_draws_every_figure() -> None:
    assert {command.split()[1] for command in COMMANDS} == set(figures.figures_of(find_system("Epsilon")))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page(
    command: str, user_folder: Path, epsilon_cfg: Callable[..., CfgNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(user_folder)
    for variant in {*FIG_3A.values(), *FIG_3B.values()}:  # what `python -m benchmarks.epsilon_ablation --sweeps` leaves
        for seed in (1, 2):
            folder = folder_of(variant, seed, Path("output/epsilon_ablation"))
            folder.mkdir(parents=True, exist_ok=True)
            begun = ("MODEL.WEIGHTS", str(folder / INITIAL))
            (folder / "config.yaml").write_text(epsilon_cfg(*variant[1], *begun, "SEED", seed).dump())
            numbers = {"ZSL_mAP": 40 + seed, "GZSL_mAP": 60 - seed}
            (folder / "results.json").write_text(json.dumps({"some_test": numbers}))
    words = [word for part in shlex.split(command) for word in (sorted(glob.glob(part)) if "*" in part else [part])]
    assert main(words) == 0
    assert Image.open(words[words.index("--output") + 1]).width > 500
