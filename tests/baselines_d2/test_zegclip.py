"""ZegCLIP: the values of the public code, windows, pseudo labels, and what learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import open_clip
import pytest
import torch
from comparisons import assert_close
from detectron2.data import MetadataCatalog
from torch import Tensor

from baselines_d2.zegclip import (
    PromptedClip,
    TextDecoder,
    ZegCLIP,
    accuracy,
    focal_loss,
    present_dice_loss,
    with_pseudo_labels,
)
from tests.baselines_d2.golden import Golden, golden_files
from zeroshot_d2 import IGNORE_LABEL, ClassSplit, demo_world, load_config
from zeroshot_d2.clip.text import encode_tokens

LAYER = {
    "multihead_attn.q": "attention.query",
    "multihead_attn.k": "attention.key",
    "multihead_attn.v": "attention.value",
    "multihead_attn.proj": "attention.out",
    "norm2": "norm_attention",
    "linear1": "feed_forward.0",
    "linear2": "feed_forward.3",
    "norm3": "norm_feed_forward",
}
PROMPTS = ("backbone.prompt_embeddings", "backbone.deep_prompt_embeddings")


# ---- golden values ----
def our_name(key: str) -> str | None:
    """The name here of one of ZegCLIP's learnt weights but the prompts; None where it is unused or frozen."""
    for theirs, ours in (("backbone.prompt_proj", "prompt_projection"), ("backbone.prompt_norm", "prompt_norm")):
        if key.startswith(f"{theirs}."):
            return f"clip_image_encoder.{ours}.{key.rpartition('.')[2]}"
    part, _, kind = key.rpartition(".")
    if part == "decode_head.q_proj":
        return f"decoder.descriptor.{kind}"
    layer = part.removeprefix("decode_head.decoder_1.layers.").partition(".")
    return f"decoder.layers.{layer[0]}.{LAYER[layer[2]]}.{kind}" if layer[2] in LAYER else None


def golden_clip(golden: Golden, text_heads: int = 1) -> open_clip.CLIP:
    sizes, state = golden.config, golden.below("state")
    blocks = {key.split(".")[3] for key in state if key.startswith("text_encoder.transformer.resblocks.")}
    clip = open_clip.CLIP(
        sizes["out"],
        {
            "image_size": sizes["img"],
            "layers": sizes["layers"],
            "width": sizes["width"],
            "head_width": sizes["width"] // sizes["heads"],
            "patch_size": sizes["patch"],
        },
        {
            "context_length": sizes["ctx"],
            "vocab_size": sizes["vocab"],
            "width": state["text_encoder.token_embedding.weight"].shape[1],
            "heads": text_heads,
            "layers": len(blocks),
        },
        quick_gelu=True,
    ).eval()
    found = {"logit_scale": clip.logit_scale.data}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part == "text_encoder":
            found[rest] = value
        elif part == "backbone" and "prompt" not in rest:
            found[f"visual.{rest}"] = value
    clip.load_state_dict(found)
    return clip


@pytest.fixture(params=golden_files("zegclip"))
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture
def model(golden: Golden) -> ZegCLIP:
    sizes, vectors = golden.config, golden["in/text_embeddings"]
    texts = mock.Mock(side_effect=lambda prompts: vectors[[int(prompt[1:]) for prompt in prompts]])
    texts.templates = ()
    clip = golden_clip(golden)
    model = ZegCLIP(
        clip_image_encoder=PromptedClip(
            clip.visual, image_size=sizes["img"], num_prompts=sizes["tokens"], depth=sizes["deep"], dropout=0.0
        ),
        decoder=TextDecoder(width=sizes["out"], num_layers=sizes["dec_layers"], num_heads=sizes["dec_heads"], dropout=0.0),
        clip_identity={"sha256": ""},
        window=sizes["img"],
        stride=sizes["stride"],
        mask_weight=sizes["mask_weight"] * sizes["loss_weight"],
        dice_weight=sizes["dice_weight"] * sizes["loss_weight"],
        text_embeddings=texts,
        names="released",
        trained_classes=[f"w{k}" for k in sizes["base"]],
        default_vocabulary=vocabulary(golden),
        pixel_mean=[0.0, 0.0, 0.0],  # the golden images are normalised
        pixel_std=[1.0, 1.0, 1.0],
    )
    state = golden.below("state")
    learnt = {"clip_image_encoder.prompts": torch.cat([state[PROMPTS[0]], state[PROMPTS[1]]])}
    for key, value in state.items():
        if (name := our_name(key) if "prompt" in key or key.startswith("decode_head.") else None) is not None:
            learnt[name] = value
    assert set(learnt) == set(model.state_dict())
    model.load_state_dict(learnt, strict=False)
    return model.eval()


def vocabulary(golden: Golden) -> ClassSplit:
    sizes = golden.config
    unseen = [k for k in sizes["both"] if k not in sizes["base"]]
    return ClassSplit(tuple(f"w{k}" for k in sizes["both"]), tuple(f"w{k}" for k in unseen))


@torch.no_grad()
def test_golden_text_tower(golden: Golden) -> None:
    """The file does not say how many heads it has: with one number that divides its width, the values are the same."""
    width = golden["state/text_encoder.token_embedding.weight"].shape[1]
    expected, tokens = golden["out/text_encoded"], golden["in/text_tokens"]
    found = {heads: encode_tokens(golden_clip(golden, heads), tokens) for heads in range(1, width + 1) if width % heads == 0}
    nearest = min(found, key=lambda heads: (found[heads] - expected).abs().max().item())
    golden.check("out/text_encoded", found[nearest])


@torch.no_grad()
def test_golden_evaluation(golden: Golden, model: ZegCLIP) -> None:
    trunk, decoder = model.clip_image_encoder, model.decoder
    outputs: list[Tensor] = []
    hooks = [block.ln_1.register_forward_pre_hook(lambda _, args: outputs.append(args[0])) for block in trunk.blocks]
    hooks.append(trunk.blocks[-1].ln_2.register_forward_pre_hook(lambda _, args: outputs.append(args[0])))
    hooks.append(trunk.blocks[-1].mlp.register_forward_hook(lambda _, args, out: outputs.append(out)))
    patches, cls = trunk(golden["in/image"])
    *inputs, attended, perceived = outputs
    for hook in hooks:
        hook.remove()
    for index, tokens in enumerate(inputs):
        golden.check(f"out/block_{index}_input", tokens.transpose(0, 1))
    golden.check("out/last_block_output", (attended + perceived).transpose(0, 1))
    golden.check("out/visual_embedding", patches)
    golden.check("out/global_embedding", cls)
    wide_patches, wide_cls = trunk(golden["in/wide_image"])
    golden.check("out/wide_visual_embedding", wide_patches)
    golden.check("out/wide_global_embedding", wide_cls)

    vectors, memory = golden["in/text_embeddings"], patches.flatten(2).transpose(1, 2)
    noted: list[Tensor] = []
    hook = decoder.descriptor.register_forward_pre_hook(lambda _, args: noted.append(args[0]))
    queries = decoder.queries(cls, vectors)
    hook.remove()
    golden.check("out/descriptor", noted[0])
    golden.check("out/queries", queries)
    for index, layer in enumerate(decoder.layers):
        golden.check(f"out/decoder_attention_{index}", layer.attention.products(queries, memory))
        queries = layer(queries, memory)
        golden.check(f"out/decoder_queries_{index}", queries)

    scores = torch.stack([out["sem_seg"] for out in model([{"image": image} for image in golden["in/image"]])])
    golden.check("out/scores", scores)
    golden.check("out/encode_decode", scores)
    image, (height, width) = golden["in/slide_image"][0], golden.config["ori"]
    golden.check("out/slide", model([{"image": image}])[0]["sem_seg"][None])
    golden.check("out/slide_rescaled", model([{"image": image, "height": height, "width": width}])[0]["sem_seg"][None])
    model.self_training = True
    scores = torch.stack([out["sem_seg"] for out in model([{"image": image} for image in golden["in/image"]])])
    golden.check("out/scores_self_training", scores)
    left = {name for name in golden.unused("out/") if "train" not in name.split("/")[1]}
    assert left <= {"out/text_encoded"}


@pytest.mark.parametrize("case", ["train", "train_one_empty", "self_training"])
def test_golden_training(golden: Golden, model: ZegCLIP, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = golden["in/gt_semantic_seg_one_empty" if case == "train_one_empty" else "in/gt_semantic_seg"][:, 0].clone()
    truth[truth == 255] = IGNORE_LABEL
    classes = vocabulary(golden)
    model.self_training = case == "self_training"
    if not model.self_training:  # labels are indices among the seen classes, the others ignored
        table = torch.full((IGNORE_LABEL + 1,), IGNORE_LABEL)
        table[torch.tensor(golden.config["base"])] = torch.arange(len(golden.config["base"]))
        truth, classes = table[truth], classes.only_seen()
    noted: dict[str, Tensor] = {}

    def noting(logits: Tensor, sem_seg: Tensor, count: Tensor) -> Tensor:
        noted["logits"], noted["labels"] = logits, sem_seg
        return focal_loss(logits, sem_seg, count)

    monkeypatch.setattr("baselines_d2.zegclip.focal_loss", noting)
    images = golden["in/image"]
    losses = model.train()(
        [{"image": image, "sem_seg": labels, "vocabulary": classes} for image, labels in zip(images, truth, strict=True)]
    )
    noted["logits"].retain_grad()
    total = sum(losses.values())
    total.backward()
    used = noted["labels"].clone()
    used[used == IGNORE_LABEL] = 255
    assert torch.equal(used, golden[f"out/{case}/label_used"].long())
    for name, loss in losses.items():
        golden.check(f"loss/{case}/decode.{name}", loss)
    golden.check(f"loss/{case}/total", total)
    golden.check(f"loss/{case}/decode.acc_seg", torch.tensor([accuracy(noted["logits"], noted["labels"])]))
    if f"out/{case}/pred_masks" in golden:
        golden.check(f"out/{case}/pred_masks", noted["logits"])

    gradients = {name: p.grad for name, p in model.named_parameters()}
    prompts = gradients["clip_image_encoder.prompts"]
    for name in golden.below(f"grad/{case}"):
        if name == "pred_masks":
            given = noted["logits"].grad
        elif name in PROMPTS:
            given = prompts[:1] if name == PROMPTS[0] else prompts[1:]
        else:
            given = gradients[our_name(name)]
        golden.check(f"grad/{case}/{name}", given)
    assert golden.unused(f"loss/{case}/", f"grad/{case}/") == set()


# ---- parts ----
def test_focal_loss_by_hand() -> None:
    """An ignored pixel is a negative of both classes."""
    logits, count = torch.zeros(1, 2, 1, 2), torch.tensor(2.0)
    logits[0, 0, 0, 0] = 2.0
    truth = torch.tensor([[[0, IGNORE_LABEL]]])
    p = torch.sigmoid(torch.tensor(2.0)).item()
    first = 0.25 * (1 - p) ** 2 * -np.log(p) + 0.75 * 0.25 * np.log(2)
    second = 2 * 0.75 * 0.25 * np.log(2)
    assert focal_loss(logits, truth, count).item() == pytest.approx((first + second) / 2 / 2, rel=1e-5)


def test_dice_loss_is_of_the_classes_that_are_there() -> None:
    truth = torch.tensor([[[0, IGNORE_LABEL]], [[IGNORE_LABEL, IGNORE_LABEL]]])
    logits = torch.tensor([[[[9.0, -9.0]], [[9.0, 9.0]]], [[[9.0, 9.0]], [[9.0, 9.0]]]], requires_grad=True)
    loss = present_dice_loss(logits, truth, torch.tensor(1.0))
    loss.backward()
    assert loss.item() < 1e-3 and logits.grad[0, 0].any() and not logits.grad[0, 1].any() and not logits.grad[1].any()


def test_pseudo_labels_are_unseen_classes_where_the_label_is_hidden() -> None:
    truth = torch.tensor([[[0, 1, 2, IGNORE_LABEL]]])
    logits = torch.tensor([9.0, 1.0, 2.0])[None, :, None, None].expand(1, 3, 1, 4)
    found = with_pseudo_labels(truth, logits, torch.tensor([False, True, True]))
    assert found.tolist() == [[[0, 2, 2, IGNORE_LABEL]]]


# ---- the model ----
@pytest.fixture
def demo() -> Callable[..., ZegCLIP]:
    """``demo("SOME.KEY", value, ...)``: configs/demo/baselines/zegclip.yaml on a random CLIP, from one seed."""

    def build(*options: object) -> ZegCLIP:
        torch.manual_seed(0)
        random = ["MODEL.ZEGCLIP.CLIP.PRETRAINED", "", "MODEL.ZEGCLIP.CLIP.TEMPLATES", "single"]
        return ZegCLIP(load_config("demo/baselines/zegclip.yaml", [*random, *options]))

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


def test_gradient_reaches_exactly_what_should_learn(demo: Callable[..., ZegCLIP]) -> None:
    """Of the last decoder layer nothing behind the products learns."""
    model = demo().train()
    sum(model(demo_inputs()).values()).backward()
    learnt = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    last = f"decoder.layers.{len(model.decoder.layers) - 1}."
    without = {
        name
        for name in model.state_dict()
        if name.startswith(last) and not name.startswith((f"{last}attention.query", f"{last}attention.key"))
    }
    unlearnt = set(model.state_dict()) - learnt - without
    # What shifts all products of a query alike shifts no softmax; only the last layer's products are used as they are.
    assert unlearnt <= {f"decoder.layers.{k}.attention.key.bias" for k in range(len(model.decoder.layers) - 1)}
    assert learnt <= set(model.state_dict()) - without


def test_seen_classes_pay_a_discount_and_prompts_change_with_depth(demo: Callable[..., ZegCLIP]) -> None:
    model, inputs = demo().eval(), demo_inputs(1, "demo_world_val")
    discounted = model(inputs)[0]["sem_seg"]
    model.seen_discount = 0.0
    seen = model.seen_mask(MetadataCatalog.get("demo_world_val").class_split)
    assert 0 < seen.sum() < len(seen)
    difference = (model(inputs)[0]["sem_seg"] - discounted).amax(dim=(1, 2))
    assert_close(difference, 0.1 * seen.float())
    shallow = demo("MODEL.ZEGCLIP.PROMPTS.DEPTH", 2).clip_image_encoder
    assert len(shallow.prompts) == 3 and len(model.clip_image_encoder.prompts) == 6


def test_windows_cover_an_image_of_any_size(demo: Callable[..., ZegCLIP]) -> None:
    model = demo("MODEL.ZEGCLIP.TEST.STRIDE", 40).eval()
    assert model._starts(64) == [0] and model._starts(65) == [0, 1] and model._starts(150) == [0, 40, 80, 86]
    assert model._starts(13) == [0]
    for height, width in ((64, 64), (90, 130), (13, 70), (5, 9)):
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        scores = model([{"image": image, "height": 31, "width": 17}])[0]["sem_seg"]
        assert scores.shape == (38, 31, 17) and scores.isfinite().all()


def test_self_training_needs_unseen_classes(demo: Callable[..., ZegCLIP]) -> None:
    model = demo("MODEL.ZEGCLIP.SELF_TRAINING", True).train()
    with pytest.raises(ValueError, match="SELF_TRAINING needs a training set whose vocabulary holds the unseen classes"):
        model(demo_inputs())
    losses = model(demo_inputs(dataset="demo_world_val"))
    assert set(losses) == {"loss_mask", "loss_dice"} and all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("PROMPTS.DEPTH", 6, "must be below the number of CLIP's blocks 6, got 6"),
        ("DECODER.HEADS", 5, "embedding 96 must be a multiple of MODEL.ZEGCLIP.DECODER.HEADS 5"),
        ("IMAGE_SIZE", 60, "IMAGE_SIZE 60 must be a multiple of CLIP's patch size 8"),
        ("TEST.STRIDE", 65, "STRIDE 65 exceeds IMAGE_SIZE 64"),
    ],
)
def test_broken_configs(demo: Callable[..., ZegCLIP], key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        demo(f"MODEL.ZEGCLIP.{key}", value)
