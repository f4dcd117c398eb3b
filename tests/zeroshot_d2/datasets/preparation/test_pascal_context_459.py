"""PASCAL Context, 459 classes, from a tiny release in its official format."""

import numpy as np
import pytest
import tiny_releases
from detectron2.data import DatasetCatalog
from scipy.io import savemat
from tiny_releases import names_in_order

from zeroshot_d2.datasets.preparation.pascal_context_459 import convert, rewrite


def test_16_bit_labels(root):
    tiny_releases.pascal_context_459(root)
    (record,) = DatasetCatalog.get("pascal_context_459_val")
    assert names_in_order("pascal_context_459_val", record) == [None, "accordion", "wool", "plume"]


def test_downloads_that_are_wrong(root):
    voc = tiny_releases.pascal_context_json(root)
    arguments = voc / "trainval", voc / "trainval_merged.json", voc / "pascal_context_459"
    with pytest.raises(FileNotFoundError, match="the folder of the .mat files not found"):
        convert(*arguments)
    (voc / "trainval").mkdir()
    savemat(voc / "trainval/2008_000003.mat", {"LabelMap": np.ones((2, 2), dtype=np.uint16)})
    with pytest.raises(FileNotFoundError, match=r"2 of 3 label files are missing.*2008_000002\.mat"):
        convert(*arguments)
    (voc / "trainval_merged.json").unlink()
    with pytest.raises(FileNotFoundError, match="trainval_merged.json not found"):
        convert(*arguments)


def test_damaged_files_are_named(root):
    savemat(root / "a.mat", {"Other": np.zeros((2, 2))})
    with pytest.raises(ValueError, match="a.mat has no LabelMap"):
        rewrite((root / "a.mat", root / "a.png"))
    savemat(root / "a.mat", {"LabelMap": np.full((2, 2), 460)})
    with pytest.raises(ValueError, match="label 460 must be a whole number from 0 to 459"):
        rewrite((root / "a.mat", root / "a.png"))
    (root / "a.mat").write_bytes((root / "a.mat").read_bytes()[:150])
    with pytest.raises(ValueError, match="a.mat is unreadable or truncated"):
        rewrite((root / "a.mat", root / "a.png"))
