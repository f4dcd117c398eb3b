"""What inputs are called, and which results are whole."""

import argparse
import json
import os

import pytest
from PIL import Image

from zeroshot_d2.cli import load_config
from zeroshot_d2.results import finished, run_digest, sources_of, write_record


def test_images_are_named_from_the_folder_that_holds_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["x/a.jpg", "x/deep er/a.jpg", "x/b.mp4"]
    sources = sources_of([tmp_path / name for name in names])
    assert [source.file_name for source in sources] == ["a.jpg", "deep er/a.jpg", "b.mp4"]
    assert [source.name for source in sources] == ["a", "a.jpg", "b"]
    assert [s.file_name for s in sources_of([tmp_path / "x/a.jpg", tmp_path / "y/a.jpg"])] == ["x/a.jpg", "y/a.jpg"]
    relative = sources_of([tmp_path.relative_to(tmp_path) / "tags.jpg"], {"tags"})
    assert [(s.file_name, s.name) for s in relative] == [("tags.jpg", "tags.jpg")]


@pytest.fixture
def source(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    os.utime(tmp_path / "a.png", (1, 1))
    return sources_of([tmp_path / "a.png"])[0]


def test_a_record_of_the_same_run_is_finished(tmp_path, source):
    record, other = tmp_path / "out/a.json", tmp_path / "out/a_overlay.png"
    assert finished(record, source, "run") is None
    write_record(record, {"image": str(source.path), "classes": []}, "run")
    assert finished(record, source, "run") == {"image": str(source.path), "classes": [], "run": "run"}
    assert finished(record, source, "another run") is None
    assert finished(record, source, "run", [other]) is None
    other.touch()
    assert finished(record, source, "run", [other]) is not None


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '{"run": "run"}', '{"run": "run", "image": "elsewhere/a.png"}'])
def test_what_is_no_record_of_this_input_is_not_finished(tmp_path, source, content):
    record = tmp_path / "a.json"
    record.write_text(content)
    assert finished(record, source, "run") is None
    record.write_text(json.dumps({"run": "run", "image": str(source.path)}))
    assert finished(record, source, "run") is not None
    os.utime(source.path, (record.stat().st_mtime + 9,) * 2)
    assert finished(record, source, "run") is None


def test_what_the_digest_depends_on():
    args = {"top_k": 3, "output": "a", "num_processes": 1, "format": ["csv"]}

    def digest(weights="w", vocabulary=("cat",), opts=(), **changed):
        return run_digest(load_config("demo/epsilon.yaml", opts), weights, vocabulary, argparse.Namespace(**args | changed))

    same = digest()
    assert same == digest(output="b", num_processes=9, format=["json"])
    assert same == digest(opts=["MODEL.DEVICE", "cpu", "OUTPUT_DIR", "elsewhere", "TEST.IMS_PER_BATCH", "1"])
    others = [digest("v"), digest(vocabulary=("dog",)), digest(top_k=4), digest(opts=["TEST.TOP_K", "(1,)"])]
    assert len({same, *others}) == 5
