"""The command line of prediction, for both tasks: photos, videos, files that cannot be read; and docs/predict.md."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from zeroshot_d2.checkpoint import Checkpointer, ModelRecord
from zeroshot_d2.cli import load_config
from zeroshot_d2.commands import predict
from zeroshot_d2.commands.predict import find_inputs, main, predict_photos, share
from zeroshot_d2.demo_world import SPLIT, render
from zeroshot_d2.predictor import Predictor, batches, build_predictor
from zeroshot_d2.results import Source, output_names

PAGE = (Path(__file__).parents[3] / "docs" / "predict.md").read_text(encoding="utf-8")


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


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The folders alignzeg and epsilon: models on the demo world's CLIP as a run leaves them, but for the training."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("alignzeg", "epsilon"):
        cfg = load_config(f"demo/{name}.yaml")
        torch.manual_seed(0)
        model = build_model(cfg)
        Checkpointer(model, str(folder / name), record=ModelRecord.for_training(cfg, model)).save("model_final")
        (folder / name / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture
def segmenter(runs) -> list[str]:
    return ["--model", str(runs / "alignzeg")]


@pytest.fixture
def ranker(runs) -> list[str]:
    return ["--model", str(runs / "epsilon")]


def predictor_of(folder: Path) -> Predictor:
    return build_predictor(load_config(folder / "config.yaml", weights=folder / "model_final.pth"))


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of two photos, one file that is none, and a text."""
    save_photo(tmp_path / "photos/a.png", 0)
    save_photo(tmp_path / "photos/c.jpg", 1, (96, 48))
    (tmp_path / "photos/b.jpg").write_bytes(b"\xff\xd8 no picture")
    (tmp_path / "photos/notes.txt").write_text("no image")
    return tmp_path / "photos"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- inputs and names ----


def test_inputs_are_files_folders_and_patterns(tmp_path):
    for name in ("a.jpg", "b.PNG", "c.mp4", "notes.txt", "inside/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in find_inputs([str(tmp_path)])] == ["a.jpg", "b.PNG", "c.mp4"]
    assert [p.name for p in find_inputs([str(tmp_path / "*.jpg"), str(tmp_path)])] == ["a.jpg", "b.PNG", "c.mp4"]
    assert [p.name for p in find_inputs([str(tmp_path / "**" / "*.jpg")])] == ["a.jpg", "d.jpg"]
    assert [p.name for p in find_inputs([str(tmp_path / "notes.txt")])] == ["notes.txt"]  # asked for by name
    for missing in ("nothing.jpg", "*.webp"):
        with pytest.raises(FileNotFoundError, match=f"--input .*{re.escape(missing)} is neither a file nor"):
            find_inputs([str(tmp_path / missing)])


def test_a_name_may_look_like_a_pattern(tmp_path):
    for name in ("a[1].jpg", "a1.jpg"):
        (tmp_path / name).touch()
    assert [p.name for p in find_inputs([str(tmp_path / "a[1].jpg")])] == ["a[1].jpg"]


def test_every_input_has_a_name_of_its_own():
    paths = [Path("x/a.jpg"), Path("x/a.png"), Path("y/a.jpg"), Path("z/A.jpg"), Path("vocabulary.png")]
    assert output_names(paths, {"vocabulary"}) == ["a", "a.png", "a.jpg", "A.jpg_2", "vocabulary.png"]
    many = [Path(f"{folder}/a.jpg") for folder in range(30)] + [Path("a.jpg_2.png"), Path("a.jpg.png")]
    assert len({name.lower() for name in output_names(many)}) == len(many)


def test_batches():
    assert list(batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batches([], 2)) == []


# ---- photos ----


def test_segmented_photos_and_one_that_cannot_be_read(segmenter, runs, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*segmenter, "--input", str(photos), "--output", str(out), "--batch-size", "2"]) == 1
    printed = capsys.readouterr()
    assert f"2 of 3 files done, results in {out}" in printed.out
    assert re.search(r"cannot read the image .*b\.jpg", printed.err)
    files = ("a.json", "a_labels.png", "a_overlay.png", "c.json", "c_labels.png", "c_overlay.png", "vocabulary.json")
    assert names_in(out) == list(files)
    vocabulary = json.loads((out / "vocabulary.json").read_text())
    assert [entry["name"] for entry in vocabulary] == list(SPLIT.names)
    assert [entry["name"] for entry in vocabulary if entry["unseen"]] == [n for n in SPLIT.names if n in SPLIT.unseen]
    found = predictor_of(runs / "alignzeg")(photos / "c.jpg")
    labels = np.asarray(Image.open(out / "c_labels.png"))
    assert (labels == found.labels).mean() > 0.999  # batches differ in the last digits
    content = json.loads((out / "c.json").read_text())
    assert (content["width"], content["height"]) == (96, 48) and content["image"] == str(photos / "c.jpg")
    counts = np.bincount(labels.ravel(), minlength=len(SPLIT))
    assert {c["index"]: c["pixels"] for c in content["classes"]} == {k: counts[k] for k in np.flatnonzero(counts)}
    for entry in content["classes"]:
        assert entry["name"] == SPLIT.names[entry["index"]] and entry["unseen"] == (entry["name"] in SPLIT.unseen)
    assert Image.open(out / "c_overlay.png").width == 800


def test_tagged_photos_and_one_that_cannot_be_read(ranker, runs, photos, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--top-k", "5", "--pictures", "--explain", "--batch-size", "2"]
    assert main([*ranker, "--input", str(photos), "--output", str(out), *words]) == 1
    printed = capsys.readouterr()
    assert f"2 of 3 files done, results in {out}" in printed.out
    assert re.search(r"cannot read the image .*b\.jpg", printed.err)
    pictures = [f"{name}_{what}.png" for name in "ac" for what in ("global_attention", "group_attention", "tags")]
    assert names_in(out) == sorted(["a.json", "c.json", "tags.csv", "vocabulary.json", *pictures])
    assert all(Image.open(out / name).width > 200 for name in pictures)
    expected = predictor_of(runs / "epsilon")(photos / "c.jpg").classes(top_k=5)
    content = json.loads((out / "c.json").read_text())
    assert content["image"] == str(photos / "c.jpg")
    assert [c["name"] for c in content["classes"]] == [c["name"] for c in expected]
    assert [c["score"] for c in content["classes"]] == pytest.approx([c["score"] for c in expected], rel=1e-4)
    with open(out / "tags.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "rank", "index", "name", "unseen", "score"]
    assert [row["image"] for row in rows] == [str(photos / "a.png")] * 5 + [str(photos / "c.jpg")] * 5
    assert [int(row["rank"]) for row in rows] == [1, 2, 3, 4, 5] * 2
    for row, entry in zip(rows[5:], content["classes"], strict=True):
        assert (int(row["index"]), row["name"]) == (entry["index"], entry["name"])
        assert bool(int(row["unseen"])) is entry["unseen"] and float(row["score"]) == pytest.approx(entry["score"], rel=1e-5)


def test_tags_on_the_screen_alone(ranker, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*ranker, "--input", str(photos / "a.png"), "--top-k", "38"]) == 0
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first == str(photos / "a.png") and len(lines) == 38 and last == "1 of 1 files done"
    scores = [float(line.split()[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    assert {line.split(maxsplit=1)[1] for line in lines} == {f"★ {n}" if n in SPLIT.unseen else n for n in SPLIT.names}
    assert names_in(tmp_path) == ["photos"]
    threshold = (scores[3] + scores[4]) / 2
    main([*ranker, "--input", str(photos / "a.png"), "--top-k", "38", "--threshold", str(threshold)])
    assert capsys.readouterr().out.splitlines()[1:-1] == lines[:4]


def test_tags_of_a_vocabulary_smaller_than_ten(ranker, photos, capsys):
    assert main([*ranker, "--input", str(photos / "a.png"), "--vocabulary", "zebra|striped horse, plain red tile"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:-1]
    assert {line.split(maxsplit=1)[1] for line in lines} == {"★ zebra", "plain red tile"}


def test_inputs_of_one_name_do_not_overwrite_each_other(ranker, photos, tmp_path):
    save_photo(photos / "deeper/a.png", 2)
    save_photo(photos / "a.jpg", 3)
    inputs = [str(photos / "a.png"), str(photos / "deeper"), str(photos / "a.jpg")]
    assert main([*ranker, "--input", *inputs, "--output", str(tmp_path / "out")]) == 0
    found = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out").glob("a*.json")}
    images = {name: Path(content["image"]).relative_to(photos).as_posix() for name, content in found.items()}
    assert images == {"a.json": "a.png", "a.png.json": "deeper/a.png", "a.jpg.json": "a.jpg"}


def test_photos_that_are_too_large_are_reported(ranker, photos, tmp_path, capsys):
    words = ["--input", str(photos / "a.png"), str(photos / "c.jpg"), "--output", str(tmp_path / "out")]
    assert main([*ranker, *words, "--max-pixels", str(64 * 64)]) == 1
    printed = capsys.readouterr()
    assert "1 of 2 files done" in printed.out and "c.jpg has 96 x 48 pixels, more than 4,096" in printed.err


def test_photos_are_read_batch_by_batch(photos, monkeypatch, tmp_path):
    """Of a folder of thousands no more than a batch is in memory, and one that cannot be read makes no batch shorter."""
    events: list[str] = []
    real = predict.to_bgr
    monkeypatch.setattr(predict, "to_bgr", lambda path, limit: events.append(path.name) or real(path, limit))

    class Predictor:
        batch_size, max_pixels, explanation_needs = 2, 10**6, ()

        def __call__(self, images, **wanted):
            events.append(f"{len(images)} images")
            return ["result"] * len(images)

    class Writer:
        def photo(self, source, bgr, result):
            events.append(f"{source.name} is written")

    names = ("a.png", "b.jpg", "c.jpg", "a.png")
    sources = [Source(photos / name, str(number), name) for number, name in enumerate(names, start=1)]
    failed = predict_photos(Predictor(), Writer(), sources)
    assert list(failed) == [photos / "b.jpg"]
    assert events == [
        *("a.png", "b.jpg", "c.jpg", "2 images", "1 is written", "3 is written"),
        *("a.png", "1 images", "4 is written"),
    ]


# ---- videos ----


def test_a_segmented_video(segmenter, tmp_path, capsys):
    save_video(tmp_path / "clip.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    out = tmp_path / "out"
    words = ["--vocabulary", "plain blue tile, zebra|striped horse", "--input", str(tmp_path / "*.mp4")]
    assert main([*segmenter, *words, "--batch-size", "3", "--output", str(out)]) == 1
    assert re.search(r"cannot read the video .*broken\.mp4", capsys.readouterr().err)
    assert names_in(out) == ["clip.json", "clip_labels", "clip_overlay.mp4", "vocabulary.json"]
    overlay = frames_of(out / "clip_overlay.mp4")
    assert len(overlay) == 4 and overlay[0].shape == (512, 512, 3)
    content = json.loads((out / "clip.json").read_text())
    assert content["frames_per_second"] == 10 and [f["seconds"] for f in content["frames"]] == [0, 0.1, 0.2, 0.3]
    for number, frame in enumerate(content["frames"]):
        labels = np.asarray(Image.open(out / f"clip_labels/{number:06d}.png"))
        assert {c["name"]: c["pixels"] for c in frame["classes"]} == {
            name: count for name, k in (("plain blue tile", 0), ("zebra", 1)) if (count := int((labels == k).sum()))
        }


def test_a_tagged_video_beside_a_photo(ranker, runs, photos, tmp_path, capsys):
    save_video(photos / "clip.mp4", 3)
    words = ["--input", str(photos / "clip.mp4"), str(photos / "a.png"), "--output", str(tmp_path / "out"), "--top-k", "2"]
    assert main([*ranker, *words]) == 0
    assert "2 of 2 files done" in capsys.readouterr().out
    assert names_in(tmp_path / "out") == ["a.json", "clip.json", "tags.csv", "vocabulary.json"]
    predictor = predictor_of(runs / "epsilon")
    content = json.loads((tmp_path / "out/clip.json").read_text())
    assert content["video"] == str(photos / "clip.mp4") and [f["frame"] for f in content["frames"]] == [0, 1, 2]
    for frame, bgr in zip(content["frames"], frames_of(photos / "clip.mp4"), strict=True):
        expected = predictor(bgr).classes(top_k=2)
        assert [c["score"] for c in frame["classes"]] == pytest.approx([c["score"] for c in expected], rel=1e-4)
    assert (tmp_path / "out/tags.csv").read_text().count("\n") == 3  # the photo's alone


def test_an_interrupted_video_leaves_no_half_files(segmenter, tmp_path, monkeypatch):
    save_video(tmp_path / "clip.mp4")
    from zeroshot_d2.segmentation import writer

    real, calls = writer.draw_frame, []
    monkeypatch.setattr(writer, "draw_frame", lambda *a: calls.append(1) or (real(*a) if len(calls) < 3 else 1 / 0))
    with pytest.raises(ZeroDivisionError):
        main([*segmenter, "--input", str(tmp_path / "clip.mp4"), "--output", str(tmp_path / "out")])
    assert names_in(tmp_path / "out") == ["clip_labels", "vocabulary.json"]
    assert names_in(tmp_path / "out/clip_labels") == ["000000.png", "000001.png"]


def test_without_a_test_data_set_the_classes_are_those_in_the_checkpoint(ranker, photos, tmp_path):
    words = ["--input", str(photos / "a.png"), "--output", str(tmp_path / "out"), "DATASETS.TEST", "()"]
    assert main([*ranker, *words, "DATASETS.TRAIN", "('not_registered_here',)"]) == 0
    vocabulary = json.loads((tmp_path / "out/vocabulary.json").read_text())
    assert [entry["name"] for entry in vocabulary] == list(SPLIT.names)
    assert [entry["unseen"] for entry in vocabulary] == SPLIT.unseen_mask.tolist()


# ---- annotation tools ----


def contents(folder: Path) -> dict[str, Any]:
    """{relative path: content} of all files, JSON decoded and images as arrays."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".json":
            found[path.relative_to(folder).as_posix()] = json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".png":
            found[path.relative_to(folder).as_posix()] = np.asarray(Image.open(path))
        elif path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def about(value: Any) -> Any:
    """What compares equal to the same JSON with scores that differ in the last digits."""
    if isinstance(value, dict):
        return {key: about(item) for key, item in value.items()}
    if isinstance(value, list):
        return [about(item) for item in value]
    return pytest.approx(value, rel=1e-3, abs=1e-5) if isinstance(value, float) else value


def test_photos_and_the_frames_of_a_video_in_every_format(segmenter, photos, tmp_path):
    save_video(photos / "clip.mp4", 2)
    out = tmp_path / "out"
    (photos / "b.jpg").unlink()
    words = ["--format", "labels", "coco", "coco-panoptic", "label-studio", "cvat", "--batch-size", "2"]
    assert main([*segmenter, "--input", str(photos), "--output", str(out), *words]) == 0
    assert names_in(out / "clip_frames") == ["000000.png", "000001.png"]
    names = ["a.png", "c.jpg", "clip_frames/000000.png", "clip_frames/000001.png"]
    for name in ("coco/annotations.json", "coco_panoptic/panoptic.json"):
        images = json.loads((out / name).read_text())["images"]
        assert [image["file_name"] for image in images] == names
        assert [(image["width"], image["height"]) for image in images] == [(64, 64), (96, 48), (64, 64), (64, 64)]
    tasks = json.loads((out / "label_studio/tasks.json").read_text())
    assert [task["data"]["image"].partition("=")[2] for task in tasks] == names
    stems = [name.partition(".")[0] for name in names]
    assert (out / "cvat/ImageSets/Segmentation/default.txt").read_text().splitlines() == stems
    colors = {}
    for line in (out / "cvat/labelmap.txt").read_text().splitlines()[1:]:
        name, color, *_ = line.split(":")
        colors[name] = tuple(map(int, color.split(",")))
    for stem, labels in zip(stems, ("a_labels", "c_labels", "clip_labels/000000", "clip_labels/000001"), strict=True):
        values = np.asarray(Image.open(out / f"{labels}.png"))
        expected = np.array([colors[name] for name in SPLIT.names], dtype=np.uint8)[values]
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"cvat/SegmentationClass/{stem}.png")), expected)
        ids = np.asarray(Image.open(out / f"coco_panoptic/panoptic/{stem}.png"))
        np.testing.assert_array_equal(ids[..., 0], values + 1)


def test_tags_in_every_format(ranker, photos, tmp_path):
    out = tmp_path / "out"
    save_video(photos / "clip.mp4", 2)
    (photos / "b.jpg").unlink()
    words = ["--format", "json", "label-studio", "--top-k", "3", "--image-prefix", "https://photos.example/"]
    assert main([*ranker, "--input", str(photos), "--output", str(out), *words]) == 0
    assert names_in(out) == ["a.json", "c.json", "clip.json", "label_studio", "tags.json", "vocabulary.json"]
    together = json.loads((out / "tags.json").read_text())
    for name, entry in zip("ac", together, strict=True):
        alone = json.loads((out / f"{name}.json").read_text())
        assert entry == {key: value for key, value in alone.items() if key != "run"}
    tasks = json.loads((out / "label_studio/tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == ["https://photos.example/a.png", "https://photos.example/c.jpg"]
    view = ElementTree.parse(out / "label_studio/config.xml").getroot()
    offered = [choice.get("value") for choice in view.find("Choices")]
    assert offered == list(SPLIT.names)
    for task, entry in zip(tasks, together, strict=True):
        (region,) = task["predictions"][0]["result"]
        assert region["value"]["choices"] == [c["name"] for c in entry["classes"]]
        assert region["score"] == max(c["score"] for c in entry["classes"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--min-area", "5"], "--min-area is for --format coco"),
        (["--image-prefix", "x", "--format", "coco"], "--image-prefix is for --format label-studio"),
        (["--overlay-width", "900", "--format", "coco"], "--overlay-width is for --format labels"),
    ],
)
def test_options_of_formats_that_are_not_written(segmenter, photos, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        main([*segmenter, "--input", str(photos / "a.png"), "--output", str(tmp_path / "out"), *words])


# ---- what is finished ----


def age(folder: Path) -> None:
    """Let all files have been written an hour ago."""
    for path in folder.rglob("*"):
        moment = path.stat().st_mtime - 3600
        os.utime(path, (moment, moment))


@pytest.mark.parametrize("system", ["segmenter", "ranker"])
def test_finished_files_are_skipped(system, request, photos, tmp_path, capsys, monkeypatch):
    model = request.getfixturevalue(system)
    save_video(photos / "clip.mp4", 2)
    (photos / "b.jpg").unlink()
    out = tmp_path / "out"
    given = [*model, "--input", str(photos), "--output", str(out), "--skip-finished"]
    given += ["--format", "labels", "coco"] if system == "segmenter" else ["--pictures", "--top-k", "3"]
    read: list[str] = []
    real = predict.to_bgr
    monkeypatch.setattr(predict, "to_bgr", lambda path, limit: read.append(path.name) or real(path, limit))

    def again(*words: str) -> str:
        read.clear()
        assert main([*given, *words]) == 0
        return capsys.readouterr().out.splitlines()[-1]

    assert f"3 of 3 files done (0 finished before), results in {out}" == again()
    first = contents(out)
    age(photos)
    assert "(3 finished before)" in again() and read == []
    second = contents(out)
    assert second.keys() == first.keys()
    assert all(np.array_equal(second[name], content) for name, content in first.items())

    for lost in ("c_overlay.png", "records/coco/c.json") if system == "segmenter" else ("c_tags.png", "c.json"):
        (out / lost).unlink()
        assert "(2 finished before)" in again() and read == ["c.jpg"]
    (out / "clip.json").write_text("{")
    assert "(2 finished before)" in again() and read == []
    save_photo(photos / "a.png", 5)  # newer than its results
    os.utime(photos / "a.png", (time.time() + 5, time.time() + 5))
    assert "(2 finished before)" in again() and read == ["a.png"]
    age(photos)
    assert "(0 finished before)" in again("--vocabulary", "zebra, plain red tile, dark grass, cat")
    assert "(0 finished before)" in again("MODEL.PIXEL_STD", "[68.5, 66.6, 70.3]")
    assert "(3 finished before)" in again("--batch-size", "7", "MODEL.PIXEL_STD", "[68.5, 66.6, 70.3]")


def test_other_weights_are_not_finished(ranker, photos, tmp_path, capsys):
    given = ["--input", str(photos / "a.png"), "--output", str(tmp_path / "out"), "--skip-finished"]
    age(photos)
    main([*ranker, *given])
    cfg = load_config("demo/epsilon.yaml")
    torch.manual_seed(1)
    Checkpointer(build_model(cfg), str(tmp_path)).save("other")
    capsys.readouterr()
    assert main([*ranker, *given, "--weights", str(tmp_path / "other.pth")]) == 0
    assert "(0 finished before)" in capsys.readouterr().out


# ---- several processes ----


def test_shares_are_whole_batches():
    assert share(range(10), 0, 2, 3) == [0, 1, 2, 6, 7, 8] and share(range(10), 1, 2, 3) == [3, 4, 5, 9]
    assert sorted(x for index in range(4) for x in share(range(10), index, 4, 3)) == list(range(10))


@pytest.mark.slow
@pytest.mark.parametrize("system", ["segmenter", "ranker"])
def test_several_processes_write_what_one_does(system, request, photos, tmp_path, capfd):
    model = request.getfixturevalue(system)
    for index in range(3):
        save_photo(photos / f"more/{index}.png", index + 4)
    save_video(photos / "clip.mp4", 2)
    (photos / "broken.mp4").write_bytes(b"no video")
    given = [*model, "--input", str(photos), str(photos / "more"), "--batch-size", "2"]
    given += ["--format", *(["labels", "coco", "cvat"] if system == "segmenter" else ["csv", "json"])]
    assert main([*given, "--output", str(tmp_path / "one")]) == 1
    expected = capfd.readouterr()
    out = tmp_path / "several"
    assert main([*given, "--output", str(out), "--num-processes", "2"]) == 1
    printed = capfd.readouterr()
    assert "6 of 8 files done" in printed.out
    reasons = [line for line in printed.err.splitlines() if line.startswith("cannot read")]
    assert reasons == [line for line in expected.err.splitlines() if line.startswith("cannot read")]
    assert len(reasons) == 2
    one, several = contents(tmp_path / "one"), contents(out)
    assert list(several) == list(one)
    for name, content in one.items():
        if isinstance(content, np.ndarray):
            assert (content == several[name]).mean() > 0.99, name
        elif name.endswith(".json") and (system == "ranker" or name == "vocabulary.json"):
            assert several[name] == about(content), name  # label maps may differ in a pixel, and then in their regions
    if system == "ranker":
        with (tmp_path / "one/tags.csv").open() as first, (out / "tags.csv").open() as second:
            names = [[row[:2] for row in csv.reader(file)] for file in (first, second)]
        assert names[0] == names[1] and len(names[0]) > 50
    else:
        assert several["coco/annotations.json"]["images"] == one["coco/annotations.json"]["images"]


@pytest.mark.slow
def test_a_fault_of_one_process_ends_all(ranker, photos, tmp_path):
    given = [*ranker, "--input", str(photos), "--output", str(tmp_path / "out"), "--num-processes", "2"]
    with pytest.raises(ValueError, match="--top-k 39 is larger than the vocabulary of 38 classes"):
        main([*given, "--top-k", "39"])


# ---- arguments ----


def test_unseen_only_and_class_lists(segmenter, photos, tmp_path):
    (tmp_path / "classes.txt").write_text("dark grass\n\nzebra\nplain blue tile\n")
    words = ["--vocabulary", str(tmp_path / "classes.txt"), "--unseen", "plain blue tile", "--unseen-only"]
    assert main([*segmenter, "--input", str(photos / "a.png"), "--output", str(tmp_path / "out"), *words]) == 0
    vocabulary = json.loads((tmp_path / "out/vocabulary.json").read_text())
    assert [entry["name"] for entry in vocabulary] == ["zebra", "plain blue tile"]


def test_keys_override_the_config(ranker, photos, tmp_path):
    words = ["--input", str(photos / "a.png"), "--output", str(tmp_path / "out")]
    assert main([*ranker, *words, "DATASETS.TEST", "('demo_world_multilabel_train',)"]) == 0
    vocabulary = json.loads((tmp_path / "out/vocabulary.json").read_text())
    assert [entry["name"] for entry in vocabulary] == list(SPLIT.seen)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--config-file", r"missing\.txt does not exist"),
        ("--weights", r"missing\.txt do not exist"),
        ("--vocabulary", r"the class list missing\.txt does not exist"),
        ("--input", r"--input missing\.txt is neither a file nor"),
        ("--model", r"missing\.txt"),
    ],
)
def test_missing_files_are_named(runs, photos, tmp_path, option, message):
    weights = str(runs / "alignzeg/model_final.pth")
    given = {"--config-file": "demo/alignzeg.yaml", "--weights": weights, "--input": str(photos / "a.png")}
    given |= {"--output": str(tmp_path / "out"), option: "missing.txt"}
    with pytest.raises(FileNotFoundError, match=message):
        main([word for pair in given.items() for word in pair])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--input", "a.png", "--output", "o"],
            "which model? Give --model FOLDER, or --config-file FILE and --weights FILE",
        ),
        (["--model", "M"], "the following arguments are required: --input"),
        (["--model", "M", "--input", "a.png"], "--output FOLDER is missing"),
        (["--model", "M", "--input", "a.png", "--output", "o", "--top-k", "5"], "unrecognized arguments: --top-k 5"),
        (["--model", "M", "--input", "a.png", "--output", "o", "--batch-size", "0"], "must be a positive whole number"),
        (["--model", "T", "--input", "a.png", "--explain"], "--output FOLDER is missing"),
        (["--model", "T", "--input", "a.png", "--top-k", "0"], "must be a positive whole number"),
        (["--model", "T", "--input", "a.png", "--skip-finished"], "looks for results in --output FOLDER"),
        (["--model", "T", "--input", "a.png", "--num-processes", "0"], "must be a positive whole number"),
        (["--model", "M", "--input", "a.png", "--output", "o", "--format", "yolo"], "invalid choice: 'yolo'"),
    ],
)
def test_arguments_that_do_not_fit(segmenter, ranker, words, message, capsys):
    if words[:1] == ["--model"]:
        words = [*(segmenter if words[1] == "M" else ranker), *words[2:]]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_numbers_of_tags_that_do_not_fit(ranker, photos, tmp_path):
    given = [*ranker, "--input", str(photos / "a.png")]
    with pytest.raises(ValueError, match="--top-k 39 is larger than the vocabulary of 38 classes"):
        main([*given, "--top-k", "39"])
    with pytest.raises(ValueError, match="--pictures needs --output FOLDER"):
        main([*given, "--pictures"])
    with pytest.raises(ValueError, match=r"unseen classes \['zebra'\] are not in the vocabulary"):
        main([*given, "--unseen", "zebra"])
    with pytest.raises(ValueError, match="no class is unseen"):
        main([*given, "--vocabulary", "plain red tile", "--unseen-only"])


# ---- docs/predict.md ----


@pytest.fixture
def like_the_page(runs, tmp_path, monkeypatch):
    """A folder with the files that the page speaks of."""
    (tmp_path / "output").mkdir()
    (tmp_path / "output/demo").symlink_to(runs / "alignzeg")
    for index, name in enumerate(("photos/a.jpg", "photos/b.png")):
        save_photo(tmp_path / name, index)
    save_video(tmp_path / "video.mp4", 2)
    monkeypatch.chdir(tmp_path)


COMMANDS = re.findall(r"^python -m zeroshot_d2 predict ((?:.*\\\n)*.*)$", PAGE, re.M)


def test_the_page_has_commands():
    assert len(COMMANDS) >= 3


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page(like_the_page, command):
    assert main(shlex.split(command.replace("\\\n", " "))) == 0
    assert list(Path("out").glob("*_overlay.*"))


def test_python_of_the_page(like_the_page):
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(block, {})
