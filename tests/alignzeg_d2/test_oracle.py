"""The oracle: the masks alone, each with its ground-truth class (Table 6)."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from alignzeg_d2.oracle import OracleEvaluator, oracle_prediction
from alignzeg_d2.system import build_evaluator
from zeroshot_d2 import ClassSplit, register_sem_seg

NAME = "test_oracle"
TRUTH = np.array([[0, 0, 1, 1], [0, 0, 1, 255]], dtype=np.uint8)


@pytest.fixture
def photo(tmp_path):
    """The photo of a data set of one image, whose label is ``TRUTH``."""
    Image.fromarray(TRUTH).save(tmp_path / "0.png")
    Image.new("RGB", TRUTH.shape[::-1]).save(tmp_path / "0.jpg")
    register_sem_seg(NAME, ClassSplit(["cat", "dog", "cow"], unseen=["dog"]), tmp_path, tmp_path)
    yield str(tmp_path / "0.jpg")
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_each_proposal_gets_its_class(photo):
    left = torch.tensor([[9.0, 9.0, -9.0, -9.0]] * 2)
    evaluator = OracleEvaluator(NAME, distributed=False)
    wrong = torch.full((2, 4), 2)  # whatever class was predicted
    proposals = {"mask_logits": torch.stack([-left, left])}
    evaluator.process([{"file_name": photo}], [{"proposals": proposals, "sem_seg_labels": wrong}])
    results = evaluator.report()
    assert results["protocol"] == "GZS3 (oracle)" and results["pAcc"] == 100.0 and results["mIoU"] == 100.0


@pytest.mark.parametrize("output", [{}, {"proposals": None}, {"proposals": {"class_logits": torch.zeros(1, 4)}}])
def test_an_output_without_masks_is_refused(photo, output):
    with pytest.raises(ValueError, match="RETURN_PROPOSALS"):
        OracleEvaluator(NAME, distributed=False).process([{"file_name": photo}], [output])


def test_the_config_decides_which_evaluator_runs(photo, demo_cfg):
    oracle = build_evaluator(demo_cfg("MODEL.ALIGNZEG.TEST.ORACLE", True), NAME)
    assert type(oracle) is OracleEvaluator and oracle._file_name == f"{NAME}_oracle"
    assert not isinstance(build_evaluator(demo_cfg(), NAME), OracleEvaluator)


def test_it_is_only_as_good_as_its_proposals():
    truth = np.array([[0, 0, 0, 1]])
    both = torch.full((1, 1, 4), 9.0)  # one proposal covers both classes: the larger overlap wins
    np.testing.assert_array_equal(oracle_prediction(both, truth, 3), [[0, 0, 0, 0]])


def test_overlap_is_soft_and_ignores_unlabelled_pixels():
    truth = np.array([[0, 3, 3, 1]])  # K = 3: the two pixels in the middle are ignored
    mask = torch.tensor([[[-2.0, 9.0, 9.0, -1.0]]])
    np.testing.assert_array_equal(oracle_prediction(mask, truth, 3), [[1, 1, 1, 1]])


def test_it_equals_the_plain_formula_at_another_mask_size():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(21, 4, 5, generator=generator) * 3
    truth = torch.randint(0, 7, (13, 11), generator=generator).numpy()
    truth[truth == 4] = 6  # absent; 6 = ignored
    masks = torch.nn.functional.interpolate(logits[None], size=(13, 11), mode="bilinear", align_corners=False)[0].sigmoid()
    onehot = torch.stack([torch.as_tensor(truth == k) for k in range(6)]).float()
    classes = torch.einsum("qhw,khw->qk", masks, onehot).argmax(dim=1)
    scores = torch.einsum("qk,qhw->khw", torch.nn.functional.one_hot(classes, 6).float(), masks)
    best, second = scores.topk(2, dim=0).values
    clear = (best - second > 1e-5 * best).numpy()  # nearer ones may fall either way in another order of the sums
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(oracle_prediction(logits, truth, 6)[clear], scores.argmax(dim=0).numpy()[clear])


def test_without_labelled_pixels_there_is_no_prediction():
    assert (oracle_prediction(torch.zeros(2, 2, 2), np.full((3, 3), 4), 4) == 4).all()
