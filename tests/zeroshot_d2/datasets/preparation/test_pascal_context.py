"""PASCAL Context, 59 classes, from a tiny release in its official format."""

import json

import numpy as np
import pytest
import tiny_releases
from detectron2.data import DatasetCatalog
from tiny_releases import names_in_order

from zeroshot_d2.datasets.preparation.jobs import save_label
from zeroshot_d2.datasets.preparation.pascal_context import convert
from zeroshot_d2.images import read_label_image


@pytest.mark.parametrize("workers", [1, 2])
def test_the_59_classes(root, workers, capsys):
    voc = tiny_releases.pascal_context_json(root)
    convert(voc / "trainval_merged.json", voc / "pascal_context_59", workers)
    assert "1 segments of 1 categories outside the 59" in capsys.readouterr().out
    first, second = DatasetCatalog.get("pascal_context_59_train_all")
    assert names_in_order("pascal_context_59_train_all", first) == ["aeroplane", "sky"]
    assert names_in_order("pascal_context_59_train_all", second) == ["car", None]
    assert names_in_order("pascal_context_59_train_seen", first) == [None, "sky"]
    (val,) = DatasetCatalog.get("pascal_context_59_val")
    assert names_in_order("pascal_context_59_val", val) == ["dog", None]


def test_the_59_classes_continues_and_rejects_a_wrong_size(root):
    voc = tiny_releases.pascal_context_json(root)
    output = voc / "pascal_context_59"
    save_label(output / "labels/2008_000002.png", np.full((4, 6), 7))
    convert(voc / "trainval_merged.json", output)
    assert read_label_image(output / "labels/2008_000002.png").max() == 7  # was there: not done again
    content = json.loads((voc / "trainval_merged.json").read_text())
    content["annos_segmentation"][2]["segmentation"] = {"size": [3, 3], "counts": [0, 9]}
    (voc / "trainval_merged.json").write_text(json.dumps(content))
    (output / "labels/2008_000003.png").unlink()
    with pytest.raises(ValueError, match="2008_000003: a mask of"):
        convert(voc / "trainval_merged.json", output)


def test_the_59_classes_without_or_with_half_a_json(root):
    with pytest.raises(FileNotFoundError, match="trainval_merged.json not found"):
        convert(root / "trainval_merged.json", root / "out")
    voc = tiny_releases.pascal_context_json(root)
    text = (voc / "trainval_merged.json").read_text()
    (voc / "trainval_merged.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="ends in the middle"):
        convert(voc / "trainval_merged.json", root / "out")
    assert not (root / "out").exists()
