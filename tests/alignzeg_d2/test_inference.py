"""From proposals to what a model returns: one classification path, the correction before the softmax, the entries."""

import pytest
import torch
import torch.nn.functional as F
from comparisons import STEP, assert_close, assert_same_labels
from torch import nn

from alignzeg_d2.inference import (
    PBC,
    POSTPROCESSOR_REGISTRY,
    NoCorrection,
    class_probabilities,
    classify,
    correct,
    of_scores,
    output_of,
)
from alignzeg_d2.modeling.gepc.classifier import ProposalClassifier
from alignzeg_d2.modeling.pbc import ClassIndicator, correct_bias
from alignzeg_d2.semantic_inference import PlacedProposals

# Of a few proposals: two interpolations, a sigmoid, and a product that adds up some terms.
FEW_STEPS = 32 * STEP


def test_background_before_or_behind_the_softmax():
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    torch.testing.assert_close(class_probabilities(logits), logits.softmax(-1)[:, :2])
    torch.testing.assert_close(class_probabilities(logits, background_in_softmax=False), logits[:, :2].softmax(-1))


def test_registry_and_missing_indicator(demo_cfg):
    assert POSTPROCESSOR_REGISTRY.get("PBC") is PBC and POSTPROCESSOR_REGISTRY.get("NoCorrection") is NoCorrection
    assert PBC(demo_cfg("MODEL.ALIGNZEG.PBC.GAMMA", 0.4)).gamma == 0.4
    assert isinstance(NoCorrection(demo_cfg()), NoCorrection)
    logits, seen = torch.randn(2, 4), torch.tensor([True, False, True])
    assert NoCorrection()(logits, None, seen) is logits
    corrected = PBC(gamma=0.3)(logits, torch.tensor([0.9, 0.1]), seen)
    assert torch.equal(corrected[1], logits[1]) and (corrected[0, [0, 2]] == logits[:, :3].min()).all()
    with pytest.raises(ValueError, match=r"train with MODEL\.ALIGNZEG\.PBC\.POSTPROCESSOR PBC"):
        PBC(gamma=0.3)(logits, None, seen)


# ---- the one classification path ----


class Refinements(ProposalClassifier):
    """Counts how often phi_cls runs."""

    count = 0

    def refine(self, features):
        self.count += 1
        return super().refine(features)


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    classifier = Refinements(width=6, num_background_prototypes=3, logit_scale=20.0)
    nn.init.normal_(classifier.phi_cls[-1].weight)
    return classifier


@pytest.fixture
def indicator():
    torch.manual_seed(1)
    return ClassIndicator(width=6)


def test_proposals_are_refined_once(classifier, indicator):
    features, prototypes = torch.randn(2, 4, 6), F.normalize(torch.randn(5, 6), dim=-1)
    found = classify(features, prototypes, classifier, indicator)
    assert classifier.count == 1
    refined = classifier.refine(features)
    assert_close(found.features, refined, FEW_STEPS)
    assert_close(found.class_logits, classifier(refined, prototypes), FEW_STEPS)
    assert_close(found.class_indicator, indicator(features).sigmoid(), FEW_STEPS)
    alone = classify(features, prototypes, classifier, None)
    assert alone.indicator_logits is None and alone.class_indicator is None


@torch.no_grad()
def test_one_image_takes_the_path_of_a_batch(classifier, indicator):
    features, prototypes = torch.randn(2, 4, 6), F.normalize(torch.randn(5, 6), dim=-1)
    together = classify(features, prototypes, classifier, indicator)
    for i in range(2):
        alone = classify(features[i], prototypes, classifier, indicator)
        for name in ("features", "class_logits", "indicator_logits"):
            assert_close(getattr(alone, name), getattr(together, name)[i], 10 * FEW_STEPS)


@pytest.mark.parametrize("background_in_softmax", [True, False])
def test_correction_comes_before_the_softmax(background_in_softmax):
    logits, seen = torch.randn(3, 5), torch.tensor([True, False, True, True])
    indicator = torch.tensor([0.9, 0.2, 0.6])
    corrected, probabilities = correct(logits, indicator, seen, PBC(gamma=0.5), background_in_softmax=background_in_softmax)
    expected = correct_bias(logits, indicator, seen, 0.5)
    assert torch.equal(corrected, expected)
    assert_close(probabilities, class_probabilities(expected, background_in_softmax=background_in_softmax), FEW_STEPS)


@pytest.mark.parametrize("output_size", [(9, 14), (18, 30)])
def test_an_output_holds_what_was_asked_for(output_size):
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(3, 4, generator=generator)
    found = [PlacedProposals.of_image(probabilities, 3 * torch.randn(3, 5, 7, generator=generator), (4.5, 7.0))]
    arguments = {"output_size": output_size, "chunk_pixels": 50}
    by_score = output_of(found, "scores", **arguments)
    assert set(by_score) == {"sem_seg", "sem_seg_coverage"} and by_score["sem_seg"].shape == (4, *output_size)
    by_label = output_of(found, "labels", **arguments)
    assert set(by_label) == {"sem_seg_labels", "sem_seg_confidence"}
    assert_same_labels(by_label["sem_seg_labels"], by_score["sem_seg"].argmax(0), by_score["sem_seg"], FEW_STEPS)
    confidence = by_score["sem_seg"].amax(0) / by_score["sem_seg_coverage"]
    assert_close(by_label["sem_seg_confidence"], confidence, FEW_STEPS)
    again = of_scores(by_score["sem_seg"], by_score["sem_seg_coverage"], "labels")
    assert_close(again["sem_seg_confidence"], by_label["sem_seg_confidence"], FEW_STEPS)
    assert of_scores(by_score["sem_seg"], by_score["sem_seg_coverage"], "scores").keys() == by_score.keys()
