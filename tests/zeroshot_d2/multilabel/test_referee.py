"""The referee of label rankings: the evaluator's numbers from every kind of file, and the bootstrap of AP."""

import csv
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from zeroshot_d2 import ClassSplit, register_multilabel
from zeroshot_d2.commands import score
from zeroshot_d2.multilabel.evaluation import MultiLabelEvaluator
from zeroshot_d2.multilabel.ranking import average_precision
from zeroshot_d2.multilabel.referee import MultiLabelReferee, weighted_average_precision

NAME = "test_tag_referee"
NAMES = ["cat", "dog", "cow", "pig", "sea, lake"]
SPLIT = ClassSplit(NAMES, unseen=["dog", "pig"])
IMAGES = [f"a b/{i}.jpg" for i in range(12)]


@pytest.fixture(params=[True, False], ids=["complete", "incomplete"])
def world(request):
    """A registered data set, with all labels or with some, and scores for it (N, K)."""
    random = np.random.default_rng(0)
    signs = random.choice([-1, 1] if request.param else [-1, 0, 1], size=(12, 5))
    labels = {
        image: {name: int(sign) for name, sign in zip(NAMES, row, strict=True) if sign}
        for image, row in zip(IMAGES, signs, strict=True)
    }
    for suffix, vocabulary in (("", "all"), ("_unseen", "unseen")):
        register_multilabel(f"{NAME}{suffix}", SPLIT, "", labels, vocabulary=vocabulary, complete=request.param)
    yield (signs + random.normal(0, 1.5, signs.shape)).astype(np.float32)
    for suffix in ("", "_unseen"):
        DatasetCatalog.remove(f"{NAME}{suffix}")
        MetadataCatalog.remove(f"{NAME}{suffix}")


def by_evaluator(scores, name=NAME, rows=range(12), **arguments):
    evaluator = MultiLabelEvaluator(name, top_k=(1, 2), distributed=False, **arguments)
    records = list(DatasetCatalog.get(name))
    for i in rows:
        evaluator.process([records[i]], [{"scores": torch.from_numpy(scores[i].copy())}])
    return evaluator.report()


def referee(tmp_path, *words, dataset=NAME, vocabulary="all"):
    words = ["--dataset", dataset, "--vocabulary", vocabulary, "--top-k", "1", "2", *map(str, words)]
    assert score.main([*words, "--output", str(tmp_path / "out")]) == 0
    return json.loads((tmp_path / "out" / "results.json").read_text())


def approx(results):
    if isinstance(results, dict):
        return {key: approx(value) for key, value in results.items()}
    return pytest.approx(results) if isinstance(results, float) else results


def write_csv(path, scores, names=NAMES):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([["image", *names], *([i, *row] for i, row in zip(IMAGES, scores, strict=True))])
    return path


# ------------------------------------------------------------------------------------------------------- equality
def test_what_evaluation_saves_is_scored_as_it_was(world, tmp_path):
    expected = by_evaluator(world, output_dir=str(tmp_path / "run"), save_predictions="scores")
    folder = tmp_path / "run" / "predictions" / NAME
    assert referee(tmp_path, "--predictions", folder)["results"] == {"GZSL": approx(expected)}
    assert {path.name for path in folder.iterdir()} == {"scores.npy", "images.txt", "classes.txt"}


def test_every_kind_of_file_gives_the_same(world, tmp_path, capsys):
    expected = {"GZSL": approx(by_evaluator(world))}
    order = np.random.default_rng(1).permutation(12)
    images = [IMAGES[i] for i in order]
    np.savez(tmp_path / "s.npz", scores=world[order].astype(np.float64), images=np.array(images))
    np.savez(tmp_path / "c.npz", scores=world[:, ::-1], images=np.array(IMAGES), classes=np.array(NAMES[::-1]))
    np.save(tmp_path / "s.npy", world[order])
    (tmp_path / "images.txt").write_text("\n".join(images))
    (tmp_path / "classes.txt").write_text("\n".join(NAMES[::-1]))
    np.save(tmp_path / "c.npy", world[order][:, ::-1])
    write_csv(tmp_path / "s.csv", world)
    names = ["--images", tmp_path / "images.txt"]
    assert referee(tmp_path, "--predictions", tmp_path / "s.npz")["results"] == expected
    assert referee(tmp_path, "--predictions", tmp_path / "c.npz")["results"] == expected
    assert referee(tmp_path, "--predictions", tmp_path / "s.npy", *names)["results"] == expected
    words = ["--predictions", tmp_path / "c.npy", *names, "--classes", tmp_path / "classes.txt"]
    assert referee(tmp_path, *words)["results"] == expected
    assert referee(tmp_path, "--predictions", tmp_path / "s.csv")["results"] == expected
    assert "pig *" in capsys.readouterr().out


@pytest.mark.parametrize("dataset", [NAME, f"{NAME}_unseen"])
def test_scores_of_the_unseen_classes_alone(world, tmp_path, dataset):
    unseen = world[:, SPLIT.unseen_indices]
    np.savez(tmp_path / "s.npz", scores=unseen, images=np.array(IMAGES))
    expected = {"ZSL": approx(by_evaluator(unseen, f"{NAME}_unseen"))}
    words = ["--predictions", tmp_path / "s.npz"]
    assert referee(tmp_path, *words, dataset=dataset, vocabulary="unseen")["results"] == expected


def test_labels_are_saved_in_two_forms(world, tmp_path):
    for kind in ("labels", "json"):
        by_evaluator(world, output_dir=str(tmp_path / kind), save_predictions=kind)
    with (tmp_path / "labels" / "predictions" / NAME / "labels.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    entries = json.loads((tmp_path / "json" / "predictions" / NAME / "predictions.json").read_text())
    assert len(rows) == 24 and [entry["image"] for entry in entries] == IMAGES
    for i, entry in enumerate(entries):
        best = np.argsort(-world[i])[:2]
        assert [label["name"] for label in entry["labels"]] == [NAMES[k] for k in best]
        assert [label["unseen"] for label in entry["labels"]] == [NAMES[k] in SPLIT.unseen for k in best]
        assert [row["name"] for row in rows[2 * i : 2 * i + 2]] == [NAMES[k] for k in best]
        assert float(rows[2 * i]["score"]) == pytest.approx(float(world[i, best[0]]), rel=1e-5)


# ------------------------------------------------------------------------------------------------- nothing is guessed
def test_bad_input_is_named(world, tmp_path):
    good = {"scores": world, "images": np.array(IMAGES)}
    cases = [
        ({**good, "images": np.array([*IMAGES[:-1], "x.jpg"])}, r"no prediction of 1 of 12 image.*11.jpg\).*x.jpg"),
        ({**good, "images": np.array([*IMAGES[:-1], IMAGES[0]])}, "predict more than once"),
        ({**good, "scores": world[:, :3]}, "scores 3 classes, the vocabulary has 5"),
        ({**good, "scores": world.astype(int)}, "floating-point numbers"),
        ({**good, "scores": np.where(world > 2, np.nan, world)}, "scores are NaN"),
        ({**good, "classes": np.array(["x", *NAMES[1:]])}, r"\['x'\] are not among the 5 classes"),
        ({**good, "classes": np.array([*NAMES[:4], "cat"])}, "each of the 5 classes must be named once"),
        ({"scores": world}, "needs 'scores' and 'images'"),
        ({**good, "images": np.array(IMAGES, dtype=object)}, "Python objects"),
        ({**good, "scores": world[:5]}, "5 x 5 scores for 12 images"),
    ]
    for arrays, message in cases:
        np.savez(tmp_path / "s.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            referee(tmp_path, "--predictions", tmp_path / "s.npz")
    np.save(tmp_path / "s.npy", world)
    with pytest.raises(ValueError, match="--images FILE names them"):
        referee(tmp_path, "--predictions", tmp_path / "s.npy")
    lines = write_csv(tmp_path / "s.csv", world).read_text().splitlines()
    for changed, message in (
        (["x,y"], "must be 'image' and the classes"),
        ([lines[0], *lines[1:-1], "a b/11.jpg,1"], "1 scores"),
    ):
        (tmp_path / "s.csv").write_text("\n".join(changed))
        with pytest.raises(ValueError, match=message):
            referee(tmp_path, "--predictions", tmp_path / "s.csv")
    with pytest.raises(ValueError, match="lacks scores.npy"):
        referee(tmp_path, "--predictions", tmp_path)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "s.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match="no score file or is cut off"):
        referee(tmp_path, "--predictions", tmp_path / "cut.npz")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------- comparison
def written_out(scores, positive, weights):
    """AP of the images written out as often as they occur."""
    rows = np.repeat(np.arange(len(scores)), weights)
    return average_precision(scores[rows], positive[rows])


def test_weighted_ap_is_that_of_the_images_written_out():
    random = np.random.default_rng(0)
    for _ in range(50):
        scores = random.choice(6, 15).astype(np.float32)  # with ties
        positive = random.random(15) < 0.4
        weights = random.multinomial(15, np.full(15, 1 / 15), size=4)
        # Copies of one image have one score: those of a positive one follow each other, whatever else has that score.
        found = weighted_average_precision(scores, positive, weights.astype(np.float32))
        expected = [written_out(scores, positive, row) for row in weights]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_resampled_numbers_are_those_of_the_images_written_out(world, tmp_path):
    np.savez(tmp_path / "s.npz", scores=world[::-1], images=np.array(IMAGES[::-1]))
    args = Namespace(images=None, top_k=[1, 2], vocabulary="all", classes=None)
    scored = MultiLabelReferee(NAME, args).score(Path(tmp_path / "s.npz"), keep_images=True)
    weights = np.ones((2, 12), dtype=np.float32)
    weights[1] = [3, 0, 0, 2, 1, 1, 1, 1, 1, 0, 1, 1]
    found = scored.resampled("GZSL", weights)
    drawn = by_evaluator(world, rows=np.repeat(np.arange(12), weights[1].astype(int)))
    for key in ("ZSL_mAP", "GZSL_mAP", "ZSL_F1@1", "GZSL_F1@2"):
        assert found[key][0] == pytest.approx(scored.results["GZSL"][key])
        assert found[key][1] == pytest.approx(drawn[key])


def test_two_methods_side_by_side(world, tmp_path, capsys):
    worse = world + np.random.default_rng(1).normal(0, 3, world.shape).astype(np.float32)
    write_csv(tmp_path / "a.csv", worse)
    write_csv(tmp_path / "b.csv", world)
    content = referee(tmp_path, "--compare", tmp_path / "a.csv", tmp_path / "b.csv", "--resamples", 100)
    a, b = by_evaluator(worse), by_evaluator(world)
    for key in ("ZSL_mAP", "GZSL_mAP", "GZSL_F1@1"):
        row = content["GZSL"]["numbers"][key]
        assert (row["A"], row["B"]) == (pytest.approx(a[key]), pytest.approx(b[key]))
        assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    assert "B - A" in capsys.readouterr().out
