"""docs/custom_data.md is run as it stands: on a tiny CamVid, and on the real one where it is at hand."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from zeroshot_d2 import IGNORE_LABEL, read_label
from zeroshot_d2.commands.check import main

REPOSITORY = Path(__file__).parents[1]
CAMVID = REPOSITORY.parent / "shared" / "data" / "camvid"
BLOCKS = dict(
    re.findall(r"<!-- run: (.+?) -->\n```python\n(.*?)```", (REPOSITORY / "docs/custom_data.md").read_text(), re.S)
)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    """Run in an empty folder, and forget what the page has registered."""
    before = set(DatasetCatalog.list())
    monkeypatch.chdir(tmp_path)
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def tiny_camvid(folder: Path) -> None:
    for part, labels in (("train", [[0, 5, 11], [8, 3, 3]]), ("val", [[1, 7, 10], [5, 11, 2]])):
        for kind, pixels in (("images", np.zeros((2, 3, 3))), ("labels", np.array(labels))):
            (folder / kind / part).mkdir(parents=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / kind / part / "0001.png")


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
    assert f"`{example}=" in (REPOSITORY / "docs/custom_data.md").read_text()


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not there")
def test_segmentation_on_the_real_photos(tmp_path, caplog):
    (tmp_path / "camvid").symlink_to(CAMVID)
    (tmp_path / "camvid.py").write_text(BLOCKS["segmentation"])
    with caplog.at_level(logging.WARNING):
        assert main(["check", "camvid_val", "--workers", "1", "--import", "camvid.py"]) == 0
        assert len(DatasetCatalog.get("camvid_train")) == 60 and len(DatasetCatalog.get("camvid_val_unseen")) == 20
    assert caplog.text == ""
    assert (tmp_path / "output/check/camvid_val/sheet.png").exists()


def test_image_level_labels():
    scope: dict = {}
    for block in ("multi-label", "multi-label signs", "columns"):
        exec(BLOCKS[block], scope)
    assert DatasetCatalog.get("photos_train")[1]["positive_labels"].tolist() == [0]
    assert DatasetCatalog.get("photos_test")[1]["positive_labels"].tolist() == [0, 2, 3]
    assert DatasetCatalog.get("photos_signed")[0]["negative_labels"].tolist() == [3]
    assert DatasetCatalog.get("photos_large")[1]["positive_labels"].tolist() == [2]
