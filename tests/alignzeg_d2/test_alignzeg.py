"""The whole model: what learns, batches, vocabularies, outputs."""

import math

import numpy as np
import pytest
import torch
from comparisons import assert_close, assert_same_labels
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis

from alignzeg_d2 import AlignZeg
from alignzeg_d2.inference import PBC
from zeroshot_d2 import IGNORE_LABEL, ClassSplit, demo_world

LEARNT_ROOMS = ("image_encoder", "feature_fusion", "pixel_decoder", "semantic_decoder", "classifier", "class_indicator")
TRAIN_SPLIT = demo_world.SPLIT.only_seen()


def training_inputs(count=2, **changes):
    table = MetadataCatalog.get("demo_world_train_seen").label_table
    inputs = []
    for index in range(count):
        rendered = demo_world.render(0, index)
        inputs.append(
            {
                "image": torch.from_numpy(rendered.image).permute(2, 0, 1),
                "sem_seg": torch.from_numpy(table.apply(rendered.label).astype(np.int64)),
                "dataset_name": "demo_world_train_seen",
                **changes,
            }
        )
    return inputs


def image(height=64, width=64, seed=0):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture(scope="module")
def model(demo_model):
    """Shared by the tests that do not train it; its class indicator and phi_cls are no longer at their starting values."""
    torch.manual_seed(0)
    model = demo_model("MODEL.ALIGNZEG.TEST.RETURN_PROPOSALS", True)
    torch.nn.init.normal_(model.classifier.phi_cls[-1].weight, std=0.1)
    torch.nn.init.normal_(model.class_indicator.layers[-1].weight, std=3.0)
    with torch.no_grad():  # half of the proposals of one image are above gamma
        (out,) = model([{"image": image(50, 64)}])
        middle = out["proposals"]["class_indicator"].logit().sort().values[7:9].mean()  # between two of the 16
        model.class_indicator.layers[-1].bias -= middle - math.log(0.3 / 0.7)
    return model


# ---- what learns ----
@pytest.mark.parametrize("prompts", [0, 3])
def test_gradient_reaches_exactly_what_should_learn(demo_model, prompts):
    model = demo_model("MODEL.ALIGNZEG.CLIP.NUM_PROMPTS", prompts).train()
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    expected = {name for name, _ in model.named_parameters() if name.startswith(LEARNT_ROOMS)}
    expected -= {name for name in expected if name.startswith("semantic_decoder.") and name != "semantic_decoder.bias_scale"}
    assert learns == expected | ({"clip_image_encoder.prompts"} if prompts else set())

    sum(model(training_inputs()).values()).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == learns
    # phi_cls starts with a last layer of zeros, behind which the first one has no gradient yet.
    still = {name for name, p in model.named_parameters() if p.grad is not None and not p.grad.any()}
    assert still <= {"classifier.phi_cls.0.weight", "classifier.phi_cls.0.bias"}


def test_frozen_parameters_are_bit_identical_after_training_and_the_rest_moves(demo_model):
    model = demo_model().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum(model(training_inputs()).values()).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (not parameter.requires_grad), name


@pytest.mark.parametrize("detach", [True, False])
def test_detach_keeps_the_indicator_out_of_the_features(demo_model, detach):
    model = demo_model("MODEL.ALIGNZEG.PBC.DETACH", detach).train()
    model(training_inputs())["loss_bc"].backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == (
        {"class_indicator"}
        if detach
        else {"class_indicator", "image_encoder", "feature_fusion", "pixel_decoder", "semantic_decoder"}
    )


@pytest.mark.slow
def test_training_on_one_image_lowers_the_loss(demo_model):
    torch.manual_seed(0)
    model = demo_model("MODEL.ALIGNZEG.LOSS.NUM_POINTS", 0).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    totals = []
    for _ in range(40):
        loss = sum(model(training_inputs(1)).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(loss.item())
    assert sum(totals[-5:]) < 0.75 * sum(totals[:5])


@pytest.mark.parametrize("sem_seg", [torch.full((64, 64), IGNORE_LABEL)])
def test_images_without_a_seen_class(demo_model, sem_seg):
    model = demo_model().train()
    losses = model(training_inputs(sem_seg=sem_seg))
    assert all(value.isfinite() for value in losses.values())
    assert losses["loss_mask"] == losses["loss_dice"] == losses["loss_bc"] == losses["loss_vir"] == 0
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert all(not g.any() for name, g in gradients.items() if name.startswith("class_indicator"))


def test_mixed_precision_on_images_of_different_sizes(demo_model):
    model = demo_model().train()
    first, second = training_inputs()
    second = {**second, "image": second["image"][:, :40, :50], "sem_seg": second["sem_seg"][:40, :50]}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([first, second])
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice", "loss_vir", "loss_reg", "loss_bc"}
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    sum(losses.values()).backward()


def test_a_batch_of_two_vocabularies_is_refused(demo_model):
    first, second = training_inputs()
    with pytest.raises(ValueError, match="mixes data sets of different vocabularies"):
        demo_model().train()([first, {**second, "dataset_name": "demo_world_val"}])


# ---- inference ----
def test_a_batch_gives_what_its_images_give_alone(model):
    sizes = [(64, 64), (40, 64), (64, 64), (57, 63), (100, 30)]  # the fourth is padded to the size of the first
    inputs = [{"image": image(*size, seed=i), "height": 30 + i, "width": 50} for i, size in enumerate(sizes)]
    together = model(inputs)
    for i, out in enumerate(together):
        (alone,) = model([inputs[i]])
        assert out["sem_seg"].shape == (len(demo_world.SPLIT), 30 + i, 50)
        assert_close(out["sem_seg"], alone["sem_seg"])
        assert_close(out["proposals"]["class_logits"], alone["proposals"]["class_logits"])


def test_reordered_classes_give_reordered_scores(model):
    split = demo_world.SPLIT
    order = np.random.default_rng(0).permutation(len(split)).tolist()
    reordered = ClassSplit([split.names[i] for i in order], unseen=split.unseen)
    (plain,) = model([{"image": image(), "vocabulary": split}])
    (moved,) = model([{"image": image(), "vocabulary": reordered}])
    assert_close(moved["sem_seg"], plain["sem_seg"][order])


def test_display_names_do_not_matter_prompts_do(model):
    split = demo_world.SPLIT
    renamed = ClassSplit([f"class {i}" for i in range(len(split))], unseen=[f"class {i}" for i in split.unseen_indices],
                         prompts=split.prompts)  # fmt: skip
    (plain,) = model([{"image": image(), "vocabulary": split}])
    (other,) = model([{"image": image(), "vocabulary": renamed}])
    assert_close(other["sem_seg"], plain["sem_seg"])
    swapped = ClassSplit(split.names, unseen=split.unseen, prompts=[split.prompts[1], split.prompts[0], *split.prompts[2:]])
    (exchanged,) = model([{"image": image(), "vocabulary": swapped}])
    with pytest.raises(AssertionError):
        assert_close(exchanged["sem_seg"][:2], plain["sem_seg"][:2], tolerance=0.01)


def test_where_the_vocabulary_comes_from(model):
    names = ["dark sand", "red tile|crimson tile", "dotted green tile"]
    assert model([{"image": image(), "vocabulary": names, "dataset_name": "demo_world_val"}])[0]["sem_seg"].shape[0] == 3
    unseen = model([{"image": image(), "dataset_name": "demo_world_val_unseen"}])[0]["sem_seg"]
    assert unseen.shape[0] == len(demo_world.DEMO_WORLD.unseen)
    default = model([{"image": image()}])[0]["sem_seg"]
    assert_close(default, model([{"image": image(), "dataset_name": "demo_world_val"}])[0]["sem_seg"])
    several = model([{"image": image(), "vocabulary": names}, {"image": image(), "dataset_name": "demo_world_val_unseen"}])
    assert [out["sem_seg"].shape[0] for out in several] == [3, len(demo_world.DEMO_WORLD.unseen)]


@pytest.mark.parametrize(
    ("names", "message"), [([], "empty"), (["cat", "dog", "cat"], "more than once"), (["cat", " "], "empty")]
)
def test_broken_vocabularies(model, names, message):
    with pytest.raises(ValueError, match=message):
        model([{"image": image(), "vocabulary": names}])


def test_neither_vocabulary_nor_data_set(demo_model):
    with pytest.raises(ValueError, match="neither"):
        demo_model("DATASETS.TEST", ())([{"image": image()}])
    with pytest.raises(ValueError, match="no data set 'unregistered_set' is registered: `--import FILE`"):
        demo_model()([{"image": image(), "dataset_name": "unregistered_set"}])


def test_default_predictor_takes_the_first_test_set(demo_cfg):
    predictor = DefaultPredictor(demo_cfg("DATASETS.TEST", ("demo_world_val_unseen", "demo_world_val")))
    out = predictor(np.zeros((48, 80, 3), dtype=np.uint8))
    assert out["sem_seg"].shape == (len(demo_world.DEMO_WORLD.unseen), 48, 80)


def test_labels_are_the_argmax_of_the_scores(demo_model, model):
    torch.manual_seed(0)
    by_label = demo_model("MODEL.ALIGNZEG.TEST.OUTPUT", "labels", "MODEL.ALIGNZEG.TEST.CHUNK_PIXELS", 500)
    by_label.load_state_dict(model.state_dict())
    inputs = [{"image": image(50, 64), "height": 75, "width": 96}]
    out, by_score = by_label(inputs)[0], model(inputs)[0]
    scores = by_score["sem_seg"]
    assert "sem_seg" not in out and out["sem_seg_labels"].dtype == torch.long
    assert_same_labels(out["sem_seg_labels"], scores.argmax(0), scores)
    assert_close(out["sem_seg_confidence"], scores.amax(0) / by_score["sem_seg_coverage"])


def test_what_a_call_asks_for_does_not_stick(demo_model):
    model, inputs = demo_model(), [{"image": image()}]
    wishes = [
        ({}, {"sem_seg", "sem_seg_coverage"}),
        ({"output": "labels"}, {"sem_seg_labels", "sem_seg_confidence"}),
        ({"proposals": True}, {"sem_seg", "sem_seg_coverage", "proposals"}),
        ({"output": "labels", "proposals": True}, {"sem_seg_labels", "sem_seg_confidence", "proposals"}),
        ({"output": "scores", "proposals": False}, {"sem_seg", "sem_seg_coverage"}),
    ]
    for wish, expected in wishes:
        assert set(model.inference(inputs, **wish)[0]) == expected
        assert set(model(inputs)[0]) == {"sem_seg", "sem_seg_coverage"}
    with pytest.raises(ValueError, match=r"the output must be one of \('scores', 'labels'\), got 'masks'"):
        model.inference(inputs, output="masks")
    # A call may also ask for less than the config does.
    generous = demo_model("MODEL.ALIGNZEG.TEST.RETURN_PROPOSALS", True, "MODEL.ALIGNZEG.TEST.OUTPUT", "labels")
    assert set(generous.inference(inputs, output="scores", proposals=False)[0]) == {"sem_seg", "sem_seg_coverage"}
    assert set(generous(inputs)[0]) == {"sem_seg_labels", "sem_seg_confidence", "proposals"}


def test_proposals_are_classified_once_an_image(demo_model, monkeypatch):
    """Also where the proposals, which hold the refined features, are asked for."""
    model = demo_model()
    refined = []
    refine = model.classifier.refine

    def counted(features):
        refined.append(features.shape)
        return refine(features)

    monkeypatch.setattr(model.classifier, "refine", counted)
    sizes = [(64, 64), (40, 64), (64, 64)]
    model.inference([{"image": image(*size, seed=i)} for i, size in enumerate(sizes)], proposals=True)
    assert refined == [(16, 96)] * 3
    refined.clear()
    model.train()(training_inputs())
    assert refined == [(2, 16, 96)]


def test_proposals_cover_the_image_and_explain_the_scores(model):
    (out,) = model([{"image": image(50, 64)}])
    proposals = out["proposals"]
    k = len(demo_world.SPLIT)
    assert proposals["mask_logits"].shape == (16, 12, 16)  # 50 of 56 padded rows at 4 pixels a cell
    assert proposals["class_logits"].shape == proposals["corrected_logits"].shape == (16, k + 1)
    indicator = proposals["class_indicator"]
    assert indicator.shape == (16,) and ((indicator >= 0) & (indicator <= 1)).all()
    flagged, seen = indicator > 0.3, torch.from_numpy(demo_world.SPLIT.seen_mask)
    assert flagged.any() and not flagged.all()
    lowest = proposals["class_logits"][:, :k].min()
    assert (proposals["corrected_logits"][flagged][:, :k][:, seen] == lowest).all()
    kept = proposals["corrected_logits"] == proposals["class_logits"]
    assert kept[~flagged].all() and kept[:, :k][:, ~seen].all() and kept[:, k].all()
    (whole,) = model([{"image": image(56, 64)}])
    probabilities = whole["proposals"]["corrected_logits"].softmax(-1)[:, :k]
    masks = torch.nn.functional.interpolate(whole["proposals"]["mask_logits"][None], size=(56, 64), mode="bilinear")[0]
    expected = torch.einsum("qk,qhw->khw", probabilities, masks.sigmoid())
    assert_close(whole["sem_seg"], expected)


def test_seen_is_what_training_knew_by_name_or_synonym(model):
    foreign = ClassSplit(
        ["Striped Green Tile", "pavement", "zebra", "dotted green tile"],
        prompts=["striped green tile", "dark sand|pavement", "zebra", "dotted green tile"],
    )
    assert model.seen_mask(foreign).tolist() == [True, True, False, False]
    assert torch.equal(model.seen_mask(demo_world.SPLIT), torch.from_numpy(demo_world.SPLIT.seen_mask))
    # A class that the split calls unseen stays unseen, whatever the training set had.
    assert model.seen_mask(ClassSplit(["dark sand", "zebra"], unseen=["dark sand"])).tolist() == [False, False]


def test_the_postprocessor_alone_decides_on_pbc(demo_model):
    without = demo_model("MODEL.ALIGNZEG.PBC.POSTPROCESSOR", "NoCorrection")
    assert without.class_indicator is None
    assert not any(name.startswith("class_indicator") for name in without.state_dict())
    (out,) = without.inference([{"image": image()}], proposals=True)
    assert out["sem_seg"].isfinite().all() and out["proposals"]["class_indicator"] is None
    assert torch.equal(out["proposals"]["class_logits"], out["proposals"]["corrected_logits"])
    assert "loss_bc" not in without.train()(training_inputs())
    with_pbc = demo_model()
    assert with_pbc.class_indicator is not None and "loss_bc" in with_pbc.train()(training_inputs())


def test_a_correction_without_an_indicator_is_refused(demo_cfg):
    arguments = AlignZeg.from_config(demo_cfg("MODEL.ALIGNZEG.PBC.POSTPROCESSOR", "NoCorrection"))
    arguments["postprocessor"] = PBC(gamma=0.3)
    with pytest.raises(ValueError, match="PBC reads a class indicator, and the model has none"):
        AlignZeg(**arguments)


def test_bias_per_head(demo_model):
    model = demo_model("MODEL.ALIGNZEG.SEMANTIC_DECODER.BIAS_PER_HEAD", True)
    assert model.pixel_decoder.num_bias_heads == 4
    assert model([{"image": image()}])[0]["sem_seg"].isfinite().all()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.ALIGNZEG.PBC.TOP_K", 17, "TOP_K=17 exceeds .*NUM_QUERIES=16"),
        ("MODEL.ALIGNZEG.TEST.OUTPUT", "masks", "got 'masks'"),
        ("MODEL.ALIGNZEG.CLIP.NAME", "ViT-B-61", "unknown CLIP 'ViT-B-61'"),
        ("MODEL.ALIGNZEG.CLIP.TEMPLATES", "many", "TEMPLATES must be one of .* got .many."),
        ("MODEL.ALIGNZEG.CLIP.TAP", 4, "CLIP.TAP 4 must be one of the blocks"),
        ("DATASETS.TRAIN", ("unregistered_set",), "no data set 'unregistered_set' is registered"),
    ],
)
def test_broken_configs(demo_cfg, key, value, message):
    with pytest.raises(ValueError, match=message):
        AlignZeg(demo_cfg(key, value))


def test_sides_are_padded_to_whole_patches_of_both_encoders(demo_model):
    """Patch 12 and CLIP's patch 8 at half the resolution need a multiple of both 12 and 16."""
    model = demo_model(
        "MODEL.ALIGNZEG.IMAGE_ENCODER.PATCH_SIZE", 12, "MODEL.ALIGNZEG.IMAGE_ENCODER.IMAGE_SIZE", 96,
        "MODEL.ALIGNZEG.CLIP.RESOLUTION", 0.5,
    )  # fmt: skip
    assert model.size_divisibility == 48
    assert model([{"image": image(50, 100)}])[0]["sem_seg"].shape[1:] == (50, 100)


def test_text_tower_is_let_go(model):
    assert not any("token_embedding" in name or "text" in name for name, _ in model.named_parameters())
    assert model.text_embeddings(TRAIN_SPLIT.prompts).shape == (len(TRAIN_SPLIT), 96)


def test_built_by_name(demo_cfg):
    assert isinstance(build_model(demo_cfg()), AlignZeg)


def test_a_resolution_that_cuts_patches_of_clip_is_an_error(demo_model):
    with pytest.raises(ValueError, match=r"RESOLUTION=0.7 .* must be an integer"):
        demo_model("MODEL.ALIGNZEG.CLIP.RESOLUTION", 0.7)


# ---- texts ----
def test_released_or_reworded_names_stand_for_the_classes(demo_model, demo_cfg):
    split = ClassSplit(["tile-red", "grass"], prompts=["plain red tile|red tile", "grass"], released=["tile-red", "grass"])
    found = {}
    for names in ("released", "reworded"):
        model = demo_model("MODEL.ALIGNZEG.CLIP.NAMES", names)
        assert model.result_facts["class_names"] == names and "a photo of a {}." in model.result_facts["templates"]
        found[names] = model.prototypes(split)
        assert torch.equal(found[names], model.text_embeddings(split.prompts_for(names)))
    assert_close(found["released"][1], found["reworded"][1])
    assert (found["released"][0] - found["reworded"][0]).abs().max() > 0.01
    with pytest.raises(ValueError, match=r"MODEL.ALIGNZEG.CLIP.NAMES must be one of .*'released'.*, got 'plain'"):
        build_model(demo_cfg("MODEL.ALIGNZEG.CLIP.NAMES", "plain"))


# ---- beside Detectron2's own tools ----
def test_raw_label_values_are_refused(demo_model):
    """Detectron2's own mapper hands over the values of the label image."""
    (inputs,) = training_inputs(1)
    inputs["sem_seg"] = torch.full_like(inputs["sem_seg"], len(TRAIN_SPLIT))
    with pytest.raises(ValueError, match=rf"training labels hold {len(TRAIN_SPLIT)}, .*SegmentationMapper"):
        demo_model().train()([inputs])


def test_operators_of_inference_can_be_counted(model):
    """fvcore's counter traces the model, which an ``out=`` argument would break."""
    flops = (
        FlopCountAnalysis(_OneImage(model), (image().float(),))
        .unsupported_ops_warnings(False)
        .uncalled_modules_warnings(False)
    )
    assert flops.total() > 1e6 and flops.by_operator()["matmul"] > 0


class _OneImage(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        return self.model.inference([{"image": image}], output="scores", proposals=False)[0]["sem_seg"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inference_under_autocast(model, dtype):
    inputs = [{"image": image()}]
    expected = model.inference(inputs, output="scores", proposals=False)[0]["sem_seg"]
    with torch.autocast("cpu", dtype=dtype):
        given = model.inference(inputs, output="scores", proposals=False)[0]["sem_seg"].float()
    assert given.shape == expected.shape and torch.isfinite(given).all()
    assert (given.argmax(0) == expected.argmax(0)).float().mean() > 0.5  # random proposals are easily changed
