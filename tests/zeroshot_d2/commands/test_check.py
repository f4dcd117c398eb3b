"""The command that looks a data set over: what it prints, writes and returns."""

import csv

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from tiny_releases import faulty_release, save_noise, save_values

from zeroshot_d2 import ClassSplit, register_sem_seg
from zeroshot_d2.commands.check import main

NAME = "test_check_command"


@pytest.fixture(autouse=True)
def unregister():
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(NAME, None)


def test_a_data_set_with_faults_that_a_script_registers(tmp_path, capsys):
    faulty_release(tmp_path)
    script = tmp_path / "registers_test_check_command.py"
    script.write_text(
        "from zeroshot_d2 import ClassSplit, register_sem_seg\n"
        f"register_sem_seg({NAME!r}, ClassSplit(['cat', 'dog', 'cow'], ['dog']), "
        f"{str(tmp_path / 'images')!r}, {str(tmp_path / 'labels')!r})\n"
    )
    output = tmp_path / "out"
    assert main([NAME, "--workers", "1", "--output", str(output), "--import", str(script)]) == 1
    printed = capsys.readouterr().out
    assert "8 images, 8 checked, 3 classes, protocol GZS3" in printed and f"written: {output}/classes.csv" in printed
    with open(output / "classes.csv", newline="") as file:
        assert list(csv.reader(file))[1:3] == [["cat", "0", "4", "2473"], ["dog", "1", "2", "48"]]
    assert len((output / "faults.txt").read_text().splitlines()) == 4
    with Image.open(output / "sheet.png") as sheet:
        assert sheet.width == 4 * 328


def test_a_whole_data_set_has_no_faults(tmp_path, monkeypatch, capsys):
    save_noise(tmp_path / "images/0.jpg")
    save_values(tmp_path / "labels/0.png", np.zeros((4, 6)))
    register_sem_seg(NAME, ClassSplit(["cat", "dog"]), tmp_path / "images", tmp_path / "labels")
    monkeypatch.chdir(tmp_path)
    assert main([NAME, "--workers", "1", "--limit", "5"]) == 0
    assert (tmp_path / f"output/check/{NAME}/faults.txt").read_text() == ""


def test_what_does_not_fit(capsys):
    with pytest.raises(ValueError, match="no data set 'nothing' is registered"):
        main(["nothing"])
    for words, message in (
        (["a", "--limit", "0"], "must be a positive whole number, got '0'"),
        (["a", "--limt", "5"], "unrecognized arguments: --limt"),
        (["a", "MODEL.DEVICE", "cpu"], "unrecognized arguments: MODEL.DEVICE cpu"),  # there is no config to override
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2 and message in capsys.readouterr().err
