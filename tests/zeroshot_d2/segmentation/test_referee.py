"""The referee of segmentation: the evaluator's numbers from every kind of file, and nothing scored where one is wrong."""

import json
import tracemalloc
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as coco_mask

from zeroshot_d2 import ClassSplit, register_sem_seg
from zeroshot_d2.commands import score
from zeroshot_d2.metrics import harmonic_mean
from zeroshot_d2.segmentation.evaluation import ZeroShotSemSegEvaluator
from zeroshot_d2.segmentation.referee import SegmentationReferee

NAME = "test_referee"
SPLIT = ClassSplit(["cat", "dog", "cow", "pig"], unseen=["dog", "pig"])
VALUES = [7, 3, 5, 9]  # the release's, for the classes in their order; 255 is ignored
SIZES = [(6, 9), (11, 4), (5, 5), (8, 3)]


@pytest.fixture
def world(tmp_path):
    """A registered data set of four images, and scores for them: {image id: (K, H, W)}."""
    random = np.random.default_rng(0)
    records, scores = [], {}
    for i, size in enumerate(SIZES):
        label = random.choice([*VALUES, 255], size=size).astype(np.uint8)
        folder = tmp_path / "world" / f"scene{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label).save(folder / f"{i}.png")
        Image.new("RGB", size[::-1]).save(folder / f"{i}.jpg")
        image_id = f"scene{i % 2}/{i}"
        records.append(
            {"file_name": str(folder / f"{i}.jpg"), "sem_seg_file_name": str(folder / f"{i}.png"), "image_id": image_id}
        )
        truth = np.array([[VALUES.index(v) if v in VALUES else 0 for v in row] for row in label])
        one_hot = np.moveaxis(np.eye(4)[truth], -1, 0)
        scores[image_id] = (one_hot + random.normal(0, 0.7, (4, *size))).astype(np.float32)
    register_sem_seg(NAME, SPLIT, load=lambda: records, label_values=VALUES)
    register_sem_seg(f"{NAME}_unseen", SPLIT, load=lambda: records, label_values=VALUES, vocabulary="unseen")
    yield records, scores
    for name in (NAME, f"{NAME}_unseen"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def evaluated(records, outputs, name=NAME, **arguments):
    evaluator = ZeroShotSemSegEvaluator(name, distributed=False, **arguments)
    for record in records:
        evaluator.process([record], [outputs[record["image_id"]]])
    return evaluator.report()


def by_evaluator(records, scores, name=NAME, rows=slice(None), **arguments):
    return evaluated(records, {k: {"sem_seg": torch.from_numpy(v[rows])} for k, v in scores.items()}, name, **arguments)


def referee(tmp_path, *words, dataset=NAME):
    """results.json of the command."""
    assert score.main(["--dataset", dataset, *map(str, words), "--output", str(tmp_path / "out")]) == 0
    return json.loads((tmp_path / "out" / "results.json").read_text())


def save_labels(folder, scores, meaning=range(4), dtype=np.uint8):
    for image_id, array in scores.items():
        path = folder / f"{image_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(list(meaning))[array.argmax(0)].astype(dtype)).save(path)
    return folder


def approx(results):
    """``results`` with numbers that may differ by rounding."""
    if isinstance(results, dict):
        return {key: approx(value) for key, value in results.items()}
    return pytest.approx(results) if isinstance(results, float) else results


# ------------------------------------------------------------------------------------------------------- equality
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("values", "meaning"), [("index", range(4)), ("release", VALUES)])
def test_label_images_give_the_evaluators_numbers(world, tmp_path, values, meaning, dtype, capsys):
    records, scores = world
    folder = save_labels(tmp_path / "labels", scores, meaning, dtype)
    content = referee(tmp_path, "--predictions", folder, "--values", values, "--vocabulary", "all")
    assert content["results"] == {"GZS3": approx(by_evaluator(records, scores))}
    assert "dog *" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["labels", "scores", "json"])
def test_what_evaluation_saves_is_scored_as_it_was(world, tmp_path, kind):
    records, scores = world
    expected = by_evaluator(records, scores, output_dir=str(tmp_path / "run"), save_predictions=kind)
    folder = tmp_path / "run" / "predictions" / NAME
    assert (folder / "classes.txt").read_text().split() == list(SPLIT.names)
    path = folder / "sem_seg_predictions.json" if kind == "json" else folder
    suffix = ["--suffix", ".npy"] if kind == "scores" else []
    values = [] if kind == "scores" else ["--values", "index"]
    results = referee(tmp_path, "--predictions", path, *suffix, *values, "--vocabulary", "all")["results"]
    assert results["GZS3"] == approx(expected)
    assert set(results) == ({"GZS3", "ZS3"} if kind == "scores" else {"GZS3"})
    if kind == "scores":
        assert results["ZS3"] == approx(by_evaluator(records, scores, f"{NAME}_unseen", SPLIT.unseen_indices))
    with np.load(tmp_path / "run" / "confusion" / f"{NAME}.npz") as saved:
        assert list(saved["classes"]) == list(SPLIT.names) and saved["confusion"].shape == (5, 5)


def test_an_archive_of_arrays(world, tmp_path):
    records, scores = world
    expected = {"GZS3": approx(by_evaluator(records, scores))}
    np.savez(tmp_path / "labels.npz", **{key: value.argmax(0) for key, value in scores.items()})
    words = ["--predictions", tmp_path / "labels.npz", "--values", "index", "--vocabulary", "all"]
    assert referee(tmp_path, *words)["results"] == expected
    np.savez_compressed(tmp_path / "scores.npz", **scores)
    results = referee(tmp_path, "--predictions", tmp_path / "scores.npz", "--vocabulary", "all")["results"]
    assert results["GZS3"] == expected["GZS3"] and set(results) == {"GZS3", "ZS3"}


@pytest.mark.parametrize("dataset", [NAME, f"{NAME}_unseen"])
def test_predictions_among_the_unseen_classes(world, tmp_path, dataset):
    records, scores = world
    unseen = {key: value[SPLIT.unseen_indices] for key, value in scores.items()}
    expected = {"ZS3": approx(by_evaluator(records, unseen, f"{NAME}_unseen"))}
    for values, meaning in (("index", (0, 1)), ("release", (3, 9))):
        folder = save_labels(tmp_path / values, unseen, meaning)
        words = ["--predictions", folder, "--values", values, "--vocabulary", "unseen"]
        assert referee(tmp_path, *words, dataset=dataset)["results"] == expected


def test_classes_in_another_order_and_spelling(world, tmp_path):
    records, scores = world
    (tmp_path / "order.txt").write_text("Pig\ncow\ncat\nDOG\n")
    order = [3, 2, 0, 1]
    expected = approx(by_evaluator(records, scores))
    shuffled = {key: value[order] for key, value in scores.items()}
    words = ["--classes", tmp_path / "order.txt", "--vocabulary", "all"]
    folder = save_labels(tmp_path / "labels", shuffled)
    assert referee(tmp_path, "--predictions", folder, "--values", "index", *words)["results"]["GZS3"] == expected
    np.savez(tmp_path / "scores.npz", **shuffled)
    assert referee(tmp_path, "--predictions", tmp_path / "scores.npz", *words)["results"]["GZS3"] == expected


def test_pixels_without_a_class_are_wrong(world, tmp_path):
    records, scores = world
    labels = {key: value.argmax(0) for key, value in scores.items()}
    for value in labels.values():
        value[0] = 200
    np.savez(tmp_path / "labels.npz", **labels)
    outputs = {k: {"sem_seg_labels": torch.from_numpy(np.where(v == 200, 4, v))} for k, v in labels.items()}
    words = ["--predictions", tmp_path / "labels.npz", "--values", "index", "--vocabulary", "all"]
    results = referee(tmp_path, *words, "--no-prediction", 200)["results"]
    assert results["GZS3"] == approx(evaluated(records, outputs))
    with pytest.raises(ValueError, match="it holds 200, which is not an index of one of the 4 classes.*--no-prediction"):
        referee(tmp_path, *words)
    with pytest.raises(ValueError, match="--no-prediction 2 is the value of class 'cow'"):
        referee(tmp_path, *words, "--no-prediction", 2)


def test_the_json_of_another_machine(world, tmp_path):
    records, scores = world
    evaluated_here = by_evaluator(records, scores, output_dir=str(tmp_path / "run"), save_predictions="json")
    file = tmp_path / "run" / "predictions" / NAME / "sem_seg_predictions.json"
    entries = json.loads(file.read_text())
    for entry in entries:
        entry["file_name"] = "D:\\data\\" + entry["file_name"].split("world/")[1].replace("/", "\\")
    (tmp_path / "theirs.json").write_text(json.dumps(entries))
    words = ["--values", "index", "--vocabulary", "all"]
    content = referee(tmp_path, "--predictions", tmp_path / "theirs.json", *words)
    assert content["results"]["GZS3"] == approx(evaluated_here)
    (tmp_path / "mixed.json").write_text(json.dumps([*entries[1:], entries[0]]))
    with pytest.raises(ValueError, match="in two places"):
        referee(tmp_path, "--predictions", tmp_path / "mixed.json", *words)


# ------------------------------------------------------------------------------------------------- nothing is guessed
def test_meanings_must_be_given(world, tmp_path):
    _, scores = world
    folder = save_labels(tmp_path / "labels", scores)
    with pytest.raises(ValueError, match="has unseen classes: say among which"):
        referee(tmp_path, "--predictions", folder, "--values", "index")
    with pytest.raises(ValueError, match="say what the values mean"):
        referee(tmp_path, "--predictions", folder, "--vocabulary", "all")
    with pytest.raises(ValueError, match="has unseen classes alone"):
        referee(tmp_path, "--predictions", folder, "--values", "index", "--vocabulary", "all", dataset=f"{NAME}_unseen")
    with pytest.raises(ValueError, match=r"no data set 'test_referees' can be scored.*test_referee"):
        referee(tmp_path, "--predictions", folder, "--vocabulary", "all", dataset="test_referees")


def test_missing_and_additional_images_are_named(world, tmp_path):
    _, scores = world
    folder = save_labels(tmp_path / "labels", scores)
    words = ["--predictions", folder, "--values", "index", "--vocabulary", "all"]
    (folder / "scene0" / "2.png").rename(folder / "scene0" / "twelve.png")
    with pytest.raises(ValueError, match=r"no prediction of 1 of 4.*scene0/2\).*1 of 4 image.*scene0/twelve"):
        referee(tmp_path, *words)
    with pytest.raises(ValueError, match=r"has no file \*.tif"):
        referee(tmp_path, *words, "--suffix", ".tif")
    with pytest.raises(FileNotFoundError, match="do not exist"):
        referee(tmp_path, "--predictions", tmp_path / "nothing", "--vocabulary", "all")
    assert not (tmp_path / "out").exists()


def broken(kind, array):
    if kind == "size":
        return array[:, :-1]
    if kind == "seen class":
        return np.full(array.shape[1:], 7)
    if kind == "float labels":
        return array[0]
    if kind == "object":
        return np.array([[{}]])
    if kind == "classes":
        return array[:3]
    assert kind == "nan"
    return np.where(array > 1, np.nan, array)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("size", r"the prediction is 4 x 5, the label image 5 x 5 \(height x width\)"),
        ("float labels", "must be integers of"),
        ("object", "must be integers of"),
        ("classes", "it scores 3 classes, the vocabulary has 4"),
        ("nan", "scores are NaN"),
        ("seen class", "of another kind than those before"),
    ],
)
def test_one_wrong_prediction_and_nothing_is_scored(world, tmp_path, kind, message):
    _, scores = world
    scores["scene0/2"] = broken(kind, scores["scene0/2"])
    np.savez(tmp_path / "scores.npz", **scores)
    with pytest.raises(ValueError, match=rf"(?s)1 of the 4 predictions.*none is.*scene0/2: .*{message}"):
        referee(tmp_path, "--predictions", tmp_path / "scores.npz", "--values", "index", "--vocabulary", "all")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry["segmentation"].update(size=[10**6, 10**6]), "a mask of"),
        (lambda entry: entry["segmentation"].update(counts="n0n0n0"), "run lengths"),
        (lambda entry: entry.update(category_id=99), "it holds 99, which is not an index"),
    ],
)
def test_a_hostile_json_entry_is_named(world, tmp_path, change, message):
    records, scores = world
    by_evaluator(records, scores, output_dir=str(tmp_path / "run"), save_predictions="json")
    file = tmp_path / "run" / "predictions" / NAME / "sem_seg_predictions.json"
    entries = json.loads(file.read_text())
    change(entries[0])
    (tmp_path / "theirs.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=rf"(?s)scene0/0: .*{message}"):
        referee(tmp_path, "--predictions", tmp_path / "theirs.json", "--values", "index", "--vocabulary", "all")


def test_overlapping_masks_are_refused(world, tmp_path):
    entries = []
    for record, size in zip(world[0], SIZES, strict=True):
        mask = coco_mask.encode(np.asfortranarray(np.ones(size, dtype=np.uint8)))
        mask["counts"] = mask["counts"].decode()
        entries += [{"file_name": record["file_name"], "category_id": k, "segmentation": mask} for k in (0, 1)]
    (tmp_path / "theirs.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match="categories 1 and 0 overlap"):
        referee(tmp_path, "--predictions", tmp_path / "theirs.json", "--values", "index", "--vocabulary", "all")


# ------------------------------------------------------------------------------------------------------- comparison
def test_two_methods_side_by_side(world, tmp_path, capsys):
    records, scores = world
    random = np.random.default_rng(1)
    worse = {key: value + random.normal(0, 1, value.shape).astype(np.float32) for key, value in scores.items()}
    for name, given in (("a", worse), ("b", scores)):
        np.savez(tmp_path / f"{name}.npz", **given)
    words = ["--compare", tmp_path / "a.npz", tmp_path / "b.npz", "--vocabulary", "all", "--resamples", 200]
    content = referee(tmp_path, *words)
    assert set(content) >= {"GZS3", "ZS3"}
    a, b = by_evaluator(records, worse), by_evaluator(records, scores)
    for key in ("pAcc", "mIoU_seen", "mIoU_unseen", "hIoU", "mIoU"):
        row = content["GZS3"]["numbers"][key]
        assert (row["A"], row["B"]) == (pytest.approx(a[key]), pytest.approx(b[key]))
        assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    differences = [abs(y - x) for x, y in content["GZS3"]["IoU"].values()]
    assert differences == sorted(differences, reverse=True)
    assert "B - A" in capsys.readouterr().out


def test_a_method_against_itself_differs_by_nothing(world, tmp_path):
    _, scores = world
    folder = save_labels(tmp_path / "labels", scores)
    words = ["--compare", folder, folder, "--values", "index", "--vocabulary", "all", "--resamples", 50]
    numbers = referee(tmp_path, *words)["GZS3"]["numbers"]
    assert all(row["difference"] == 0 and row["interval"] == [0, 0] for row in numbers.values())


def test_resampled_numbers_are_those_of_the_images_written_out(world, tmp_path):
    records, scores = world
    np.savez(tmp_path / "scores.npz", **scores)
    args = Namespace(values=None, no_prediction=None, suffix=".png", vocabulary="all", classes=None)
    scored = SegmentationReferee(NAME, args).score(Path(tmp_path / "scores.npz"), keep_images=True)
    weights = np.array([[1, 1, 1, 1], [0, 3, 1, 0]], dtype=np.float32)
    found = scored.resampled("GZS3", weights)
    drawn = by_evaluator([records[1]] * 3 + [records[2]], scores)
    for key in ("pAcc", "mIoU", "mIoU_seen", "mIoU_unseen", "hIoU"):
        assert found[key][0] == pytest.approx(scored.results["GZS3"][key])
        assert found[key][1] == pytest.approx(drawn[key])
    assert found["hIoU"][1] == pytest.approx(harmonic_mean(found["mIoU_seen"][1], found["mIoU_unseen"][1]))


@pytest.mark.parametrize("kind", ["labels", "json"])
def test_many_images_need_no_more_memory_than_few(tmp_path, kind):
    label = np.random.default_rng(0).integers(0, 4, (400, 500)).astype(np.uint8)
    label = np.kron(label[:20, :25], np.ones((20, 20), dtype=np.uint8))
    Image.fromarray(label).save(tmp_path / "label.png")
    Image.new("RGB", (500, 400)).save(tmp_path / "photo.jpg")
    peaks = []
    for number in (3, 30):
        records = [
            {"file_name": f"{tmp_path}/{i}.jpg", "sem_seg_file_name": str(tmp_path / "label.png"), "image_id": i}
            for i in range(number)
        ]
        for i in range(number):
            (tmp_path / f"{i}.jpg").unlink(missing_ok=True)
            (tmp_path / f"{i}.jpg").symlink_to(tmp_path / "photo.jpg")
        register_sem_seg("test_memory", SPLIT, load=lambda records=records: records, replace=True)
        evaluator = ZeroShotSemSegEvaluator("test_memory", False, str(tmp_path / str(number)), save_predictions=kind)
        for record in records:
            evaluator.process([record], [{"sem_seg_labels": torch.from_numpy(label.astype(np.int64))}])
        evaluator.report()
        folder = tmp_path / str(number) / "predictions" / "test_memory"
        path = folder / "sem_seg_predictions.json" if kind == "json" else folder
        args = Namespace(values="index", no_prediction=None, suffix=".png", vocabulary="all", classes=None)
        referee = SegmentationReferee("test_memory", args)
        tracemalloc.start()
        referee.score(path, keep_images=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    DatasetCatalog.remove("test_memory")
    MetadataCatalog.remove("test_memory")
    assert peaks[1] < 1.2 * peaks[0]
