"""The check of a registered data set finds what is put in, and draws a sheet."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from zeroshot_d2 import ClassSplit, register_multilabel, register_sem_seg
from zeroshot_d2.commands.check import main
from zeroshot_d2.datasets.check import check
from zeroshot_d2.datasets.contact_sheet import contact_sheet

SPLIT = ClassSplit(["cat", "dog", "cow"], unseen=["dog"])
NAME = "test_check_dataset"


@pytest.fixture(autouse=True)
def unregister():
    yield
    if NAME in DatasetCatalog.list():
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def photo(path: Path, size=(6, 4), mode: str = "RGB", **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)


def label(path: Path, values) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(path)


def sem_seg_release(root: Path) -> None:
    """Three whole images, of three kinds of JPEG, then one per fault."""
    for i, mode in enumerate(("RGB", "L", "CMYK")):
        photo(root / f"images/{i}.jpg", mode=mode)
        label(root / f"labels/{i}.png", np.full((4, 6), i if i < 2 else 255))
    photo(root / "images/3_value.jpg")
    label(root / "labels/3_value.png", np.full((4, 6), 77))
    photo(root / "images/4_cut.jpg", size=(60, 40))
    whole = (root / "images/4_cut.jpg").read_bytes()
    (root / "images/4_cut.jpg").write_bytes(whole[: len(whole) // 2])
    label(root / "labels/4_cut.png", np.zeros((40, 60)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    photo(root / "images/5_turned.jpg", exif=exif)
    label(root / "labels/5_turned.png", np.zeros((4, 6)))
    photo(root / "images/6_size.jpg")
    label(root / "labels/6_size.png", np.zeros((5, 5)))


@pytest.mark.parametrize("workers", [1, 2])
def test_every_fault_is_named_and_classes_are_counted(tmp_path, workers):
    sem_seg_release(tmp_path)
    register_sem_seg(NAME, SPLIT, tmp_path / "images", tmp_path / "labels")
    report = check(NAME, workers=workers)
    assert (report.num_images, report.num_checked, len(report.problems)) == (7, 7, 4)
    cut, turned, size, value = (
        next(problem for problem in report.problems if part in problem)
        for part in ("4_cut.jpg", "5_turned.jpg", "6_size.jpg", "3_value.png")
    )
    assert "is missing, unreadable or truncated" in cut
    assert "is 4x6 pixels" in turned and "EXIF orientation" in turned
    assert "is 6x4 pixels" in size and "5x5" in size and "EXIF" not in size
    assert "label value(s) 77 are neither" in value
    assert report.images.tolist() == [4, 1, 0] and report.amount.tolist() == [24 + 2400 + 24 + 25, 24, 0]
    assert report.without_label == 1
    text = report.text()
    assert "classes that do not occur: 1 (cow" in text and "faults: 4" in text


def test_command_line(tmp_path, capsys):
    sem_seg_release(tmp_path)
    script = tmp_path / "mine.py"
    script.write_text(
        "from zeroshot_d2 import ClassSplit, register_sem_seg\n"
        f"register_sem_seg({NAME!r}, ClassSplit(['cat', 'dog', 'cow'], ['dog']), "
        f"{str(tmp_path / 'images')!r}, {str(tmp_path / 'labels')!r})\n"
    )
    output = tmp_path / "out"
    arguments = ["check", NAME, "--workers", "1", "--output", str(output), "--import", str(script)]
    assert main(arguments) == 1
    assert "7 images, 7 checked, 3 classes, protocol GZS3" in capsys.readouterr().out
    with open(output / "classes.csv", newline="") as file:
        assert list(csv.reader(file))[1:3] == [["cat", "0", "4", "2473"], ["dog", "1", "1", "24"]]
    assert len((output / "faults.txt").read_text().splitlines()) == 4
    with Image.open(output / "sheet.png") as sheet:
        assert sheet.width == 4 * 328
    assert main(["check", "nothing"]) == 2
    assert "no data set 'nothing' is registered" in capsys.readouterr().err
    assert main(["list"]) == 0
    assert f"{NAME} " in capsys.readouterr().out


def test_a_whole_data_set_has_no_faults(tmp_path):
    photo(tmp_path / "images/0.jpg")
    label(tmp_path / "labels/0.png", np.zeros((4, 6)))
    register_sem_seg(NAME, SPLIT, tmp_path / "images", tmp_path / "labels")
    assert main(["check", NAME, "--workers", "1", "--output", str(tmp_path / "out")]) == 0


def test_labels_are_laid_over_in_their_colour(tmp_path):
    Image.new("RGB", (320, 240), "black").save(tmp_path / "0.png")
    label(tmp_path / "labels/0.png", np.full((240, 320), 1))
    records = [{"file_name": str(tmp_path / "0.png"), "sem_seg_file_name": str(tmp_path / "labels/0.png"), "image_id": 0}]
    register_sem_seg(NAME, SPLIT, load=lambda: records, colors=[(0, 0, 0), (200, 100, 50), (9, 9, 9)])
    contact_sheet(NAME, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.getpixel((100, 100)) == (100, 50, 25)


def test_image_level_labels(tmp_path):
    for i in range(3):
        photo(tmp_path / f"{i}.jpg")
    labels = {"0.jpg": {"cat": 1, "dog": -1}, "1.jpg": {"cat": 1}, "2.jpg": {}, "gone.jpg": {"cow": 1}}
    register_multilabel(NAME, SPLIT, tmp_path, labels)
    report = check(NAME)
    assert report.images.tolist() == [2, 0, 1] and report.amount.tolist() == [0, 1, 0]
    assert report.without_label == 1 and len(report.problems) == 1 and "gone.jpg" in report.problems[0]
    assert "verified absent" in report.text()
    contact_sheet(NAME, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 0


def test_a_limit_is_spread_over_the_data_set(tmp_path):
    for i in range(9):
        photo(tmp_path / f"{i}.jpg")
    register_multilabel(NAME, SPLIT, tmp_path, {f"{i}.jpg": ["cat"] if i in (0, 4, 8) else ["cow"] for i in range(9)})
    report = check(NAME, limit=3)
    assert report.num_checked == 3 and report.num_images == 9 and report.images.tolist() == [3, 0, 0]
    with pytest.raises(ValueError, match="got 0"):
        check(NAME, limit=0)


def test_a_data_set_without_a_split_is_refused():
    DatasetCatalog.register(NAME, list)
    with pytest.raises(ValueError, match="no class split"):
        check(NAME)


def test_it_starts_as_a_module():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "zeroshot_d2.datasets", "list"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "demo_world_val" in done.stdout and "open_images_v4_test" in done.stdout
