"""A sweep equals separate evaluations with each threshold, and counts add up."""

from __future__ import annotations

import pytest
import torch
from comparisons import assert_same_labels
from detectron2.data import DatasetCatalog, MetadataCatalog

from alignzeg_d2.gamma_sweep import OFF, GammaSweepEvaluator, segment_with_gamma
from alignzeg_d2.inference import PBC, NoCorrection, class_probabilities
from alignzeg_d2.modeling.pbc import correct_bias
from zeroshot_d2.demo_world import SPLIT, register_demo_world
from zeroshot_d2.segmentation.evaluation import ZeroShotSemSegEvaluator

GAMMAS = (0.2, 0.5, OFF)


@pytest.fixture(scope="module")
def world():
    """Four registered images; the name of the data set."""
    name = "test_gamma_sweep_world"
    register_demo_world(name, 77, 4)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def random_proposals(seed: int, queries: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "mask_logits": 4 * torch.randn(queries, 16, 16, generator=generator),
        "class_logits": 3 * torch.randn(queries, len(SPLIT) + 1, generator=generator),
        "class_indicator": torch.rand(queries, generator=generator),
    }


def seen_mask() -> torch.Tensor:
    return torch.from_numpy(SPLIT.seen_mask)


def test_sweep_equals_separate_evaluations(world):
    records = DatasetCatalog.get(world)
    outputs = [{"proposals": random_proposals(i)} for i in range(len(records))]
    sweep = GammaSweepEvaluator(world, seen_mask(), GAMMAS, distributed=False)
    sweep.process(records, outputs)
    points = sweep.report()["gamma_sweep"]
    assert [point["gamma"] for point in points] == list(GAMMAS)

    for point in points:
        alone = ZeroShotSemSegEvaluator(world, distributed=False)
        for record, output in zip(records, outputs, strict=True):
            proposals = output["proposals"]
            logits = correct_bias(proposals["class_logits"], proposals["class_indicator"], seen_mask(), point["gamma"])
            masks = torch.nn.functional.interpolate(
                proposals["mask_logits"][None], size=(64, 64), mode="bilinear", align_corners=False
            )[0].sigmoid()
            scores = torch.einsum("qk,qhw->khw", class_probabilities(logits), masks)
            alone.process([record], [{"sem_seg": scores}])
        expected = alone.report()
        indicators = torch.cat([output["proposals"]["class_indicator"] for output in outputs])
        assert point["flagged"] == pytest.approx(100 * (indicators > point["gamma"]).float().mean().item())
        assert point["hIoU"] == pytest.approx(expected["hIoU"], abs=0.02)  # a tie at a pixel may fall either way
        assert point["pAcc"] == pytest.approx(expected["pAcc"], abs=0.02)
        assert point["num_images"] == 4
    assert points[-1]["flagged"] == 0
    assert points[0]["mIoU_unseen"] != points[-1]["mIoU_unseen"]  # the correction does something here


def test_segmentation_is_the_models_own(demo_model):
    model = demo_model("MODEL.ALIGNZEG.TEST.RETURN_PROPOSALS", True, "MODEL.ALIGNZEG.PBC.GAMMA", 0.5)
    image = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for postprocessor, gamma in ((PBC(gamma=0.5), 0.5), (NoCorrection(), OFF)):
        model.postprocessor = postprocessor
        (output,) = model([{"image": image, "vocabulary": SPLIT}])
        labels = segment_with_gamma(output["proposals"], model.seen_mask(SPLIT), gamma, (64, 64))
        assert_same_labels(labels, output["sem_seg"].argmax(dim=0), output["sem_seg"])


def test_halves_add_up_and_reset_forgets(world):
    records = DatasetCatalog.get(world)
    outputs = [{"proposals": random_proposals(i)} for i in range(len(records))]
    sweep = GammaSweepEvaluator(world, seen_mask(), GAMMAS, distributed=False)
    sweep.process(records, outputs)
    whole = sweep.report()
    sweep.reset()
    sweep.process(records[:1], outputs[:1])
    sweep.process(records[1:], outputs[1:])
    assert sweep.report() == whole
    numbers = sweep.evaluate()["gamma_sweep"]
    assert sweep.details == whole and all(isinstance(value, float) for value in numbers.values())
    assert [key for key in numbers if key.startswith("hIoU@")] == [f"hIoU@{gamma:g}" for gamma in GAMMAS]


def test_gammas_are_sorted_and_checked(world):
    sweep = GammaSweepEvaluator(world, seen_mask(), (0.5, 0.1, 0.5), distributed=False)
    sweep.process(DatasetCatalog.get(world)[:1], [{"proposals": random_proposals(0)}])
    assert [point["gamma"] for point in sweep.report()["gamma_sweep"]] == [0.1, 0.5]
    with pytest.raises(ValueError, match=r"\[0, 1\].*1\.5"):
        GammaSweepEvaluator(world, seen_mask(), (0.5, 1.5))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        GammaSweepEvaluator(world, seen_mask(), ())


def test_outputs_without_proposals_or_indicator_are_refused(world):
    sweep = GammaSweepEvaluator(world, seen_mask(), distributed=False)
    record = DatasetCatalog.get(world)[0]
    with pytest.raises(ValueError, match="RETURN_PROPOSALS"):
        sweep.process([record], [{"sem_seg": torch.zeros(len(SPLIT), 64, 64)}])
    with pytest.raises(ValueError, match=r"PBC\.POSTPROCESSOR PBC"):
        sweep.process([record], [{"proposals": {**random_proposals(0), "class_indicator": None}}])


def test_off_leaves_scores_alone():
    proposals = {**random_proposals(0), "class_indicator": torch.ones(6)}
    labels = segment_with_gamma(proposals, seen_mask(), OFF, (16, 16))
    scores = torch.einsum("qk,qhw->khw", class_probabilities(proposals["class_logits"]), proposals["mask_logits"].sigmoid())
    assert_same_labels(labels, scores.argmax(dim=0), scores)
