"""The command that lists data sets and prepares releases, and the thin callers in datasets/."""

import hashlib
import io
import re
import runpy
import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_releases
from detectron2.data import DatasetCatalog
from loopback_server import serving

from zeroshot_d2.commands.datasets import main, preparations
from zeroshot_d2.datasets.releases import RELEASES, RemoteFile

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


# ---- downloads ----


def packed(name: str, root: Path, folders: Sequence[str]) -> bytes:
    """An archive of some folders below ``root``."""
    stream = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(stream, "w") as archive:
            for path in (path for folder in folders for path in sorted((root / folder).rglob("*"))):
                archive.write(path, path.relative_to(root))
    else:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for folder in folders:
                archive.add(root / folder, folder)
    return stream.getvalue()


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A server with tiny releases in place of the real ones, and an empty $DETECTRON2_DATASETS."""
    source = tmp_path / "source"
    tiny_releases.sbd(source)
    tiny_releases.nus_wide_files(source)
    tiny_releases.open_images_files(source, "train")
    voc = source / "VOCdevkit/VOC2012"
    (source / "SBD").mkdir()
    (voc / "benchmark_RELEASE").rename(source / "SBD/benchmark_RELEASE")
    labels = source / "open_images_v4/train-annotations-human-imagelabels.csv"
    (source / "open_images_v4/train").rename(source / "open_images_v4/train_f")
    nus = source / "nus_wide"
    (source / "tags/NUS_WID_Tags").mkdir(parents=True)
    for file in (nus / "TagList1k.txt", nus / "NUS_WID_Tags/AllTags1k.txt"):
        file.rename(source / "tags/NUS_WID_Tags" / file.name)
    archives = {
        "VOCtrainval_11-May-2012.tar": packed(".tar", source, ["VOCdevkit"]),
        "benchmark.tgz": packed(".tgz", source / "SBD", ["benchmark_RELEASE"]),
        labels.name: labels.read_bytes(),
        "train_f.tar.gz": packed(".tar.gz", source / "open_images_v4", ["train_f"]),
        "NUS_WID_Tags.zip": packed(".zip", source / "tags", ["NUS_WID_Tags"]),
        **{f"{name}.zip": packed(".zip", nus, [name]) for name in ("ImageList", "ConceptsList", "Groundtruth")},
    }
    root = tmp_path / "datasets"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    monkeypatch.chdir(tmp_path)
    with serving() as server:

        def small(file: RemoteFile) -> RemoteFile:
            content = archives[file.name]
            digest = f"md5:{hashlib.md5(content).hexdigest()}" if file.checksum else ""
            served = server.file(file.name, content)
            return replace(file, url=served.url, size=len(content) if file.size else None, checksum=digest)

        for name in ("voc2012", "nus_wide", "open_images_v4"):
            parts = {
                part: replace(content, files=tuple(small(file) for file in content.files if file.name in archives))
                for part, content in RELEASES[name].parts.items()
            }
            monkeypatch.setitem(RELEASES, name, replace(RELEASES[name], parts=parts))
        yield SimpleNamespace(server=server, source=source, root=root)


def test_voc_from_its_archives_to_the_registered_data_sets(published, capsys):
    command = ["download", "voc2012", "--workers", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "voc2012_val: 2 images, 2 checked" in printed and "voc2012_train_seen: 2 images, 2 checked" in printed
    assert printed.count("faults: 0") == 2
    assert not (published.root / "VOCdevkit/VOC2012/benchmark_RELEASE/dataset/img").exists()
    asked = len(published.server.asked)
    assert main([*command, "--no-check", "--delete-archives"]) == 0
    assert len(published.server.asked) == asked  # nothing is fetched twice
    assert {path.suffix for path in (published.root / "downloads/voc2012").iterdir()} == {".done"}


def test_what_no_command_can_fetch_is_said_and_the_rest_is_there(published, capsys):
    assert main(["download", "nus_wide", "--workers", "1"]) == 1
    printed = capsys.readouterr().out
    assert "nus_wide, part all: to be done by hand, then repeat the command" in printed
    assert f"{published.root / 'nus_wide/Flickr'} is missing: the images are given out on request only" in printed
    shutil.copytree(published.source / "nus_wide/Flickr", published.root / "nus_wide/Flickr")
    assert main(["download", "nus_wide", "--workers", "1"]) == 0
    assert "nus_wide_test: 1 images, 1 checked" in capsys.readouterr().out


def test_a_dead_address_does_not_keep_the_others(published, capsys):
    del published.server.files["/Groundtruth.zip"]
    assert main(["download", "nus_wide", "voc2012", "--parts", "all", "val", "--workers", "1"]) == 1
    printed = capsys.readouterr().out
    assert "Groundtruth.zip is not there (HTTP status 404)." in printed and "voc2012_val: 2 images" in printed
    assert (published.root / "downloads/nus_wide/NUS_WID_Tags.zip.done").is_file()


def test_the_images_with_boxes_of_open_images(published, capsys):
    assert main(["download", "open_images_v4", "--parts", "train_boxes", "--workers", "1"]) == 0
    assert "open_images_v4_train_boxes: 2 images, 2 checked, 7186 classes, protocol supervised" in capsys.readouterr().out


def test_a_full_disk_is_noticed_before_anything_is_fetched(published, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"^this needs about 0\.0 GB in .*datasets, which has 0\.0 GB left: --delete-arch"):
        main(["download", "voc2012"])
    assert published.server.asked == []


def test_a_dry_run_fetches_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert main(["download", *RELEASES, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for release in RELEASES.values():
        for part in release.parts.values():
            assert all(file.url in printed for file in part.files)
    assert "| 2.0 GB | size and md5 of torchvision and TensorFlow Datasets |" in re.sub(" +", " ", printed)
    assert "nus_wide/Flickr: by hand: the images are given out on request only" in printed
    assert list(tmp_path.iterdir()) == []


def test_what_parts_there_are(capsys):
    for words, message in (
        (["voc2012", "--parts", "test"], "there is no part 'test' of voc2012; choose among train, val"),
        (["imagenet"], "invalid choice: 'imagenet'"),
        ([], "required: NAME"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["download", *words])
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_every_release_is_checked_by_names_that_are_registered():
    registered = set(DatasetCatalog.list())
    for release in RELEASES.values():
        for part in release.parts.values():
            assert part.checks and set(part.checks) <= registered
            assert not part.preparation or part.preparation[0] in preparations()


def test_every_preparation_has_a_script_that_calls_it(capsys, monkeypatch):
    names = preparations()
    assert names == ["ade20k_847", "nus_wide", "open_images_v4", "pascal_context", "pascal_context_459", "voc2012"]
    assert sorted(path.stem for path in SCRIPTS.glob("*.py")) == [f"prepare_{name}" for name in names]
    for name in names:
        monkeypatch.setattr("sys.argv", [f"prepare_{name}.py", "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPTS / f"prepare_{name}.py"), run_name="__main__")
        printed = capsys.readouterr().out
        assert ended.value.code == 0 and f"datasets prepare {name}" in printed and "reads  " in printed
