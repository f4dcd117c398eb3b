"""docs/custom_data.md is run as it stands: on a tiny CamVid, and on the real one where it is at hand."""

import json
import logging
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from zeroshot_d2 import IGNORE_LABEL, read_label, system
from zeroshot_d2.__main__ import main

REPOSITORY = Path(__file__).parents[1]
CAMVID = REPOSITORY.parent / "shared" / "data" / "camvid"
PAGE = (REPOSITORY / "docs/custom_data.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- run: (.+?) -->\n```python\n(.*?)```", PAGE, re.S))
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\n(.*?)```", PAGE, re.S))
COMMANDS, COMMANDS_FOR_LABELS = (
    re.findall(r"^    python -m zeroshot_d2 (.*)$", part.replace("\\\n", " "), re.M)
    for part in PAGE.split("## Image-level labels")
)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    """Run in an empty folder, and forget what the page has registered and imported."""
    before = set(DatasetCatalog.list())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(system, "_imported", {})
    yield
    for name in ("camvid", "beach"):
        sys.modules.pop(name, None)
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def tiny_camvid(folder: Path, side: int = 1) -> None:
    """An image to train and one to test; each of their six labels covers ``side`` times ``side`` pixels."""
    for part, labels in (("train", [[0, 5, 11], [8, 3, 3]]), ("val", [[1, 7, 10], [5, 11, 2]])):
        for kind, pixels in (("images", np.zeros((2, 3, 3))), ("labels", np.array(labels))):
            (folder / kind / part).mkdir(parents=True)
            large = pixels.astype(np.uint8).repeat(side, axis=0).repeat(side, axis=1)
            Image.fromarray(large).save(folder / kind / part / "0001.png")


def names_in(dataset: str) -> set[str]:
    meta = MetadataCatalog.get(dataset)
    label = read_label(DatasetCatalog.get(dataset)[0]["sem_seg_file_name"], meta.label_table)
    return {meta.stuff_classes[k] for k in np.unique(label) if k != IGNORE_LABEL}


def test_segmentation(tmp_path):
    tiny_camvid(tmp_path / "camvid")
    exec(BLOCKS["segmentation"], {})
    assert names_in("camvid_train") == {"sky", "road", "car"}
    assert names_in("camvid_val") == {"building", "fence", "bicyclist", "tree", "pole"}
    assert names_in("camvid_val_unseen") == {"fence", "bicyclist", "tree"}
    protocols = [MetadataCatalog.get(f"camvid_{view}").protocol for view in ("train", "val", "val_unseen")]
    assert protocols == ["supervised", "GZS3", "ZS3"]
    assert MetadataCatalog.get("camvid_val").class_split.prompts[6] == "sign symbol"


@pytest.mark.parametrize("example", ["image_suffix", "label_values", "stems_file", "expected_images"])
def test_the_table_names_arguments_that_exist(example):
    import inspect

    from zeroshot_d2 import register_sem_seg

    assert example in inspect.signature(register_sem_seg).parameters
    assert f"`{example}=" in PAGE


def test_commands_of_the_page(tmp_path):
    """In the page's order, with the demo's small model and one iteration; the last without file and data."""
    tiny_camvid(tmp_path / "camvid", side=20)
    (tmp_path / "camvid.py").write_text(BLOCKS["segmentation"])
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "photos/a.png")
    assert [command.split()[0] for command in COMMANDS] == ["check", "train", "predict"]
    check, train, predict = (shlex.split(command.replace("configs/voc/", "demo/")) for command in COMMANDS)
    assert main(check) == 0
    assert (tmp_path / "output/check/camvid_train/sheet.png").is_file()
    assert main([*train, "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "1", "SOLVER.MAX_ITER", "1"]) == 0
    results = json.loads((tmp_path / "output/camvid/results.json").read_text())
    assert {name: numbers["protocol"] for name, numbers in results.items()} == {
        "camvid_val": "GZS3",
        "camvid_val_unseen": "ZS3",
    }
    for name in ("camvid_train", "camvid_val", "camvid_val_unseen"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert main(predict) == 0
    vocabulary = json.loads((tmp_path / "predictions/vocabulary.json").read_text())
    assert [entry["name"] for entry in vocabulary if entry["unseen"]] == ["tree", "fence", "bicyclist"]
    assert vocabulary[6]["name"] == "sign_symbol" and vocabulary[6]["synonyms"] == ["sign symbol"]
    assert (tmp_path / "predictions/a_overlay.png").is_file()


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not there")
def test_segmentation_on_the_real_photos(tmp_path, caplog):
    (tmp_path / "camvid").symlink_to(CAMVID)
    (tmp_path / "camvid.py").write_text(BLOCKS["segmentation"])
    with caplog.at_level(logging.WARNING):
        assert main(["check", "camvid_val", "--workers", "1", "--import", "camvid.py"]) == 0
        assert len(DatasetCatalog.get("camvid_train")) == 60 and len(DatasetCatalog.get("camvid_val_unseen")) == 20
    assert caplog.text == ""
    assert (tmp_path / "output/check/camvid_val/sheet.png").exists()


def test_labels_in_a_table(tmp_path):
    """The file and the commands of the page in its order, with the demo's small model and one iteration."""
    (tmp_path / "beach").mkdir()
    for i in (1, 2, 3):
        Image.new("RGB", (64, 48), (80 * i, 0, 0)).save(tmp_path / f"beach/{i}.jpg")
    (tmp_path / "beach_train.csv").write_text(FILES["beach_train.csv"])
    (tmp_path / "beach.py").write_text(BLOCKS["label table"])
    assert [command.split()[0] for command in COMMANDS_FOR_LABELS] == ["check", "train", "predict"]
    check, train, predict = (shlex.split(command.replace("configs/nus_wide/", "demo/")) for command in COMMANDS_FOR_LABELS)
    assert main([*check, "--workers", "1"]) == 0
    assert [len(record["positive_labels"]) for record in DatasetCatalog.get("beach_train")] == [2, 1, 0]
    small = ["DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "3", "SOLVER.MAX_EPOCHS", "1"]
    assert main([*train, *small, "SOLVER.STEPS_EPOCHS", "()"]) == 0
    results = json.loads((tmp_path / "output/beach/results.json").read_text())
    assert results["beach_test"]["protocol"] == "GZSL" and results["beach_test"]["num_images"] == 3
    for name in ("beach_train", "beach_test"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert main(predict) == 0
    assert {path.stem for path in (tmp_path / "tags").glob("[123].json")} == {"1", "2", "3"}
    vocabulary = json.loads((tmp_path / "tags/vocabulary.json").read_text())
    assert {entry["name"] for entry in vocabulary if entry["unseen"]} == {"cat", "sunset"}


def test_annotation_tools(tmp_path):
    (tmp_path / "annotations").mkdir()
    corners = [[0, 0], [4, 0], [4, 4], [0, 4]]
    shapes = [{"label": "tree", "points": corners}, {"label": "road", "points": [[x + 5, y] for x, y in corners]}]
    content = {"shapes": shapes, "imageHeight": 6, "imageWidth": 9}
    (tmp_path / "annotations/a.json").write_text(json.dumps(content))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (9, 6)).save(tmp_path / "photos/a.jpg")
    (command,) = re.findall(r"^python -m zeroshot_d2 (convert .*)$", PAGE, re.M)
    assert main(shlex.split(command)) == 0
    exec(BLOCKS["annotation tools"], {})
    assert names_in("mine_val") == {"road", "tree"}
    assert MetadataCatalog.get("mine_val").class_split.unseen == ("tree",)


def test_image_level_labels():
    scope: dict = {}
    for block in ("multi-label", "multi-label signs", "columns"):
        exec(BLOCKS[block], scope)
    assert DatasetCatalog.get("photos_train")[1]["positive_labels"].tolist() == [0]
    assert DatasetCatalog.get("photos_test")[1]["positive_labels"].tolist() == [0, 2, 3]
    assert DatasetCatalog.get("photos_signed")[0]["negative_labels"].tolist() == [3]
    assert DatasetCatalog.get("photos_large")[1]["positive_labels"].tolist() == [2]
