"""The command that lists data sets and prepares releases, and the thin callers in datasets/."""

import runpy
from pathlib import Path

import pytest
import tiny_releases
from detectron2.data import DatasetCatalog

from zeroshot_d2.commands.datasets import main, preparations

SCRIPTS = Path(__file__).parents[3] / "datasets"


def rows(text: str) -> dict[str, list[str]]:
    """{first cell: the others} of a table."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {first: others for first, *others in cells}


def test_the_list_has_protocols_and_numbers_of_classes(capsys):
    assert main(["list"]) == 0
    table = rows(capsys.readouterr().out)
    assert table["data set"] == ["protocol", "classes", "unseen"]
    assert table["demo_world_val"] == ["GZS3", "38", "7"] and table["open_images_v4_test"] == ["GZSL", "7586", "400"]
    assert "coco_2017_val" not in table  # one of Detectron2's, without a class split


def test_the_list_has_what_a_script_registers(tmp_path, capsys):
    script = tmp_path / "registers_test_datasets_command.py"
    script.write_text(
        "from zeroshot_d2 import ClassSplit, register_multilabel\n"
        "register_multilabel('test_datasets_command', ClassSplit(['cat', 'dog'], ['dog']), '', {'a': ['cat']})\n"
    )
    assert main(["--import", str(script), "list"]) == 0
    assert rows(capsys.readouterr().out)["test_datasets_command"] == ["GZSL", "2", "1"]
    assert main(["list", "--import", str(script)]) == 0
    assert "test_datasets_command" in capsys.readouterr().out
    DatasetCatalog.remove("test_datasets_command")


def test_a_release_is_prepared(tmp_path, monkeypatch):
    tiny_releases.nus_wide_files(tmp_path)
    assert main(["prepare", "nus_wide", "--root", str(tmp_path)]) == 0
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert len(DatasetCatalog.get("nus_wide_test")) == 1
    with pytest.raises(FileNotFoundError, match=r"Imagelist\.txt not found in .*elsewhere"):
        main(["prepare", "nus_wide", "--root", str(tmp_path / "elsewhere")])


def test_what_does_not_fit(capsys):
    for words, message in (
        ([], "required: action"),
        (["prepare"], "with a NAME among ade20k_847, nus_wide, "),
        (["prepare", "imagenet"], "there is no preparation 'imagenet'; "),
        (["--import", "json", "prepare", "nus_wide"], "say `prepare NAME` first"),
        (["list", "nus_wide"], "list takes no name, got 'nus_wide'"),
        (["prepare", "nus_wide", "--rot", "x"], "unrecognized arguments: --rot x"),
        (["show"], "invalid choice: 'show'"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_every_preparation_has_a_script_that_calls_it(capsys, monkeypatch):
    names = preparations()
    assert names == ["ade20k_847", "nus_wide", "open_images_v4", "pascal_context", "pascal_context_459"]
    assert sorted(path.stem for path in SCRIPTS.glob("*.py")) == [f"prepare_{name}" for name in names]
    for name in names:
        monkeypatch.setattr("sys.argv", [f"prepare_{name}.py", "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPTS / f"prepare_{name}.py"), run_name="__main__")
        printed = capsys.readouterr().out
        assert ended.value.code == 0 and f"datasets prepare {name}" in printed and "reads  " in printed
