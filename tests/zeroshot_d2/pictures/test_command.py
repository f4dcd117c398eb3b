"""What a picture of a trained model needs: where it goes, which data sets fit, which images come first, result files."""

import argparse
import json

import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from zeroshot_d2 import ClassSplit, register_sem_seg
from zeroshot_d2.cli import Parser
from zeroshot_d2.pictures import command
from zeroshot_d2.pictures.command import (
    FigureCommand,
    check_dataset,
    first_dataset,
    first_records,
    first_wanted,
    load_models,
    picture_path,
    predictions,
    read_results,
)

MASKS, TAGS = "zero_shot_sem_seg", "zero_shot_multilabel"


# ---- where it goes ----


def test_a_picture_or_a_folder(tmp_path):
    for ending in ("png", "pdf", "svg", "PNG"):
        assert picture_path(tmp_path / "new" / f"a.{ending}", "tsne") == tmp_path / "new" / f"a.{ending}"
    assert picture_path(tmp_path / "folder", "tsne") == tmp_path / "folder" / "tsne.png"
    (tmp_path / "v1.0").mkdir()
    assert picture_path(tmp_path / "v1.0", "tsne") == tmp_path / "v1.0" / "tsne.png"
    with pytest.raises(ValueError, match=r"a\.jpg must end in \.png, \.pdf, \.svg, or be a folder"):
        picture_path(tmp_path / "a.jpg", "tsne")


# ---- data sets and images ----


def test_a_data_set_is_registered_and_has_labels_of_the_kind():
    check_dataset("demo_world_val", MASKS)
    check_dataset("demo_world_multilabel_test", TAGS)
    with pytest.raises(
        ValueError, match="'absent' is not registered; choose another, such as .*_val.*, or --import your own"
    ):
        check_dataset("absent", MASKS)
    with pytest.raises(ValueError, match="has labels of another kind; choose another, such as .*demo_world_val") as error:
        check_dataset("demo_world_multilabel_test", MASKS)
    assert "multilabel_held_out" not in str(error.value)


def test_the_first_records():
    records = [{"file_name": "a", "sem_seg_file_name": "b", "image_id": i} for i in range(3)]
    register_sem_seg("pictures_test", ClassSplit(["cat"]), load=lambda: records)
    assert [record["image_id"] for record in first_records("pictures_test", 2)] == [0, 1]
    assert len(first_records("pictures_test", 9)) == len(first_records("pictures_test", None)) == 3
    with pytest.raises(ValueError, match="--num-images must be positive, got 0"):
        first_records("pictures_test", 0)
    DatasetCatalog.remove("pictures_test")


def test_wanted_items_come_first():
    def is_even(x: int) -> bool:
        return x % 2 == 0

    assert first_wanted([1, 2, 3, 4, 6], 2, is_even) == [2, 4]
    assert first_wanted([1, 2, 3, 5], 3, is_even) == [2, 1, 3]
    assert first_wanted([1], 3, is_even) == [1]
    assert first_wanted(iter(range(10**12)), 2, is_even) == [0, 2]  # no more are looked at than needed
    with pytest.raises(ValueError, match="positive, got 0"):
        first_wanted([1], 0, is_even)


def test_predictions_come_with_their_image_in_rgb(tmp_path):
    colors = {"a.png": (10, 20, 30), "b.png": (40, 50, 60), "c.png": (70, 80, 90)}
    for name, color in colors.items():
        Image.new("RGB", (2, 2), color).save(tmp_path / name)
    seen = []

    class Predictor:
        batch_size, max_pixels = 2, 100

        def __call__(self, images, **wanted):
            seen.append(([tuple(image[0, 0]) for image in images], wanted))
            return [image[0, 0, 0] for image in images]

    records = [{"file_name": str(tmp_path / name)} for name in colors]
    found = list(predictions(Predictor(), records, attention=True))
    assert [(tuple(image[0, 0]), result) for _, image, result in found] == [(color, color[2]) for color in colors.values()]
    assert seen[0] == ([(30, 20, 10), (60, 50, 40)], {"attention": True}) and len(seen) == 2


# ---- models ----


@pytest.fixture
def built(monkeypatch) -> list:
    """Instead of predictors, the configs that they would be built from."""
    configs: list = []
    monkeypatch.setattr(command, "build_predictor", lambda cfg: configs.append(cfg) or f"predictor {len(configs)}")
    return configs


def arguments(*words: str, compare: bool = True) -> argparse.Namespace:
    parser = Parser("prog", None)
    FigureCommand("a figure", lambda args: None, lambda parser: None, compare=compare).add_all_arguments(parser)
    return parser.parse([*words, "--output", "a.png"] if "--output" not in words else words)


@pytest.fixture
def weights(tmp_path) -> list[str]:
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_text("")
    return ["--config-file", "demo/alignzeg.yaml", "--weights", str(tmp_path / "a.pth")]


def test_a_model_is_called_after_its_system_and_uses_the_data_sets_classes(built, weights):
    args = arguments(*weights)
    assert load_models(args, MASKS) == ("demo_world_val", {"AlignZeg": "predictor 1"}) and args.name == "AlignZeg"
    dataset, models = load_models(
        arguments(*weights, "--dataset", "demo_world_held_out", "--name", "Ours", "--output", "x.png", "SEED", "7"), MASKS
    )
    assert dataset == "demo_world_held_out" and list(models) == ["Ours"]
    assert built[-1].DATASETS.TEST == ("demo_world_held_out",) and built[-1].SEED == 7


def test_the_model_to_compare_with_comes_first(built, weights, tmp_path):
    other = ["--compare-weights", str(tmp_path / "b.pth")]
    _, models = load_models(arguments(*weights, *other), MASKS)
    assert list(models) == ["Baseline", "AlignZeg"]
    assert [cfg.MODEL.WEIGHTS for cfg in built] == [str(tmp_path / "b.pth"), str(tmp_path / "a.pth")]
    config = ["--compare-config-file", "demo/ablation/baseline.yaml", "--compare-name", "Plain"]
    _, models = load_models(arguments(*weights, *other, *config), MASKS)
    assert list(models) == ["Plain", "AlignZeg"]
    with pytest.raises(ValueError, match="--name and --compare-name are both 'Baseline'"):
        load_models(arguments(*weights, *other, "--name", "Baseline"), MASKS)
    with pytest.raises(ValueError, match="--compare-config-file needs --compare-weights"):
        load_models(arguments(*weights, *config), MASKS)


def test_models_and_data_that_do_not_fit(built, weights):
    with pytest.raises(ValueError, match="the config has no DATASETS.TEST: name a data set with --dataset"):
        load_models(arguments(*weights, "--output", "x.png", "DATASETS.TEST", "()"), MASKS)
    with pytest.raises(ValueError, match="has labels of another kind"):
        load_models(arguments(*weights, "--dataset", "demo_world_multilabel_test"), MASKS)
    with pytest.raises(ValueError, match="which model"):
        load_models(arguments(), MASKS)
    assert not built


def test_a_figure_of_one_model_has_no_options_for_a_second(capsys):
    with pytest.raises(SystemExit):
        arguments("--compare-name", "x", compare=False)
    assert "unrecognized arguments: --compare-name x" in capsys.readouterr().err


# ---- result files ----


def test_the_first_data_set_that_is_known_here(tmp_path):
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"elsewhere": {}, "demo_world_val": {"IoU": {}}}))
    assert first_dataset(file) == "demo_world_val" and list(read_results(file)) == ["elsewhere", "demo_world_val"]
    file.write_text(json.dumps({"elsewhere": {}}))
    with pytest.raises(ValueError, match="no data set of .*results.json is registered: elsewhere; --import the script"):
        first_dataset(file)
    file.write_text('{"elsewhere": ')
    with pytest.raises(ValueError, match=r"the results .*results\.json is not JSON or is cut off"):
        read_results(file)
    with pytest.raises(FileNotFoundError, match=r"the results .*absent\.json does not exist"):
        read_results(tmp_path / "absent.json")
