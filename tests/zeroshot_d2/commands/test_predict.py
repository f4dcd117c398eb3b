"""The command line of prediction: images, videos, files that cannot be read; and docs/predict.md as it stands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from alignzeg_d2.predictor import AlignZegPredictor
from zeroshot_d2.commands.check import main
from zeroshot_d2.commands.predict import find_inputs, output_names
from zeroshot_d2.demo_world import SPLIT, render
from zeroshot_d2.predictor import batches
from zeroshot_d2.segmentation.writer import write_labels

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "demo" / "alignzeg.yaml")
PAGE = (ROOT / "docs" / "predict.md").read_text(encoding="utf-8")


def save_photo(path: Path, index: int, size: tuple[int, int] = (64, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render(7, index).image).resize(size).save(path)


def save_video(path: Path, num_frames: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 64))
    for index in range(num_frames):
        writer.write(np.ascontiguousarray(render(7, index).image[:, :, ::-1]))
    writer.release()


def frames_of(path: Path) -> list[np.ndarray]:
    video = cv2.VideoCapture(str(path))
    frames = []
    while (frame := video.read())[0]:
        frames.append(frame[1])
    return frames


def test_inputs_are_files_folders_and_patterns(tmp_path):
    for name in ("a.jpg", "b.PNG", "c.mp4", "notes.txt", "inside/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in find_inputs([str(tmp_path)])] == ["a.jpg", "b.PNG", "c.mp4"]
    assert [p.name for p in find_inputs([str(tmp_path / "*.jpg"), str(tmp_path)])] == ["a.jpg", "b.PNG", "c.mp4"]
    assert [p.name for p in find_inputs([str(tmp_path / "notes.txt")])] == ["notes.txt"]  # asked for by name
    for missing in ("nothing.jpg", "*.webp"):
        with pytest.raises(FileNotFoundError, match=f"--input .*{re.escape(missing)} is neither a file nor"):
            find_inputs([str(tmp_path / missing)])


def test_every_input_has_a_name_of_its_own():
    paths = [Path("x/a.jpg"), Path("x/a.png"), Path("y/a.jpg"), Path("z/A.jpg"), Path("vocabulary.png")]
    assert output_names(paths) == ["a", "a.png", "a.jpg", "A.jpg_2", "vocabulary.png"]


def test_batches():
    assert list(batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batches([], 2)) == []


@pytest.mark.parametrize(("num_classes", "mode"), [(256, "L"), (257, "I;16")])
def test_label_images_have_8_or_16_bits(tmp_path, num_classes, mode):
    labels = np.array([[0, num_classes - 1, 7]])
    write_labels(tmp_path / "labels.png", labels, num_classes)
    with Image.open(tmp_path / "labels.png") as image:
        assert image.mode == mode
        assert np.array_equal(np.asarray(image), labels)


def test_images_and_one_unreadable_file(alignzeg_checkpoint, trained_cfg, tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    save_photo(photos / "a.png", 0)
    save_photo(photos / "c.jpg", 1, (96, 48))
    (photos / "b.jpg").write_bytes(b"\xff\xd8 no picture")
    arguments = ["--config-file", CONFIG, "--weights", str(alignzeg_checkpoint), "--input", str(photos), "--output", str(out)]
    assert main([*arguments, "--batch-size", "2"]) == 1
    printed = capsys.readouterr()
    assert "2 of 3 files done" in printed.out
    assert re.search(r"cannot read the image .*b\.jpg", printed.err)
    assert sorted(path.name for path in out.iterdir()) == [
        *("a.json", "a_labels.png", "a_overlay.png", "c.json", "c_labels.png", "c_overlay.png", "vocabulary.json")
    ]
    vocabulary = json.loads((out / "vocabulary.json").read_text())
    assert [entry["name"] for entry in vocabulary] == list(SPLIT.names)
    assert [entry["name"] for entry in vocabulary if entry["unseen"]] == [n for n in SPLIT.names if n in SPLIT.unseen]
    found = AlignZegPredictor(trained_cfg())(photos / "c.jpg")
    assert np.array_equal(np.asarray(Image.open(out / "c_labels.png")), found.labels)
    content = json.loads((out / "c.json").read_text())
    assert (content["width"], content["height"]) == (96, 48)
    assert [(c["name"], c["pixels"]) for c in content["classes"]] == [(c["name"], c["pixels"]) for c in found.classes()]
    assert Image.open(out / "c_overlay.png").width == 800


def test_a_video(alignzeg_checkpoint, tmp_path, capsys):
    save_video(tmp_path / "clip.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    arguments = ["--config-file", CONFIG, "--weights", str(alignzeg_checkpoint), "--output", str(tmp_path / "out")]
    words = ["--vocabulary", "plain blue tile, zebra|striped horse", "--input", str(tmp_path / "*.mp4")]
    assert main([*arguments, *words, "--batch-size", "3"]) == 1
    assert re.search(r"cannot read the video .*broken\.mp4", capsys.readouterr().err)
    overlay = frames_of(tmp_path / "out/clip_overlay.mp4")
    assert len(overlay) == 4 and overlay[0].shape == (512, 512, 3)
    content = json.loads((tmp_path / "out/clip.json").read_text())
    assert content["frames_per_second"] == 10 and [f["seconds"] for f in content["frames"]] == [0, 0.1, 0.2, 0.3]
    for number, frame in enumerate(content["frames"]):
        labels = np.asarray(Image.open(tmp_path / f"out/clip_labels/{number:06d}.png"))
        assert {c["name"]: c["pixels"] for c in frame["classes"]} == {
            name: count for name, k in (("plain blue tile", 0), ("zebra", 1)) if (count := int((labels == k).sum()))
        }


def test_unseen_only_and_class_lists(alignzeg_checkpoint, tmp_path):
    save_photo(tmp_path / "a.png", 0)
    (tmp_path / "classes.txt").write_text("dark grass\n\nzebra\nplain blue tile\n")
    arguments = ["--config-file", CONFIG, "--weights", str(alignzeg_checkpoint), "--input", str(tmp_path / "a.png")]
    words = ["--vocabulary", str(tmp_path / "classes.txt"), "--unseen", "plain blue tile", "--unseen-only"]
    assert main([*arguments, "--output", str(tmp_path / "out"), *words]) == 0
    vocabulary = json.loads((tmp_path / "out/vocabulary.json").read_text())
    assert [entry["name"] for entry in vocabulary] == ["zebra", "plain blue tile"]


@pytest.mark.parametrize("option", ["--config-file", "--weights", "--vocabulary"])
def test_missing_files_are_named(alignzeg_checkpoint, tmp_path, option):
    save_photo(tmp_path / "a.png", 0)
    given = {"--config-file": CONFIG, "--weights": str(alignzeg_checkpoint), "--input": str(tmp_path / "a.png")}
    given |= {"--output": str(tmp_path / "out"), option: "missing.txt"}
    with pytest.raises(FileNotFoundError, match=r"missing\.txt does not exist"):
        main([word for pair in given.items() for word in pair])


# ---- docs/predict.md ----


@pytest.fixture
def like_the_page(alignzeg_checkpoint, tmp_path, monkeypatch):
    """A folder with the files that the page speaks of."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "output/demo").mkdir(parents=True)
    (tmp_path / "output/demo/model_final.pth").symlink_to(alignzeg_checkpoint)
    for index, name in enumerate(("photos/a.jpg", "photos/b.png")):
        save_photo(tmp_path / name, index)
    save_video(tmp_path / "video.mp4", 2)
    monkeypatch.chdir(tmp_path)


COMMANDS = re.findall(r"^python -m alignzeg_d2\.predict ((?:.*\\\n)*.*)$", PAGE, re.M)


def test_the_page_has_commands():
    assert len(COMMANDS) >= 3


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page(like_the_page, command):
    assert main(shlex.split(command.replace("\\\n", " "))) == 0
    assert list(Path("out").glob("*_overlay.*"))


def test_python_of_the_page(like_the_page):
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(block, {})
    assert Path("changed.png").is_file() or "changed.png" not in PAGE
