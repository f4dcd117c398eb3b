"""Our multi-label numbers beside scikit-learn's and torchmetrics' on random scores and labels.

Where the definitions are the same, the numbers are:

* AP of a class: scikit-learn's ``average_precision_score`` over the images annotated for it, torchmetrics'
  ``MultilabelAveragePrecision`` with the others as ``ignore_index``.
* mAP is torchmetrics' macro mean over the classes with a positive; mAP_all_classes is the mean with scikit-learn's AP of 0
  for the others.
* P, R and F1 at K: scikit-learn's micro averages, with the K highest scores of an image as what was predicted for it. Labels
  0 and -1 both count as not present.

Where they differ: of equal scores ours ranks the wrong ones first, while the libraries treat equal scores as one threshold
and give all its positives the precision at its end. So ours is never above theirs, and only scores without ties are compared
for equality.

Shapes: N images, K classes.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from sklearn.metrics import average_precision_score, precision_recall_fscore_support
from torchmetrics.functional.classification import multilabel_average_precision

from zeroshot_d2 import ClassSplit
from zeroshot_d2.multilabel.evaluation import MultiLabelEvaluator, format_multilabel_table
from zeroshot_d2.multilabel.registration import register_multilabel

NAME = "test_evaluation_references"
CLASSES, UNSEEN = 12, np.array([1, 4, 7, 8, 11])
WITHOUT_POSITIVE = [4, 9]  # one unseen, one seen
NOT_RANKED = 255  # in torchmetrics' target
TOP_K = (1, 3, 5)  # 5: all of the unseen ones
SPLIT = ClassSplit([f"class {k}" for k in range(CLASSES)], unseen=[f"class {k}" for k in UNSEEN])
TASKS = {"ZSL": UNSEEN, "GZSL": np.arange(CLASSES)}

Signs = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def random_case(seed: int, images: int = 150) -> tuple[Scores, Signs]:
    """Scores (N, K) in (0, 1) without ties, higher for what is present, and labels -1, 0, 1; some images have none."""
    rng = np.random.default_rng(seed)
    present, absent = rng.uniform(0.02, 0.3, CLASSES), rng.uniform(0.1, 0.6, CLASSES)
    draw = rng.random((images, CLASSES))
    signs = np.where(draw < present, 1, np.where(draw < present + absent, -1, 0))
    signs[:, WITHOUT_POSITIVE] = np.minimum(signs[:, WITHOUT_POSITIVE], 0)
    signs[:5] = 0
    order = (rng.standard_normal(signs.shape) + signs).ravel().argsort().argsort()
    return ((order + 0.5) / signs.size).reshape(signs.shape).astype(np.float32), signs


def ours(scores: Scores, signs: Signs, complete: bool) -> dict[str, Any]:
    labels = {f"{i}.jpg": {SPLIT.names[k]: int(row[k]) for k in row.nonzero()[0]} for i, row in enumerate(signs)}
    register_multilabel(NAME, SPLIT, "", labels, complete=complete)
    evaluator = MultiLabelEvaluator(NAME, top_k=TOP_K, distributed=False)
    records = list(DatasetCatalog.get(NAME))
    for start in range(0, len(records), 32):
        batch = slice(start, start + 32)
        evaluator.process(records[batch], [{"scores": row} for row in torch.from_numpy(scores[batch])])
    results = evaluator.report()
    assert results is not None
    return results


def sklearn_ap(scores: Scores, signs: Signs, complete: bool) -> npt.NDArray[np.float64]:
    """(K,) in percent; NaN without a positive."""
    ap = np.full(CLASSES, np.nan)
    for k in range(CLASSES):
        ranked = np.ones(len(signs), dtype=bool) if complete else signs[:, k] != 0
        if (signs[ranked, k] == 1).any():
            ap[k] = 100 * average_precision_score(signs[ranked, k] == 1, scores[ranked, k])
    return ap


def image_sets(results: dict[str, Any], signs: Signs) -> list[tuple[dict[str, Any], npt.NDArray[np.bool_]]]:
    """Our numbers and the images they are about: all of them, those with an unseen class, and those with any."""
    labelled, labelled_any = (signs[:, UNSEEN] == 1).any(axis=1), (signs == 1).any(axis=1)
    assert 0 < labelled.sum() < labelled_any.sum() < len(signs)
    sets = {"labelled_images": labelled, "labelled_any_images": labelled_any}
    return [(results, np.ones_like(labelled)), *((results[key], images) for key, images in sets.items())]


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_ap_of_each_class_and_means_against_sklearn(seed, complete):
    scores, signs = random_case(seed)
    results = ours(scores, signs, complete)
    ap = sklearn_ap(scores, signs, complete)
    assert np.flatnonzero(np.isnan(ap)).tolist() == WITHOUT_POSITIVE
    found = [np.nan if value is None else value for value in results["AP"].values()]
    np.testing.assert_allclose(found, ap, rtol=1e-9)
    for numbers, images in image_sets(results, signs):
        ap = sklearn_ap(scores[images], signs[images], complete)
        for task, classes in TASKS.items():
            assert numbers[f"{task}_mAP"] == pytest.approx(np.nanmean(ap[classes]))
            assert numbers[f"{task}_mAP_all_classes"] == pytest.approx(np.nan_to_num(ap[classes]).mean())
            assert numbers[f"{task}_mAP_all_classes"] < numbers[f"{task}_mAP"]


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("seed", range(4, 8))
def test_map_against_torchmetrics(seed, complete):
    scores, signs = random_case(seed)
    results = ours(scores, signs, complete)
    target = np.where((signs == 0) & (not complete), NOT_RANKED, np.maximum(signs, 0))

    def theirs(images: npt.NDArray[np.bool_], classes: npt.NDArray[np.int64], average: str) -> npt.NDArray[np.float32]:
        chosen = np.ix_(images, classes)
        scores_and_target = torch.from_numpy(scores[chosen]), torch.from_numpy(target[chosen])
        return 100 * multilabel_average_precision(*scores_and_target, len(classes), average, ignore_index=NOT_RANKED).numpy()

    for numbers, images in image_sets(results, signs):
        known = np.flatnonzero((target[images] == 1).any(axis=0))
        if numbers is results:
            found = [numbers["AP"][SPLIT.names[k]] for k in known]
            np.testing.assert_allclose(found, theirs(images, known, "none"), rtol=1e-5)  # theirs are float32
        for task, classes in TASKS.items():
            mean = float(theirs(images, np.intersect1d(known, classes), "macro"))
            assert numbers[f"{task}_mAP"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("seed", range(8, 12))
def test_precision_recall_f1_at_k_against_sklearn(seed, complete):
    scores, signs = random_case(seed)
    for numbers, images in image_sets(ours(scores, signs, complete), signs):
        assert numbers["num_images"] == images.sum()
        for task, classes in TASKS.items():
            chosen = np.ix_(images, classes)
            for k in TOP_K:
                predicted = torch.zeros(scores[chosen].shape, dtype=torch.bool)
                predicted.scatter_(1, torch.from_numpy(scores[chosen]).topk(k).indices, True)
                expected = precision_recall_fscore_support(
                    signs[chosen] == 1, predicted.numpy(), average="micro", zero_division=np.nan
                )
                found = [numbers[f"{task}_{letter}@{k}"] for letter in ("P", "R", "F1")]
                assert found == pytest.approx([100 * float(value) for value in expected[:3]])


@pytest.mark.parametrize("seed", range(13, 16))
def test_mean_of_biam_against_its_description(seed):
    """Its AP of a class ranks every annotated pair of the images that are annotated for the class, with a positive in the
    task; for GZSL it averages over the annotated classes, for ZSL over all, those without a positive counting 0."""
    scores, signs = random_case(seed)
    signs[:, 0] = 0  # a class that nobody annotated
    results = ours(scores, signs, complete=False)
    for task, source in (("ZSL", "labelled_images"), ("GZSL", "labelled_any_images")):
        classes = TASKS[task]
        images = (signs[:, classes] == 1).any(axis=1)
        chosen, chosen_signs = scores[np.ix_(images, classes)], signs[np.ix_(images, classes)]
        ap = np.zeros(len(classes))
        for k in range(len(classes)):
            rows = chosen_signs[:, k] != 0
            pairs = chosen_signs[rows] != 0
            if pairs.any() and (chosen_signs[rows] == 1).any():
                ap[k] = 100 * average_precision_score(chosen_signs[rows][pairs] == 1, chosen[rows][pairs])
        averaged = (chosen_signs != 0).any(axis=0) if task == "GZSL" else np.ones(len(classes), dtype=bool)
        assert results[source][f"{task}_mAP_BiAM"] == pytest.approx(ap[averaged].mean())
        assert abs(results[source][f"{task}_mAP_BiAM"] - results[source][f"{task}_mAP"]) > 0.01
    assert "mAP, BiAM's" in format_multilabel_table({"test": results})


def test_mean_of_biam_is_that_of_incomplete_labels():
    results = ours(*random_case(16), complete=True)
    assert not [key for key in (*results, *results["labelled_images"], *results["labelled_any_images"]) if "BiAM" in key]


def test_with_ties_ours_is_never_above_sklearn():
    scores, signs = random_case(12)
    scores = np.round(scores, 1)
    found = ours(scores, signs, True)["AP"]
    theirs = {name: ap for name, ap in zip(SPLIT.names, sklearn_ap(scores, signs, True), strict=True) if not np.isnan(ap)}
    assert all(found[name] <= ap + 1e-9 for name, ap in theirs.items())
    assert sum(found[name] < ap - 1 for name, ap in theirs.items()) > len(theirs) / 2
