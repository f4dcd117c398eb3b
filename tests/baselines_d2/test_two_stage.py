"""SimBaseline and ZegFormer: crops, the combination of two classifications by hand, and what learns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from comparisons import assert_close
from detectron2.data import MetadataCatalog

from baselines_d2.two_stage import TwoStage, ensemble, masked_crops
from zeroshot_d2 import demo_world, load_config


@pytest.fixture
def demo() -> Callable[..., TwoStage]:
    """``demo("SOME.KEY", value, ...)``: configs/demo/baselines/simbaseline.yaml on a random CLIP, from one seed."""

    def build(*options: object, config: str = "simbaseline") -> TwoStage:
        torch.manual_seed(0)
        random = ["MODEL.TWO_STAGE.CLIP.PRETRAINED", "", "MODEL.TWO_STAGE.CLIP.TEMPLATES", "single"]
        return TwoStage(load_config(f"demo/baselines/{config}.yaml", [*random, *options]))

    return build


def demo_inputs(count: int = 2, dataset: str = "demo_world_train_seen") -> list[dict[str, Any]]:
    table = MetadataCatalog.get(dataset).label_table
    scenes = [demo_world.render(0, index) for index in range(count)]
    return [
        {
            "image": torch.from_numpy(scene.image).permute(2, 0, 1),
            "sem_seg": torch.from_numpy(table.apply(scene.label).astype(np.int64)),
            "dataset_name": dataset,
        }
        for scene in scenes
    ]


# ---- parts ----
def test_a_crop_is_the_box_of_a_mask_with_the_mean_colour_around_it() -> None:
    image, masks = torch.randn(3, 6, 8), torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 1:5, 2:6] = True
    masks[0, 2, 3] = False
    masks[2, 5, 7] = True
    crops, present = masked_crops(image, masks, (4, 4))
    assert present.tolist() == [True, False, True] and crops.shape == (2, 3, 4, 4)
    expected = image[:, 1:5, 2:6].clone()
    expected[:, 1, 1] = 0.0
    assert_close(crops[0], expected)
    assert_close(crops[1], image[:, 5:, 7:].expand(3, 4, 4))
    crops, present = masked_crops(image, torch.zeros_like(masks), (4, 4))
    assert len(crops) == 0 and not present.any()


def test_the_ensemble_by_hand_and_in_its_limits() -> None:
    network, clip = torch.tensor([[0.6, 0.3]]), torch.tensor([[0.2, 0.7]])
    seen = torch.tensor([True, False])
    (found,) = ensemble(network, clip, seen, 0.8).tolist()
    assert found[0] == pytest.approx(math.exp(0.8 * math.log(0.6) + 0.2 * math.log(0.2)), rel=1e-5)
    assert found[1] == pytest.approx(math.exp(0.2 * math.log(0.3) + 0.8 * math.log(0.7)), rel=1e-5)
    assert_close(ensemble(network, clip, seen, 1.0), torch.tensor([[0.6, 0.7]]))
    assert_close(ensemble(network, clip, seen, 0.0), torch.tensor([[0.2, 0.3]]))
    assert_close(ensemble(network, network, seen, 0.3), network)


@pytest.mark.parametrize("config", ["simbaseline", "zegformer"])
def test_clip_sees_the_crops_in_one_pass_as_one_by_one(demo: Callable[..., TwoStage], config: str) -> None:
    model = demo(config=config).eval()
    vocabulary = MetadataCatalog.get("demo_world_val").class_split
    image, masks = torch.randn(3, 64, 64), torch.zeros(3, 64, 64, dtype=torch.bool)
    masks[0, 10:40, 5:30] = True
    masks[2, 50:, :] = True
    background = torch.tensor([3.0, 0.0, 9.0])
    with torch.no_grad():
        found = model.clip_probabilities(image, masks, background, vocabulary)
    assert (found[1] == 1).all()  # an empty mask: CLIP says nothing
    seen, texts = model.seen_mask(vocabulary), model.prototypes(vocabulary)
    for q in (0, 2):
        (rows,), (columns,) = (masks[q].any(1).nonzero(as_tuple=True), masks[q].any(0).nonzero(as_tuple=True))
        box = (image * masks[q])[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        crop = torch.nn.functional.interpolate(box[None], size=(64, 64), mode="bicubic")
        with torch.no_grad():
            (feature,) = model.clip_visual(crop)
        logits = model.classifier.logit_scale * (texts @ feature) / feature.norm()
        if config == "simbaseline":
            expected = (logits - logits.logsumexp(0)).exp()
        else:
            expected = logits.exp() / (logits.exp().sum() + background[q].exp())
            expected[seen] = expected[seen].mean()
        assert_close(found[q], expected)


def test_scores_are_those_of_the_combined_classes(demo: Callable[..., TwoStage]) -> None:
    """Everything from the proposals that the model returns, in plain steps."""
    model = demo("MODEL.TWO_STAGE.SEEN_DISCOUNT", 0.1).eval()
    (inputs,) = demo_inputs(1, "demo_world_val")
    vocabulary = MetadataCatalog.get("demo_world_val").class_split
    (out,) = model.inference([inputs], proposals=True)
    proposals = out["proposals"]
    network = proposals["class_logits"].softmax(-1)[:, :-1]
    masks = torch.nn.functional.interpolate(proposals["mask_logits"][None], size=(64, 64), mode="bilinear")[0].sigmoid()
    with torch.no_grad():
        image = model.normalised(inputs)
        clip = model.clip_probabilities(image, masks > 0.5, proposals["class_logits"][:, -1], vocabulary)
    seen = model.seen_mask(vocabulary)
    exponent = torch.where(seen, 0.8, 0.2)
    expected = torch.einsum("qk,qhw->khw", network**exponent * clip ** (1 - exponent), masks)
    assert_close(out["sem_seg"], expected - 0.1 * seen[:, None, None])
    labels = model.inference([inputs], output="labels")[0]["sem_seg_labels"]
    assert torch.equal(labels, out["sem_seg"].argmax(0))


# ---- the model ----
def test_gradient_reaches_exactly_what_should_learn(demo: Callable[..., TwoStage]) -> None:
    model = demo().train()
    assert not model.clip_visual.training
    losses = model(demo_inputs())
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice", "loss_reg"}
    sum(losses.values()).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(model.state_dict())
    assert not any(name.startswith("clip_visual.") for name in model.state_dict())


def test_without_the_second_stage_clip_is_not_asked(demo: Callable[..., TwoStage], monkeypatch: pytest.MonkeyPatch) -> None:
    model = demo("MODEL.TWO_STAGE.CROPS.ENSEMBLE", "none").eval()
    monkeypatch.setattr(model.clip_visual, "forward", None)
    assert model(demo_inputs(1))[0]["sem_seg"].isfinite().all()


def test_pbc_is_a_part_by_config(demo: Callable[..., TwoStage]) -> None:
    model = demo("MODEL.ALIGNZEG.PBC.POSTPROCESSOR", "PBC", "MODEL.ALIGNZEG.PBC.TOP_K", 8)
    assert "loss_bc" in model.train()(demo_inputs())
    assert model.eval()(demo_inputs(1))[0]["sem_seg"].isfinite().all()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("CROPS.ENSEMBLE", "mean", "ENSEMBLE must be one of"),
        ("CROPS.WEIGHT", 1.5, "WEIGHT must be"),
        ("DECODER.HEADS", 5, "width 96 must be a multiple of MODEL.TWO_STAGE.DECODER.HEADS 5"),
    ],
)
def test_broken_configs(demo: Callable[..., TwoStage], key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        demo(f"MODEL.TWO_STAGE.{key}", value)
