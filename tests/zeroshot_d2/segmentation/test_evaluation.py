"""Protocols by hand on a few pixels, and against a reference of sets."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import print_csv_format
from PIL import Image

from zeroshot_d2 import ClassSplit, register_sem_seg
from zeroshot_d2.segmentation.evaluation import ZeroShotSemSegEvaluator, format_results_table, protocol_results
from zeroshot_d2.segmentation.metrics import confusion_matrix

NAMES = ["cat", "dog", "cow"]
SPLIT = ClassSplit(NAMES, unseen=["dog"])


@pytest.fixture
def register(tmp_path):
    """Register label arrays under a name; returns the inputs of a data loader."""
    registered = []

    def do(labels, split=SPLIT, name="test_evaluation", **arguments):
        records = []
        for i, label in enumerate(labels):
            path = tmp_path / f"{name}_{i}.png"
            Image.fromarray(np.asarray(label, dtype=np.uint8)).save(path)
            photo = tmp_path / f"{i}.jpg"
            Image.new("RGB", np.shape(label)[::-1]).save(photo)
            records.append({"file_name": str(photo), "sem_seg_file_name": str(path), "image_id": i})
        register_sem_seg(name, split, load=lambda: records, **arguments)
        registered.append(name)
        return [{"file_name": record["file_name"]} for record in records]

    yield do
    for name in registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def as_scores(labels, classes=3) -> dict[str, torch.Tensor]:
    """Scores whose argmax is ``labels``."""
    return {"sem_seg": torch.nn.functional.one_hot(torch.as_tensor(labels), classes).permute(2, 0, 1).float()}


def run(name, inputs, outputs):
    evaluator = ZeroShotSemSegEvaluator(name, distributed=False)
    evaluator.process(inputs, outputs)
    return evaluator.report()


def test_gzs3_by_hand(register):
    # truth c c d o | prediction c d d o (o: ignored)  ->  IoU cat 1/2, dog 1/2, cow absent
    inputs = register([[[0, 0, 1, 255]]])
    results = run("test_evaluation", inputs, [as_scores([[0, 1, 1, 2]])])
    assert results == {
        "protocol": "GZS3",
        "mIoU": pytest.approx(50.0),
        "mIoU_seen": pytest.approx(50.0),
        "mIoU_unseen": pytest.approx(50.0),
        "hIoU": pytest.approx(50.0),
        "mIoU_gt_or_predicted": pytest.approx(50.0),
        "mIoU_seen_gt_or_predicted": pytest.approx(50.0),
        "mIoU_unseen_gt_or_predicted": pytest.approx(50.0),
        "hIoU_gt_or_predicted": pytest.approx(50.0),
        "pAcc": pytest.approx(200 / 3),
        "IoU": {"cat": pytest.approx(50.0), "dog": pytest.approx(50.0), "cow": None},
        "num_images": 1,
    }


def test_the_peers_means_count_what_was_predicted_alone(register):
    # truth c c d | prediction c d w (cow occurs nowhere)  ->  IoU cat 1/2, dog 0, cow: none, or 0 as the peers have it
    inputs = register([[[0, 0, 1]]])
    results = run("test_evaluation", inputs, [as_scores([[0, 1, 2]])])
    assert results["IoU"] == {"cat": pytest.approx(50.0), "dog": 0.0, "cow": None}
    assert results["mIoU"] == pytest.approx(25.0) and results["mIoU_gt_or_predicted"] == pytest.approx(50 / 3)
    assert results["mIoU_seen"] == pytest.approx(50.0) and results["mIoU_seen_gt_or_predicted"] == pytest.approx(25.0)
    assert results["mIoU_unseen"] == results["mIoU_unseen_gt_or_predicted"] == 0.0
    table = format_results_table({"test_evaluation": results}).splitlines()
    assert len(table) == 4 and "(gt or predicted)" in table[3] and " 16.7 " in table[3]


def test_zs3_ignores_seen_pixels_and_has_no_hiou(register):
    split = ClassSplit(NAMES, unseen=["dog", "cow"])
    inputs = register([[[0, 1, 1, 2]]], split, vocabulary="unseen")
    results = run("test_evaluation", inputs, [{"sem_seg_labels": torch.tensor([[1, 0, 1, 1]])}])
    assert results["protocol"] == "ZS3" and list(results["IoU"]) == ["dog", "cow"]
    assert results["IoU"]["dog"] == pytest.approx(50.0) and results["pAcc"] == pytest.approx(200 / 3)
    assert "hIoU" not in results and "mIoU_unseen" not in results


@pytest.mark.parametrize("protocol", ["supervised", "cross-dataset"])
def test_protocols_without_a_split(register, protocol):
    inputs = register([[[0, 1, 2]]], ClassSplit(NAMES), protocol=protocol)
    results = run("test_evaluation", inputs, [as_scores([[0, 1, 1]])])
    assert set(results) == {"protocol", "mIoU", "mIoU_gt_or_predicted", "pAcc", "IoU", "num_images"}
    assert results["protocol"] == protocol and results["mIoU"] == pytest.approx((100 + 50 + 0) / 3)


def test_scores_and_labels_give_the_same_and_batches_add_up(register):
    rng = np.random.default_rng(0)
    truths = [rng.choice([0, 1, 2, 255], size=(5, 6)) for _ in range(4)]
    predictions = [rng.integers(0, 3, (5, 6)) for _ in range(4)]
    inputs = register(truths)
    scores = [as_scores(prediction) for prediction in predictions]
    whole = run("test_evaluation", inputs, scores)
    assert whole == run("test_evaluation", inputs, [{"sem_seg_labels": torch.as_tensor(p)} for p in predictions])

    halves = ZeroShotSemSegEvaluator("test_evaluation", distributed=False)
    halves.process(inputs[:1], scores[:1])
    halves.process(inputs[1:], scores[1:])
    assert halves.report() == whole
    halves.reset()
    halves.process(inputs, scores)
    assert halves.report() == whole


def test_against_sets_of_pixels(register):
    rng = np.random.default_rng(1)
    truths = [rng.choice([0, 1, 2, 255], size=(7, 3)) for _ in range(3)]
    predictions = [rng.integers(0, 3, (7, 3)) for _ in range(3)]
    results = run("test_evaluation", register(truths), [as_scores(p) for p in predictions])
    truth, prediction = np.concatenate(truths).ravel(), np.concatenate(predictions).ravel()
    labelled = np.flatnonzero(truth != 255)
    for k, name in enumerate(NAMES):
        is_k = {i for i in labelled if truth[i] == k}
        says_k = {i for i in labelled if prediction[i] == k}
        assert results["IoU"][name] == pytest.approx(100 * len(is_k & says_k) / len(is_k | says_k))
    seen, unseen = np.mean([results["IoU"]["cat"], results["IoU"]["cow"]]), results["IoU"]["dog"]
    assert results["mIoU_seen"] == pytest.approx(seen)
    assert results["hIoU"] == pytest.approx(2 / (1 / seen + 1 / unseen))
    assert results["pAcc"] == pytest.approx(100 * np.mean(truth[labelled] == prediction[labelled]))


def test_reordered_and_renamed_classes_change_nothing():
    rng = np.random.default_rng(2)
    truth, prediction = rng.integers(0, 4, 500), rng.integers(0, 3, 500)
    results = protocol_results(confusion_matrix(prediction, truth, 3), SPLIT, "GZS3", 1)
    order = np.array([2, 0, 1])  # new position k holds old class order[k]
    new_index = np.append(np.argsort(order), 3)
    other = ClassSplit([f"{NAMES[k]} again" for k in order], unseen=["dog again"])
    again = protocol_results(confusion_matrix(new_index[prediction], new_index[truth], 3), other, "GZS3", 1)
    assert again["IoU"] == {f"{name} again": pytest.approx(value) for name, value in results["IoU"].items()}
    for key in ("mIoU", "mIoU_seen", "mIoU_unseen", "hIoU", "pAcc"):
        assert again[key] == pytest.approx(results[key])


def test_no_ground_truth_gives_none_not_nan(register):
    results = run("test_evaluation", register([[[255, 255]]]), [as_scores([[0, 1]])])
    assert all(results[key] is None for key in ("mIoU", "mIoU_seen", "mIoU_unseen", "hIoU", "pAcc"))
    assert set(results["IoU"].values()) == {None} and results["num_images"] == 1
    assert "NaN" not in json.dumps(results)


def test_hiou_needs_both_kinds_of_class(register):
    results = run("test_evaluation", register([[[0, 2]]]), [as_scores([[0, 2]])])
    assert results["mIoU_seen"] == 100.0 and results["mIoU_unseen"] is None and results["hIoU"] is None


def test_predictions_are_written_only_on_request(register, tmp_path):
    inputs, outputs = register([[[0, 1]]]), [as_scores([[0, 1]])]
    file = tmp_path / "out" / "predictions" / "test_evaluation" / "sem_seg_predictions.json"
    for asked in ("", "json"):
        evaluator = ZeroShotSemSegEvaluator("test_evaluation", False, str(tmp_path / "out"), save_predictions=asked)
        evaluator.process(inputs, outputs)
        evaluator.report()
        assert file.exists() is bool(asked)
    evaluator.report()  # again, which leaves the file as it is
    assert [entry["category_id"] for entry in json.loads(file.read_text())] == [0, 1]


def test_labels_without_scores_cannot_be_saved_as_scores(register, tmp_path):
    inputs = register([[[0, 1]]])
    evaluator = ZeroShotSemSegEvaluator("test_evaluation", False, str(tmp_path), save_predictions="scores")
    with pytest.raises(ValueError, match="TEST.SAVE_PREDICTIONS scores: the model gives labels"):
        evaluator.process(inputs, [{"sem_seg_labels": torch.tensor([[0, 1]])}])


def test_images_of_one_id_cannot_be_saved(register, tmp_path):
    register([[[0, 1]], [[0, 1]]])
    records = [{**record, "image_id": 0} for record in DatasetCatalog.get("test_evaluation")]
    register_sem_seg("test_evaluation", SPLIT, load=lambda: records, replace=True)
    with pytest.raises(ValueError, match="2 images, but 1 different image ids"):
        ZeroShotSemSegEvaluator("test_evaluation", False, str(tmp_path), save_predictions="labels")


def test_bad_input_is_named(register):
    inputs = register([[[0, 1]]])
    evaluator = ZeroShotSemSegEvaluator("test_evaluation", distributed=False)
    with pytest.raises(ValueError, match="1 inputs but 2 outputs"):
        evaluator.process(inputs, [{}, {}])
    with pytest.raises(ValueError, match="0.jpg: the prediction is 2 x 2, the label image 1 x 2"):
        evaluator.process(inputs, [as_scores([[0, 1], [0, 1]])])
    with pytest.raises(ValueError, match="scores 5 classes.*has 3"):
        evaluator.process(inputs, [as_scores([[0, 1]], classes=5)])
    with pytest.raises(ValueError, match="'sem_seg' or 'sem_seg_labels'"):
        evaluator.process(inputs, [{"panoptic": 1}])
    with pytest.raises(ValueError, match="strange.jpg is not an image"):
        evaluator.process([{"file_name": "strange.jpg"}], [as_scores([[0, 1]])])
    with pytest.raises(ValueError, match="output_dir"):
        ZeroShotSemSegEvaluator("test_evaluation", save_predictions="labels")
    with pytest.raises(ValueError, match="unknown protocol 'zs'"):
        protocol_results(np.zeros((4, 4), dtype=np.int64), SPLIT, "zs", 0)


def test_a_data_set_without_a_split_is_refused():
    with pytest.raises(ValueError, match="no class_split, label_table, protocol"):
        ZeroShotSemSegEvaluator("test_evaluation_never_registered")
    MetadataCatalog.remove("test_evaluation_never_registered")


# -------------------------------------------------------------------------------------------------------- table
def test_table_names_protocol_and_leaves_out_what_a_protocol_has_not():
    gzs3 = {"protocol": "GZS3", "mIoU": 51.234, "mIoU_seen": 60.0, "mIoU_unseen": 40.0, "hIoU": 48.0, "pAcc": 71.0}
    zs3 = {"protocol": "ZS3", "mIoU": None, "pAcc": 80.0, "num_images": 5}
    lines = format_results_table({"val": gzs3, "val_unseen": zs3}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["data set", "protocol", "pAcc", "mIoU(S)", "mIoU(U)", "hIoU", "mIoU", "images"]
    assert cells[2] == ["val", "GZS3", "71.0", "60.0", "40.0", "48.0", "51.2", "-"]
    assert cells[3] == ["val_unseen", "ZS3", "80.0", "-", "-", "-", "-", "5"]


def _count_half(rank: int, world: int, folder: str) -> None:
    """One of two processes: counts its share, then evaluates together with the other."""
    import torch.distributed as dist
    from detectron2.utils import comm

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    comm.create_local_process_group(world)
    truths = [np.array([[0, 1, 2, 255]]), np.array([[1, 1, 0, 0]]), np.array([[2, 2, 2, 1]])]
    records = []
    for i, truth in enumerate(truths):
        path = Path(folder) / f"{rank}_{i}.png"
        Image.fromarray(truth.astype(np.uint8)).save(path)
        photo = path.with_suffix(".jpg")
        Image.new("RGB", truth.shape[::-1]).save(photo)
        records.append({"file_name": str(photo), "sem_seg_file_name": str(path), "image_id": i})
    register_sem_seg("test_two_processes", SPLIT, load=lambda: records)
    evaluator = ZeroShotSemSegEvaluator("test_two_processes", output_dir=f"{folder}/out", save_predictions="json")
    for record in records[rank::world]:
        evaluator.process([record], [{"sem_seg_labels": torch.tensor([[0, 1, 2, 1]])}])
    results = evaluator.report()
    if rank == 0:
        (Path(folder) / "results.json").write_text(json.dumps(results))
    else:
        assert results is None
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_add_up(tmp_path, register):
    torch.multiprocessing.spawn(_count_half, args=(2, str(tmp_path)), nprocs=2)
    together = json.loads((tmp_path / "results.json").read_text())
    inputs = register([[[0, 1, 2, 255]], [[1, 1, 0, 0]], [[2, 2, 2, 1]]])
    alone = run("test_evaluation", inputs, [{"sem_seg_labels": torch.tensor([[0, 1, 2, 1]])}] * 3)
    assert together == alone
    assert together["num_images"] == 3 and not math.isnan(together["mIoU"])
    folder = tmp_path / "out" / "predictions" / "test_two_processes"
    entries = json.loads((folder / "sem_seg_predictions.json").read_text())
    assert len(entries) == 9 and len({entry["file_name"] for entry in entries}) == 3
    assert {path.name for path in folder.iterdir()} == {"sem_seg_predictions.json", "classes.txt"}


def test_detectron2_gets_numbers_and_the_file_everything(register):
    inputs = register([[[0, 1]]])
    evaluator = ZeroShotSemSegEvaluator("test_evaluation", distributed=False)
    evaluator.process(inputs, [as_scores([[0, 1]])])
    results = evaluator.evaluate()
    assert all(isinstance(value, float) for value in results["sem_seg"].values())
    assert results["sem_seg"]["pAcc"] == evaluator.details["pAcc"]
    assert evaluator.details == evaluator.report() and evaluator.details["protocol"] == "GZS3"
    print_csv_format(results)  # fails on anything but numbers
