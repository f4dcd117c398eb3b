"""The whole model: what learns, what it keeps, vocabularies, batches, and wrong configs."""

import numpy as np
import pytest
import torch
from comparisons import assert_close
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor

from epsilon_d2 import Epsilon
from epsilon_d2.tagger import positive_matrix
from zeroshot_d2 import ClassSplit
from zeroshot_d2.word_vectors import WordVectorEmbeddings

BACKBONE, LABELS = "MODEL.EPSILON.BACKBONE", "MODEL.EPSILON.LABEL_EMBEDDINGS"
SPLIT = MetadataCatalog.get("demo_world_multilabel_test").class_split


def test_training_moves_what_learns_and_nothing_else(epsilon_model, inputs):
    model = epsilon_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)
    for _ in range(2):
        losses = model(inputs)
        assert set(losses) == {"loss_rank", "loss_reg"} and all(loss.isfinite() for loss in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert all(torch.equal(value, frozen[name]) for name, value in model.backbone.state_dict().items())
    assert all(p.grad is None for p in model.backbone.parameters())
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert same <= {"label_mean", "gpa.key.bias", "gfp.bias2"}, same


def test_no_activation_of_the_backbone_is_kept(epsilon_model, inputs):
    model = epsilon_model().train()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        tokens = model.backbone(torch.rand(2, 3, 64, 64))["tokens"]
    assert kept == [] and not tokens.requires_grad and tokens.shape == (2, 64, 128)
    assert not model.backbone.training


def test_a_batch_gives_what_its_images_give_alone(epsilon_model, inputs):
    model = epsilon_model("MODEL.EPSILON.TEST.RETURN_ATTENTION", True)
    with torch.no_grad():
        together = model(inputs)
        alone = [model([x])[0] for x in inputs]
    for a, b in zip(together, alone, strict=True):
        assert set(a) == {"scores", "group_attention", "global_attention", "group_of_class"}
        for key in set(a) - {"group_of_class"}:
            assert_close(a[key], b[key])
    assert together[0]["scores"].shape == (len(SPLIT.only_seen()),)
    for key in ("group_attention", "global_attention"):
        attention = together[0][key]
        assert attention.shape == (8, 8, 8)
        assert_close(attention.sum((1, 2)), torch.ones(8))


def test_the_group_of_a_class_is_the_one_that_gave_its_score(epsilon_model, inputs):
    model = epsilon_model("MODEL.EPSILON.TEST.RETURN_ATTENTION", True)
    with torch.no_grad():
        output = model(inputs[:1])[0]
        vectors = model.extract_semantics(model.images_of(inputs[:1])).vectors[0]
        by_group = vectors @ model.label_vectors(SPLIT.only_seen()).T
    assert_close(by_group.gather(0, output["group_of_class"][None])[0], output["scores"])


def test_what_a_call_asks_for_does_not_stick(epsilon_model, inputs):
    looks = {"scores", "group_attention", "global_attention", "group_of_class"}
    model, generous = epsilon_model(), epsilon_model("MODEL.EPSILON.TEST.RETURN_ATTENTION", True)
    for wish, expected in (({}, {"scores"}), ({"attention": True}, looks), ({"attention": False}, {"scores"})):
        assert set(model.inference(inputs, **wish)[0]) == expected
        assert set(model(inputs)[0]) == {"scores"}
    assert set(generous.inference(inputs, attention=False)[0]) == {"scores"}
    assert set(generous(inputs)[0]) == looks


def test_scores_follow_the_vocabulary(epsilon_model, inputs):
    model = epsilon_model()
    image = inputs[0]["image"]
    names = ["red tile", "dark water", "striped thing|zebra"]
    with torch.no_grad():
        forward, backward, default, split = model(
            [
                {"image": image, "vocabulary": names},
                {"image": image, "vocabulary": names[::-1]},
                {"image": image},
                {"image": image, "vocabulary": ClassSplit(SPLIT.names[:3])},
            ]
        )
    assert_close(forward["scores"], backward["scores"].flip(0))
    assert default["scores"].shape == (len(SPLIT),)
    assert_close(split["scores"], default["scores"][:3])


def test_images_of_any_size_are_squeezed(epsilon_model):
    model = epsilon_model()
    flat = torch.full((3, 30, 100), 90, dtype=torch.uint8)
    with torch.no_grad():
        scores = [model([{"image": image}])[0]["scores"] for image in (flat, flat[:, :, :50], flat.float())]
    assert_close(scores[1], scores[0])
    assert_close(scores[2], scores[0])


def test_default_predictor(epsilon_cfg):
    result = DefaultPredictor(epsilon_cfg())(np.zeros((40, 90, 3), dtype=np.uint8))
    assert result["scores"].shape == (len(SPLIT),)


@pytest.mark.parametrize(("gpa", "gfp"), [(False, False), (True, False), (False, True)])
def test_ablations(epsilon_model, inputs, gpa, gfp):
    model = epsilon_model("MODEL.EPSILON.GPA.ENABLED", gpa, "MODEL.EPSILON.GFP.ENABLED", gfp, "MODEL.EPSILON.NUM_GROUPS", 2)
    assert (model.gpa is not None, model.gfp is not None) == (gpa, gfp)
    assert (model.average_pooling is None) == (gpa or gfp)
    semantics = model.extract_semantics(torch.rand(2, 3, 64, 64))
    assert semantics.vectors.shape == (2, 2, 96)
    assert sum(model.train()(inputs).values()).isfinite()


def test_label_vectors_are_centred_on_the_training_vocabulary(epsilon_model):
    centred, plain = epsilon_model(), epsilon_model(f"{LABELS}.CENTRE", False)
    assert plain.label_mean.eq(0).all() and centred.label_mean.ne(0).any()
    vectors = plain.label_vectors(SPLIT)
    seen = plain.label_vectors(SPLIT.only_seen())
    torch.testing.assert_close(centred.label_mean, seen.mean(0))
    expected = torch.nn.functional.normalize(vectors - seen.mean(0), dim=-1)
    torch.testing.assert_close(centred.label_vectors(SPLIT), expected)


def test_word_vectors_from_a_file(epsilon_model, tmp_path, inputs):
    words = sorted({word for name in SPLIT.names for word in name.split()})
    np.savez(tmp_path / "words.npz", names=np.array(words), vectors=np.random.default_rng(0).normal(size=(len(words), 12)))
    model = epsilon_model(f"{LABELS}.SOURCE", "file", f"{LABELS}.FILE", str(tmp_path / "words.npz"))
    assert isinstance(model.label_embeddings, WordVectorEmbeddings)
    assert model.semantic_fuser.project.out_features == 12
    assert sum(model.train()(inputs).values()).isfinite()


def test_cls_token_is_not_drawn(epsilon_model, inputs):
    model = epsilon_model(f"{BACKBONE}.CLS_TOKEN", True, "MODEL.EPSILON.TEST.RETURN_ATTENTION", True)
    assert model.backbone(torch.rand(1, 3, 64, 64))["tokens"].shape == (1, 65, 128)
    with torch.no_grad():
        attention = model(inputs[:1])[0]["group_attention"]
    assert attention.shape == (8, 8, 8) and (attention.sum((1, 2)) < 1).all()


# ------------------------------------------------------------------------------------------------------ errors
def test_positive_matrix():
    assert positive_matrix([[1], [], np.array([0, 2])], 3).int().tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 1]]
    for labels in ([3], [-1]):
        with pytest.raises(ValueError, match="not all among the 3 classes"):
            positive_matrix([[0], labels], 3)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (f"{BACKBONE}.NAME", "demo-world-clop", "unknown CLIP 'demo-world-clop'"),
        (f"{BACKBONE}.TAP", 7, r"TAP must be 0 \(the last block\) or 1 to 6, got 7"),
        (f"{LABELS}.SOURCE", "glove", "SOURCE must be one of 'file', 'clip', got 'glove'"),
        (f"{LABELS}.CLIP_NAME", "vit_small_patch14_dinov2", "no text tower: set SOURCE .*word vectors"),
        (f"{LABELS}.TEMPLATES", "none", "TEMPLATES must be one of .*, got 'none'"),
        ("MODEL.EPSILON.LOSS.RANK_FORM", "hinge", "'hinge'"),
        ("MODEL.EPSILON.GPA.ENCODER_HEADS", 5, "ENCODER_HEADS 5 does not divide"),
        ("DATASETS.TRAIN", ("no_such_set",), "no data set 'no_such_set' is registered"),
    ],
)
def test_broken_configs(epsilon_cfg, key, value, message):
    with pytest.raises(ValueError, match=message):
        Epsilon(epsilon_cfg(key, value))


def test_pixel_statistics_of_other_weights_are_refused(epsilon_cfg):
    trained = (f"{BACKBONE}.PRETRAINED", "bundled")
    Epsilon(epsilon_cfg(*trained))
    with pytest.raises(
        ValueError, match=r"PIXEL_MEAN \[0.0, 0.0, 0.0\] .*were trained with.* set MODEL.PIXEL_MEAN \"\[122.771"
    ):
        Epsilon(epsilon_cfg(*trained, "MODEL.PIXEL_MEAN", [0.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match=r"INPUT.FORMAT BGR, set MODEL.PIXEL_MEAN \"\[104.094, 116.746, 122.771\]"):
        Epsilon(epsilon_cfg(*trained, "INPUT.FORMAT", "BGR"))
