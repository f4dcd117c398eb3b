"""Our segmentation numbers beside scikit-learn's and torchmetrics' on random label maps.

Where the definitions are the same, the numbers are: the confusion matrix of the labelled pixels (ours is
[prediction, truth], theirs [truth, prediction]), IoU of every class that occurs in the ground truth, and pAcc, which is
their micro accuracy.

Where they differ: a class that is only predicted has IoU 0 in both libraries, and torchmetrics counts that 0 in its macro
mean; ours, as the papers', is a mean over the classes of the ground truth, so it has no IoU there. Its wrong pixels count in
the IoU of the classes whose pixels they are, in all three. Neither library knows seen and unseen classes: those means, and
their harmonic mean, are taken here from the libraries' IoUs.

Shapes: K classes, H, W size of an image.
"""

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sklearn.metrics
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_jaccard_index,
)

from zeroshot_d2 import ClassSplit, register_sem_seg
from zeroshot_d2.segmentation.evaluation import ZeroShotSemSegEvaluator
from zeroshot_d2.segmentation.metrics import confusion_matrix

NAME = "test_evaluation_references"
CLASSES, IGNORED = 9, 255
UNSEEN = [2, 5, 8]
ABSENT = [4, 5]  # never in the ground truth; 4 is seen, 5 unseen, both are predicted
NEVER = 7  # neither in the ground truth nor predicted
SPLIT = ClassSplit([f"class {k}" for k in range(CLASSES)], unseen=[f"class {k}" for k in UNSEEN])

Labels = npt.NDArray[np.int64]
Evaluate = Callable[..., dict[str, Any]]


def random_case(seed: int) -> tuple[list[Labels], list[Labels]]:
    """Ground truths and predictions (H, W) of six images of different sizes, at most four classes in each: a sixth of
    the pixels ignored, half of the rest right."""
    rng = np.random.default_rng(seed)
    occurring = np.setdiff1d(np.arange(CLASSES), [*ABSENT, NEVER])
    predicted = np.setdiff1d(np.arange(CLASSES), [NEVER])
    truths, predictions = [], []
    for _ in range(6):
        size = tuple(rng.integers(5, 30, 2))
        truth = rng.choice(rng.choice(occurring, 4), size)
        right = rng.random(size) < 0.5
        predictions.append(np.where(right, truth, rng.choice(predicted, size)))
        truths.append(np.where(rng.random(size) < 1 / 6, IGNORED, truth))
    return truths, predictions


@pytest.fixture
def evaluate(tmp_path: Path) -> Iterator[Evaluate]:
    """``evaluate(truths, predictions, vocabulary=...)``: our numbers, image by image, through label files."""

    def do(truths: list[Labels], predictions: list[Labels], **arguments: Any) -> dict[str, Any]:
        records = []
        for i, truth in enumerate(truths):
            path = tmp_path / f"{i}.png"
            Image.fromarray(truth.astype(np.uint8)).save(path)
            photo = path.with_suffix(".jpg")
            Image.new("RGB", truth.shape[::-1]).save(photo)
            records.append({"file_name": str(photo), "sem_seg_file_name": str(path), "image_id": i})
        register_sem_seg(NAME, SPLIT, load=lambda: records, **arguments)
        evaluator = ZeroShotSemSegEvaluator(NAME, distributed=False)
        for record, prediction in zip(records, predictions, strict=True):
            evaluator.process([record], [{"sem_seg_labels": torch.from_numpy(prediction)}])
        results = evaluator.report()
        assert results is not None
        return results

    yield do
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def flat(truths: list[Labels], predictions: list[Labels]) -> tuple[Labels, Labels]:
    """The pixels of all images in one row."""
    return np.concatenate([truth.ravel() for truth in truths]), np.concatenate([p.ravel() for p in predictions])


@pytest.mark.parametrize("seed", range(4))
def test_confusion_matrix(seed):
    truth, prediction = flat(*random_case(seed))
    found = confusion_matrix(prediction, np.where(truth == IGNORED, CLASSES, truth), CLASSES)
    labelled = truth != IGNORED
    assert 0 < labelled.sum() < labelled.size and found[:, -1].sum() == (~labelled).sum()
    expected = sklearn.metrics.confusion_matrix(truth[labelled], prediction[labelled], labels=range(CLASSES))
    np.testing.assert_array_equal(found[:-1, :-1].T, expected)
    expected = multiclass_confusion_matrix(
        torch.from_numpy(prediction), torch.from_numpy(truth), CLASSES, ignore_index=IGNORED
    )
    np.testing.assert_array_equal(found[:-1, :-1].T, expected.numpy())


@pytest.mark.parametrize("seed", range(4, 8))
def test_gzs3_against_torchmetrics(seed, evaluate):
    truths, predictions = random_case(seed)
    results = evaluate(truths, predictions)
    truth, prediction = map(torch.from_numpy, flat(truths, predictions))
    iou = 100 * multiclass_jaccard_index(prediction, truth, CLASSES, average="none", ignore_index=IGNORED)
    _check_gzs3(results, iou.double().numpy(), truth.numpy(), rel=1e-5)  # torchmetrics divides in float32
    accuracy = multiclass_accuracy(prediction, truth, CLASSES, average="micro", ignore_index=IGNORED)
    assert results["pAcc"] == pytest.approx(100 * float(accuracy), rel=1e-5)


@pytest.mark.parametrize("seed", range(8, 12))
def test_gzs3_against_sklearn(seed, evaluate):
    truths, predictions = random_case(seed)
    results = evaluate(truths, predictions)
    truth, prediction = flat(truths, predictions)
    labelled = truth != IGNORED
    pixels = truth[labelled], prediction[labelled]
    iou = 100 * sklearn.metrics.jaccard_score(*pixels, labels=range(CLASSES), average=None, zero_division=0)
    _check_gzs3(results, iou, truth, rel=1e-9)
    assert results["pAcc"] == pytest.approx(100 * sklearn.metrics.accuracy_score(*pixels))


def _check_gzs3(results: dict[str, Any], iou: npt.NDArray[np.float64], truth: Labels, rel: float) -> None:
    """Our numbers against IoUs (K,) in percent of a library, which has a number for absent classes too."""
    occurring = [k for k in range(CLASSES) if (truth == k).any()]
    assert not {*ABSENT, NEVER} & {*occurring} and {*UNSEEN} & {*occurring}
    for k, name in enumerate(SPLIT.names):
        assert results["IoU"][name] == (pytest.approx(iou[k], rel=rel) if k in occurring else None)
    seen = statistics.fmean(iou[k] for k in occurring if k not in UNSEEN)
    unseen = statistics.fmean(iou[k] for k in occurring if k in UNSEEN)
    assert results["mIoU"] == pytest.approx(statistics.fmean(iou[occurring]), rel=rel)
    assert results["mIoU_seen"] == pytest.approx(seen, rel=rel) and results["mIoU_unseen"] == pytest.approx(unseen, rel=rel)
    assert results["hIoU"] == pytest.approx(2 * seen * unseen / (seen + unseen), rel=rel)


@pytest.mark.parametrize("seed", range(12, 15))
def test_zs3_is_the_same_with_seen_pixels_ignored(seed, evaluate):
    truths, _ = random_case(seed)
    rng = np.random.default_rng(seed)
    predictions = [rng.integers(0, len(UNSEEN), truth.shape) for truth in truths]  # indices into the unseen vocabulary
    results = evaluate(truths, predictions, vocabulary="unseen")
    truth, prediction = flat(truths, predictions)
    index = np.full(256, IGNORED)
    index[UNSEEN] = range(len(UNSEEN))
    truth, labelled = index[truth], index[truth] != IGNORED
    pixels = truth[labelled], prediction[labelled]
    iou = 100 * sklearn.metrics.jaccard_score(*pixels, labels=range(len(UNSEEN)), average=None, zero_division=0)
    for k, name in enumerate(SPLIT.names[u] for u in UNSEEN):
        assert results["IoU"][name] == (pytest.approx(iou[k]) if (truth == k).any() else None)
    assert results["mIoU"] == pytest.approx(iou[np.unique(pixels[0])].mean())
    assert results["pAcc"] == pytest.approx(100 * sklearn.metrics.accuracy_score(*pixels))
