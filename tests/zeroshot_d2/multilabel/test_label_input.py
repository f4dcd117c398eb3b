"""Image-level labels that are not what they should be: named before anything is cast, read or counted."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog

from zeroshot_d2 import ClassSplit, register_multilabel
from zeroshot_d2.datasets.check import check
from zeroshot_d2.multilabel.columns import LabelColumns, MultiLabelDataset
from zeroshot_d2.multilabel.evaluation import MultiLabelEvaluator

SPLIT = ClassSplit(["cat", "dog"], unseen=["dog"])


def build(image: Any = (0,), classes: Any = (0,), signs: Any = (1,), paths: Any = ("a.jpg", "b.jpg")) -> LabelColumns:
    return LabelColumns.build(["cat", "dog"], paths, image, classes, signs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"signs": np.array([255])}, "signs must be .* got 255"),
        ({"signs": np.array([255], np.uint8)}, "signs must be .* got 255"),
        ({"signs": [257]}, "signs must be .* got 257"),
        ({"signs": np.array([1.9])}, "sign values must be whole numbers, got 1.9"),
        ({"signs": [0]}, "signs must be .* got 0"),
        ({"signs": [2**63]}, "signs must be .* got 9223372036854775808"),
        ({"signs": [float("nan")]}, "sign values must be whole numbers, got nan"),
        ({"signs": ["yes"]}, "sign values must be whole numbers, got 'yes'"),
        ({"signs": [None]}, "sign values must be whole numbers, got None"),
        ({"classes": np.array([1.7])}, "class values must be whole numbers, got 1.7"),
        ({"classes": np.array([2**32])}, r"class indices \[4294967296, 4294967296\] are not all in \[0, 2\)"),
        ({"classes": [-1]}, r"class indices \[-1, -1\]"),
        ({"image": [0.5]}, "image values must be whole numbers, got 0.5"),
        ({"image": [2]}, r"image indices \[2, 2\] are not all in \[0, 2\)"),
        ({"image": [0, 1]}, "2 image indices, 1 class indices and 1 signs"),
        ({"paths": ["a.jpg", "a.jpg"]}, r"1 image\(s\) occur more than once, such as \['a.jpg'\]"),
        ({"paths": ["a\\1.jpg", "a/1.jpg"]}, r"1 image\(s\) occur more than once, such as \['a/1.jpg'\]"),
    ],
)
def test_arrays_are_checked_before_the_cast(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_whole_numbers_of_any_kind_are_taken() -> None:
    for kind in (np.int8, np.int64, np.uint8, np.float32, np.float64):
        columns = build(image=np.array([1], kind), classes=np.array([1], kind), signs=np.array([1], kind))
        assert columns.row(1)[0].tolist() == [1] and columns.row(1)[1].tolist() == [1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a.jpg": ["cat", float("nan")]}, "labels are names of classes, got nan for a.jpg"),
        ({"a.jpg": [None]}, "labels are names of classes, got None for a.jpg"),
        ({"a.jpg": None}, "the labels of a.jpg must be a list of names, got None"),
        ({"a.jpg": 3}, "the labels of a.jpg must be a list of names, got 3"),
        ({"a.jpg": {"cat": "yes"}}, "the sign of 'cat' for a.jpg must be 1 .* got 'yes'"),
        ({"a.jpg": {"cat": 0}}, "the sign of 'cat' for a.jpg must be 1 .* got 0"),
        ({"a.jpg": {"cat": float("nan")}}, "the sign of 'cat' for a.jpg must be 1 .* got nan"),
        ({"a.jpg": {"cat": True}}, "the sign of 'cat' for a.jpg must be 1 .* got True"),
        ({Path("a.jpg"): ["cat"]}, r"images are named by relative paths as text, got .*Path\('a.jpg'\)"),
        ({7: ["cat"]}, "images are named by relative paths as text, got 7"),
        ({None: ["cat"]}, "images are named by relative paths as text, got None"),
        ({"a\\1.jpg": ["cat"], "a/1.jpg": ["cat"]}, r"1 image\(s\) occur more than once"),
    ],
)
def test_labels_in_memory_name_the_image_and_the_data_set(labels: Any, message: str) -> None:
    register_multilabel("label_input", SPLIT, "photos", labels, replace=True)
    with pytest.raises(ValueError, match="data set 'label_input': " + message):
        DatasetCatalog.get("label_input")


@pytest.mark.parametrize("path", ["../secret.jpg", "a/../../b.jpg", "/etc/passwd", "..\\x.jpg", "~/x.jpg", "C:\\x.jpg"])
def test_a_label_file_cannot_lead_out_of_the_data_folder(path: str) -> None:
    dataset = MultiLabelDataset("led_out", build(paths=["a.jpg", path]), "photos", vocabulary_ids=["cat", "dog"])
    assert dataset[0]["file_name"] == str(Path("photos/a.jpg"))
    with pytest.raises(ValueError, match="outside of the data set's folder"):
        dataset[1]


def test_label_files_with_python_objects_are_not_mapped(tmp_path: Path) -> None:
    build().save(tmp_path / "labels.npz")
    with np.load(tmp_path / "labels.npz") as stored:
        arrays = dict(stored)
    np.savez(tmp_path / "objects.npz", **{**arrays, "signs": np.array([None], dtype=object)})
    with pytest.raises(ValueError, match=r"objects\.npz holds Python objects in signs\.npy, which are never read"):
        LabelColumns.open(tmp_path / "objects.npz")
    np.savez(tmp_path / "floats.npz", **{**arrays, "classes": arrays["classes"].astype(float)})
    with pytest.raises(ValueError, match=r"floats\.npz: classes is not as this project writes it"):
        LabelColumns.open(tmp_path / "floats.npz")
    content = (tmp_path / "labels.npz").read_bytes()
    for length in (0, 10, 100, len(content) // 2, len(content) - 30):
        (tmp_path / "cut.npz").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.npz"):
            LabelColumns.open(tmp_path / "cut.npz")


def test_incomplete_labels_without_an_absence_have_no_ap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = {"a.jpg": ["cat"], "b.jpg": ["dog"]}
    register_multilabel("no_absence", SPLIT, tmp_path, labels, complete=False, replace=True)
    with caplog.at_level(logging.WARNING):
        records = DatasetCatalog.get("no_absence")
    assert "no label says that a class is absent" in caplog.text
    caplog.clear()
    evaluator = MultiLabelEvaluator("no_absence", top_k=(1,), distributed=False)
    evaluator.process([records[0], records[1]], [{"scores": torch.tensor([0.3, 0.1])}, {"scores": torch.tensor([0.2, 0.4])}])
    with caplog.at_level(logging.WARNING):
        numbers = evaluator.report()
    assert "no label says that a class is absent" in caplog.text
    assert numbers["ZSL_mAP"] is None and numbers["GZSL_mAP"] is None and numbers["GZSL_mAP_all_classes"] is None
    assert set(numbers["AP"].values()) == {None} and numbers["GZSL_P@1"] == 100.0
    report = check("no_absence")
    assert "no label says that a class is absent" in report.text()
