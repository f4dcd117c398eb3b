"""The evaluator by hand and against loops over images, in both forms of labels; ties, order, batches, processes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import print_csv_format

from zeroshot_d2 import ClassSplit
from zeroshot_d2.multilabel.evaluation import MultiLabelEvaluator, format_multilabel_table
from zeroshot_d2.multilabel.registration import register_multilabel

NAMES = ["cat", "dog", "cow", "pig"]
SPLIT = ClassSplit(NAMES, unseen=["dog", "pig"])


@pytest.fixture
def register():
    """Register labels {image: {class: sign}}; gives the dataset dicts."""
    registered = []

    def do(labels, split=SPLIT, name="test_multilabel", **arguments):
        register_multilabel(name, split, "", labels, **arguments)
        registered.append(name)
        return list(DatasetCatalog.get(name))

    yield do
    for name in registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def run(inputs, scores, name="test_multilabel", batch_size=2, top_k=(1, 2)):
    evaluator = MultiLabelEvaluator(name, top_k=top_k, distributed=False)
    for start in range(0, len(inputs), batch_size):
        batch = slice(start, start + batch_size)
        evaluator.process(inputs[batch], [{"scores": torch.as_tensor(row)} for row in scores[batch]])
    return evaluator.report()


def reference(scores, positive, ranked_images, k):
    """AP per class and micro P, R at K, an image at a time; scores must differ."""
    aps = []
    for c in range(scores.shape[1]):
        images = np.flatnonzero(ranked_images[:, c])
        order = images[np.argsort(-scores[images, c])]
        hits, precisions = 0, []
        for rank, image in enumerate(order, start=1):
            if positive[image, c]:
                hits += 1
                precisions.append(hits / rank)
        aps.append(100 * sum(precisions) / len(precisions) if precisions else math.nan)
    tp = sum(len(set(np.argsort(-s)[:k]) & set(np.flatnonzero(y))) for s, y in zip(scores, positive, strict=True))
    return np.array(aps), 100 * tp / (len(scores) * k), 100 * tp / positive.sum()


def labels_from(signs, names=NAMES):
    return {f"{i}.jpg": {names[c]: int(s) for c, s in enumerate(row) if s} for i, row in enumerate(signs)}


def test_gzsl_by_hand(register):
    #            cat dog cow pig
    scores = [[0.9, 0.2, 0.8, 0.1], [0.1, 0.9, 0.2, 0.3], [0.5, 0.6, 0.1, 0.7]]
    inputs = register({"a.jpg": ["cat"], "b.jpg": ["dog", "pig"], "c.jpg": ["cow", "dog"]})
    results = run(inputs, scores)
    assert results["protocol"] == "GZSL" and results["num_images"] == 3
    # ranks of the positives: cat 1; dog 1 and 2; cow 3 of 3; pig 2 of 3
    assert results["AP"] == pytest.approx({"cat": 100, "dog": 100, "cow": 100 / 3, "pig": 50})
    assert results["ZSL_mAP"] == pytest.approx(75) and results["GZSL_mAP"] == pytest.approx(850 / 12)
    # among dog and pig: first places dog, dog, pig, of which image b's is right; 3 positives
    assert results["ZSL_P@1"] == pytest.approx(100 / 3) and results["ZSL_R@1"] == pytest.approx(100 / 3)
    # among all: cat right, dog right, pig wrong; 5 positives
    assert results["GZSL_P@1"] == pytest.approx(200 / 3) and results["GZSL_R@1"] == pytest.approx(40)
    assert results["GZSL_P@2"] == pytest.approx(400 / 6) and results["GZSL_R@2"] == pytest.approx(80)
    # image a has no unseen class: two labelled images
    labelled = results["labelled_images"]
    assert labelled["num_images"] == 2 and labelled["ZSL_P@1"] == pytest.approx(50)
    assert labelled["ZSL_P@1"] / results["ZSL_P@1"] == pytest.approx(3 / 2)
    assert labelled["ZSL_R@1"] == results["ZSL_R@1"]
    assert labelled["GZSL_P@1"] == pytest.approx(50) and labelled["GZSL_R@1"] == pytest.approx(25)
    # without image a cat has no positive, cow stands second of two
    assert labelled["GZSL_mAP"] == pytest.approx((100 + 50 + 50) / 3)
    assert labelled["GZSL_mAP_all_classes"] == pytest.approx(200 / 4)


@pytest.mark.parametrize("complete", [True, False])
def test_against_loops_with_ternary_labels(register, complete):
    rng = np.random.default_rng(3)
    signs = rng.choice([-1, 0, 1], size=(60, 4), p=[0.3, 0.4, 0.3])
    scores = rng.permutation(240).reshape(60, 4).astype(np.float32)
    inputs = register(labels_from(signs), complete=complete)
    results = run(inputs, scores, batch_size=7)
    everything = np.ones_like(signs, dtype=bool)
    aps, precision, recall = reference(scores, signs > 0, everything if complete else signs != 0, 2)
    assert list(results["AP"].values()) == pytest.approx(aps)
    assert results["GZSL_mAP"] == pytest.approx(aps.mean()) and results["ZSL_mAP"] == pytest.approx(aps[[1, 3]].mean())
    assert results["GZSL_P@2"] == pytest.approx(precision) and results["GZSL_R@2"] == pytest.approx(recall)
    keep = (signs[:, [1, 3]] > 0).any(1)
    rankable = (everything if complete else signs != 0)[keep]
    aps, precision, recall = reference(scores[keep], signs[keep] > 0, rankable, 2)
    labelled = results["labelled_images"]
    assert labelled["GZSL_mAP"] == pytest.approx(aps.mean()) and labelled["num_images"] == keep.sum()
    assert labelled["GZSL_P@2"] == pytest.approx(precision) and labelled["GZSL_R@2"] == pytest.approx(recall)


def test_zsl_vocabulary_and_supervised(register):
    labels = {"a.jpg": ["cat"], "b.jpg": ["dog", "pig"]}
    zsl = run(register(labels, name="test_zsl", vocabulary="unseen"), [[0.1, 0.2], [0.9, 0.8]], "test_zsl")
    assert zsl["protocol"] == "ZSL" and zsl["ZSL_mAP"] == 100 and "GZSL_mAP" not in zsl
    plain = run(register(labels, name="test_plain", split=ClassSplit(NAMES)), [[1, 0, 0, 0], [0, 1, 0, 0.5]], "test_plain")
    assert plain["protocol"] == "supervised" and plain["P@1"] == 100 and plain["mAP"] == 100
    assert plain["labelled_images"]["num_images"] == 2 and plain["num_classes"] == {"all": [3, 4]}
    assert plain["mAP_all_classes"] == 75 and plain["AP"]["cow"] is None


def test_a_constant_scorer_gets_the_worst_of_its_orders(register):
    inputs = register({f"{i}.jpg": [NAMES[i % 4]] for i in range(8)})
    results = run(inputs, np.zeros((8, 4)))
    assert list(results["AP"].values()) == pytest.approx([100 * (1 / 7 + 2 / 8) / 2] * 4)
    assert results["GZSL_P@1"] == 0 and results["GZSL_R@2"] == 0


def test_order_of_images_and_classes_and_batches_do_not_matter(register):
    rng = np.random.default_rng(1)
    signs = rng.choice([0, 1], size=(20, 4))
    scores = rng.integers(0, 5, size=(20, 4)).astype(np.float32)  # with ties
    expected = run(register(labels_from(signs)), scores, batch_size=20)
    images, classes = rng.permutation(20), rng.permutation(4)
    names = [NAMES[c] for c in classes]
    split = ClassSplit(names, unseen=["dog", "pig"])
    inputs = register(labels_from(signs[images][:, classes], names), split, "test_moved")
    moved = run(inputs, scores[images][:, classes], "test_moved", batch_size=1)
    assert moved.pop("AP") == pytest.approx(expected.pop("AP"))
    labelled, expected_labelled = moved.pop("labelled_images"), expected.pop("labelled_images")
    assert labelled == pytest.approx(expected_labelled)
    assert {k: v for k, v in moved.items() if "@" in k or "AP" in k} == pytest.approx(
        {k: v for k, v in expected.items() if "@" in k or "AP" in k}
    )


def _evaluate_half(rank: int, world: int, folder: str) -> None:
    """One of two processes: takes every second image, then evaluates together with the other."""
    import torch.distributed as dist
    from detectron2.utils import comm

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    comm.create_local_process_group(world)
    signs, scores = np.load(Path(folder) / "signs.npy"), np.load(Path(folder) / "scores.npy")
    found = {}
    for complete in (True, False):
        name = f"test_two_processes_{complete}"
        register_multilabel(name, SPLIT, "", labels_from(signs), complete=complete)
        evaluator = MultiLabelEvaluator(name, top_k=(1, 2), output_dir=f"{folder}/out", save_predictions="scores")
        records = list(DatasetCatalog.get(name))
        for index in range(rank, len(records), world):
            evaluator.process([records[index]], [{"scores": torch.from_numpy(scores[index])}])
        found[str(complete)] = evaluator.report()
    if rank == 0:
        (Path(folder) / "results.json").write_text(json.dumps(found))
    else:
        assert found == {"True": None, "False": None}
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("num_images", [9, 1])  # of one image, the second process has none
def test_two_processes_add_up(tmp_path, register, num_images):
    rng = np.random.default_rng(5)
    signs, scores = rng.choice([-1, 1], size=(num_images, 4)), rng.random((num_images, 4), dtype=np.float32)
    signs[:, 1] *= np.arange(num_images) % 2  # of some classes, some images are not annotated
    np.save(tmp_path / "signs.npy", signs)
    np.save(tmp_path / "scores.npy", scores)
    torch.multiprocessing.spawn(_evaluate_half, args=(2, str(tmp_path)), nprocs=2)
    together = json.loads((tmp_path / "results.json").read_text())
    for complete in (True, False):
        saved = tmp_path / "out" / "predictions" / f"test_two_processes_{complete}"
        rows = [int(line.removesuffix(".jpg")) for line in (saved / "images.txt").read_text().split()]
        assert sorted(rows) == list(range(num_images))
        np.testing.assert_array_equal(np.load(saved / "scores.npy"), scores[rows])
        name = f"test_alone_{complete}"
        inputs = register(labels_from(signs), name=name, complete=complete)
        assert together[str(complete)] == json.loads(json.dumps(run(inputs, scores, name)))


def test_reset_and_an_empty_data_set(register):
    inputs = register({"a.jpg": ["cat"], "b.jpg": ["dog"]})
    evaluator = MultiLabelEvaluator("test_multilabel", top_k=(1,), distributed=False)
    evaluator.process(inputs, [{"scores": torch.rand(4)}] * 2)
    evaluator.reset()
    results = evaluator.report()
    assert results["num_images"] == 0 and results["GZSL_mAP"] is None
    evaluator.process(inputs[:1], [{"scores": torch.tensor([1.0, 0, 0, 0])}])
    results = evaluator.report()
    assert results["GZSL_P@1"] == 100 and results["ZSL_R@1"] is None and results["ZSL_mAP"] is None
    assert results["labelled_images"]["num_images"] == 0 and results["labelled_images"]["GZSL_mAP"] is None


def test_the_table_names_task_image_set_and_counts(register):
    inputs = register({"a.jpg": ["cat"], "b.jpg": ["dog"]})
    table = format_multilabel_table({"test_multilabel": run(inputs, np.eye(4)[:2])})
    assert [line.split("|")[2:5] for line in table.splitlines()[2:]] == [
        [f" {task.ljust(6)} ", f" {images.ljust(13)} ", f" {count.ljust(8)} "]
        for task in ("ZSL", "GZSL")
        for images, count in (("all", "2"), ("labelled", "1"), ("labelled, any", "2"))
    ]
    assert "mAP, none = 0" in table and "F1@2" in table and "1 of 2" in table


# ---- errors ----


def test_k_beyond_the_classes(register):
    register({"a.jpg": ["cat"]})
    with pytest.raises(ValueError, match=r"TOP_K \[3\] is not within the 2 classes that are ranked for ZSL"):
        MultiLabelEvaluator("test_multilabel", top_k=(1, 3))


def test_wrong_input(register):
    (record,) = register({"a.jpg": ["cat"]})
    evaluator = MultiLabelEvaluator("test_multilabel", top_k=(1,), distributed=False)
    with pytest.raises(ValueError, match="1 inputs but 0 outputs"):
        evaluator.process([record], [])
    with pytest.raises(ValueError, match=r"scores \(3,\) classes, data set 'test_multilabel' has 4"):
        evaluator.process([record], [{"scores": torch.zeros(3)}])
    with pytest.raises(ValueError, match="a.jpg: 1 scores are NaN"):
        evaluator.process([record], [{"scores": torch.tensor([0, 0, 0, math.nan])}])
    good = {**record, "file_name": "good.jpg"}
    with pytest.raises(ValueError, match="a.jpg: 2 scores are NaN"):
        evaluator.process([good, record], [{"scores": torch.zeros(4)}, {"scores": torch.tensor([0, math.nan, 0, math.nan])}])
    bad = {**record, "positive_labels": [1, -1]}
    with pytest.raises(ValueError, match=r"a.jpg: positive_labels \[1, -1\] are not all among the 4 classes"):
        evaluator.process([good, bad, good], [{"scores": torch.zeros(4)}] * 3)
    with pytest.raises(ValueError, match=r"a.jpg: positive_labels \[4\] are not all among the 4 classes"):
        evaluator.process([{**record, "positive_labels": [4]}], [{"scores": torch.zeros(4)}])


def test_a_data_set_without_metadata():
    with pytest.raises(ValueError, match="'test_nothing' has no class_split, labels_complete, protocol"):
        MultiLabelEvaluator("test_nothing")


def test_detectron2_gets_numbers_and_the_file_everything(register, caplog):
    inputs = register({"a.jpg": ["cat"], "b.jpg": ["dog"]})
    evaluator = MultiLabelEvaluator("test_multilabel", top_k=(1,), distributed=False)
    evaluator.process(inputs, [{"scores": torch.rand(4)}] * 2)
    results = evaluator.evaluate()
    assert all(isinstance(value, float) for value in results["multilabel"].values())
    assert results["multilabel"]["GZSL_mAP"] == evaluator.details["GZSL_mAP"]
    assert evaluator.details == evaluator.report() and evaluator.details["protocol"] == "GZSL"
    print_csv_format(results)  # fails on anything but numbers
