"""VOC's augmented training labels from a tiny SBD."""

import numpy as np
import pytest
import tiny_releases
from scipy.io import savemat

from zeroshot_d2.datasets import builtin
from zeroshot_d2.datasets.preparation.voc2012 import convert, main
from zeroshot_d2.images import read_label_image


@pytest.fixture
def voc(tmp_path):
    tiny_releases.sbd(tmp_path)
    return tmp_path / "VOCdevkit/VOC2012"


def test_vocs_own_labels_win_and_val_is_left_out(voc, capsys):
    convert(voc)
    assert (voc / "ImageSets/Segmentation/trainaug.txt").read_text() == "2007_000032\n2011_000999\n"
    made = {path.stem: np.unique(read_label_image(path)).tolist() for path in (voc / "SegmentationClassAug").iterdir()}
    assert made == {"2007_000032": [0, 15, 16, 255], "2011_000999": [0, 3]}
    assert "WARNING 2 images, the whole augmented training set has 10582" in capsys.readouterr().out


def test_an_interrupted_run_goes_on(voc):
    convert(voc)
    (voc / "SegmentationClassAug/2011_000999.png").unlink()
    first = (voc / "SegmentationClassAug/2007_000032.png").stat().st_mtime_ns
    main(["--root", str(voc.parents[1]), "--workers", "1"])
    assert (voc / "SegmentationClassAug/2011_000999.png").is_file()
    assert (voc / "SegmentationClassAug/2007_000032.png").stat().st_mtime_ns == first


def test_the_registered_data_set_reads_them(voc, monkeypatch):
    convert(voc)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(voc.parents[1]))
    (dataset,) = [dataset for dataset in builtin.SEM_SEG_DATASETS if dataset.name == "voc2012_train_all"]
    records = {record["image_id"]: record for record in builtin.load_sem_seg(dataset)}
    assert tiny_releases.names_in_order("voc2012_train_all", records["2011_000999"]) == ["bird", None]
    assert tiny_releases.names_in_order("voc2012_train_all", records["2007_000032"]) == [None, "person", "pottedplant", None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"GTcls": {"Segmentation": np.full((4, 4), 21, np.uint8)}}, r"label 21 must be a whole number from 0 to 20"),
        ({"GTcls": {"Segmentation": np.zeros((4, 4))}}, r"must hold a whole number for each pixel"),
        ({"other": 1}, r"2011_000999\.mat is no label file of SBD, or truncated: fetch it again"),
    ],
)
def test_a_damaged_label_file_is_named(voc, content, message):
    savemat(voc / "benchmark_RELEASE/dataset/cls/2011_000999.mat", content)
    with pytest.raises(ValueError, match=message):
        convert(voc)


def test_what_is_missing_is_named(voc):
    (voc / "SegmentationClass/2007_000032.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 label files are missing, for example .*2007_000032\.png"):
        convert(voc)
    for mask in (voc / "benchmark_RELEASE/dataset/cls").iterdir():
        mask.unlink()
    with pytest.raises(FileNotFoundError, match=r"SBD's label files not found: .*datasets download voc2012"):
        convert(voc)
