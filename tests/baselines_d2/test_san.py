"""SAN: the values of the public code, the import of released weights, what learns, and AlignZeg's parts upon it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import open_clip
import pytest
import torch
import yaml
from comparisons import assert_close
from detectron2.data import MetadataCatalog
from torch import Tensor

from baselines_d2.import_san import CONFIGS, check_clip, clip_weights, learnt_weights
from baselines_d2.import_san import main as import_san
from baselines_d2.san import SAN, Recognition, fusion_map
from tests.baselines_d2.golden import Golden, golden_files
from zeroshot_d2 import IGNORE_LABEL, ClassSplit, demo_world, load_config
from zeroshot_d2.checkpoint import read_record
from zeroshot_d2.clip.loader import create_clip
from zeroshot_d2.clip.text import encode_tokens
from zeroshot_d2.predictor import build_predictor

POSITIONS = "clip_visual_extractor.positional_embedding"
START_TOKENS = {"cls_token": "cls", "learnable_token": "learnt", "pos_embedding": "cls+learnt"}


# ---- golden values ----
def config_file(golden: Golden, folder: Path) -> Path:
    """A config of this project for a golden file, whose CLIP becomes one of open_clip's."""
    sizes, given = golden.config, golden.config["cfg"]

    def option(name: str, default: Any) -> Any:
        return given.get(f"MODEL.{name}", default)

    name = f"golden-{golden.config['seed']}"
    (folder / f"{name}.json").write_text(json.dumps(sizes["clip"]), encoding="utf-8")
    open_clip.add_model_config(folder / f"{name}.json")
    weights = clip_weights(golden.below("state"))
    torch.save(weights, folder / "clip.pt")
    blocks = sizes["clip"]["vision_cfg"]["layers"] - option("SAN.FEATURE_LAST_LAYER_IDX", 9)
    bias_layers = option("SIDE_ADAPTER.ATTN_BIAS.NUM_LAYERS", 1)
    assert bias_layers in (1, blocks)
    model = {
        "META_ARCHITECTURE": "SAN",
        "DEVICE": "cpu",
        "SAN": {
            "SIZE_DIVISIBILITY": option("SAN.SIZE_DIVISIBILITY", 32),
            "CLIP": {
                "NAME": name,
                "PRETRAINED": str(folder / "clip.pt"),
                "RESOLUTION": option("SAN.CLIP_RESOLUTION", 0.5) if option("SAN.ASYMETRIC_INPUT", True) else 1.0,
                "NUM_LAYERS": option("SAN.FEATURE_LAST_LAYER_IDX", 9),
                "TRAIN_POSITIONS": "positional_embedding" in option("SAN.CLIP_FROZEN_EXCLUDE", ["positional_embedding"]),
            },
            "SIDE": {
                "IMAGE_SIZE": option("SIDE_ADAPTER.IMAGE_SIZE", 640),
                "PATCH_SIZE": sizes["side"]["patch_size"],
                "WIDTH": sizes["side"]["embed_dim"],
                "DEPTH": sizes["side"]["depth"],
                "NUM_HEADS": sizes["side"]["num_heads"],
                "NUM_QUERIES": option("SIDE_ADAPTER.NUM_QUERIES", 100),
                "FUSION": option("SIDE_ADAPTER.FUSION_MAP", ["0->0", "3->1", "6->2", "9->3"]),
                "SUPERVISED": option("SIDE_ADAPTER.DEEP_SUPERVISION_IDXS", [7, 8]),
            },
            "MASK_DECODER": {
                "HIDDEN": option("SIDE_ADAPTER.ATTN_BIAS.MLP_CHANNELS", 256),
                "WIDTH": option("SIDE_ADAPTER.ATTN_BIAS.EMBED_CHANNELS", 256),
                "LAYERS": option("SIDE_ADAPTER.ATTN_BIAS.MLP_NUM_LAYERS", 3),
                "BIAS_HEADS": option("SIDE_ADAPTER.ATTN_BIAS.NUM_HEADS", 12),
                "BIAS_PER_BLOCK": bias_layers > 1,
                "RESCALE_BIAS": option("SIDE_ADAPTER.ATTN_BIAS.RESCALE_ATTN_BIAS", True),
            },
            "RECOGNITION": {
                "POOLING": option("SAN.REC_DOWNSAMPLE_METHOD", "max"),
                "START_TOKEN": START_TOKENS[option("SAN.SOS_TOKEN_FORMAT", "cls_token")],
            },
            "TEST": {"UPSAMPLING": "twice" if option("SAN.SEM_SEG_POSTPROCESS_BEFORE_INFERENCE", True) else "scores"},
        },
        "ALIGNZEG": {
            "LOSS": {
                "CE_WEIGHT": option("SAN.CLASS_WEIGHT", 2.0),
                "MASK_WEIGHT": option("SAN.MASK_WEIGHT", 5.0),
                "DICE_WEIGHT": option("SAN.DICE_WEIGHT", 5.0),
                "NO_OBJECT_WEIGHT": option("SAN.NO_OBJECT_WEIGHT", 0.1),
                "NUM_POINTS": option("SAN.TRAIN_NUM_POINTS", 12544),
                "OVERSAMPLE_RATIO": option("SAN.OVERSAMPLE_RATIO", 3.0),
                "IMPORTANCE_SAMPLE_RATIO": option("SAN.IMPORTANCE_SAMPLE_RATIO", 0.75),
            }
        },
    }
    path = folder / "san.yaml"
    path.write_text(yaml.safe_dump({"VERSION": 2, "MODEL": model}), encoding="utf-8")
    return path


def vocabulary(golden: Golden) -> ClassSplit:
    return ClassSplit(tuple(f"w{k}" for k in range(len(golden["in/text_embeddings"]))))


def with_texts(model: SAN, golden: Golden) -> SAN:
    """The public code was given class vectors too."""
    texts = mock.Mock(return_value=golden["in/text_embeddings"])
    texts.templates = ()
    model.text_embeddings = texts
    return model


@pytest.fixture(params=golden_files("san"))
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture
def model(golden: Golden, tmp_path: Path) -> SAN:
    """With the weights of the golden file, brought here by the functions of ``import-san``."""
    model = SAN(load_config(config_file(golden, tmp_path)))
    learnt = learnt_weights(golden.below("state"))
    assert set(learnt) == set(model.state_dict())
    model.load_state_dict(learnt, strict=False)
    return with_texts(model, golden).eval()


def test_golden_text_tower(golden: Golden, model: SAN) -> None:
    clip = create_clip(f"golden-{golden.config['seed']}", model.frozen_record["CLIP"]["pretrained"])
    check_clip(clip.state_dict(), clip_weights(golden.below("state")), "the file")
    with torch.no_grad():
        golden.check("out/text/encoded", encode_tokens(clip, golden["in/text_tokens"]))
    rows = torch.cat([golden["in/text_embeddings"], torch.nn.functional.normalize(model.classifier.background_prototypes)])
    golden.check("out/classifier", rows)


def test_golden_evaluation(golden: Golden, model: SAN) -> None:
    blocks = len(model.recognition.blocks)
    trunk, side = Spy(model.clip_image_encoder.tapped), Spy(model.side_network.forward)
    decoder = Spy(model.mask_decoder.forward)
    model.clip_image_encoder.tapped, model.side_network.forward, model.mask_decoder.forward = trunk, side, decoder
    for case, _, output_size in golden.config["eval"]:
        at = f"out/eval/{case}"
        image = golden[f"in/eval/{case}/image"]
        inputs = {"image": image, "vocabulary": vocabulary(golden)}
        (out,) = model.inference([inputs], proposals=True)
        images = trunk.args[-1][0]
        golden.check(f"{at}/clip_image", images)
        taps = range(len(model.clip_image_encoder.blocks) + 1)
        with torch.no_grad():
            features, tokens = model.clip_image_encoder.tapped(images, taps)
        for tap, feature in zip(taps, features, strict=True):
            golden.check(f"{at}/clip_features/{tap}", feature)
        golden.check(f"{at}/clip_features/{taps[-1]}_cls_token", tokens[:, :1])
        if f"{at}/normalized_padded_image" in golden:
            golden.check(f"{at}/normalized_padded_image", side.args[-1][0])
        ((queries, patches),) = side.outs[-1]
        golden.check(f"{at}/decoder_query", queries)
        golden.check(f"{at}/decoder_x", patches)
        proposals = decoder.outs[-1]
        golden.check(f"{at}/mask_preds", proposals.mask_logits)
        layers = blocks if model.recognition.bias_per_block else 1
        for layer, bias in enumerate(proposals.attention_bias.chunk(layers, dim=1)):
            golden.check(f"{at}/attn_bias_{layer}", bias)
        grid = features[0].shape[-2:]
        with torch.no_grad():
            unnormalised = model.recognition(tokens, proposals.attention_bias, grid)
        golden.check(f"{at}/mask_embs_unnormalized", unnormalised)
        golden.check(f"{at}/mask_embs", model.classifier.refine(unnormalised))
        golden.check(f"{at}/mask_logits", out["proposals"]["class_logits"][None])

        # "once" is SAN where the output has the size of the image.
        sizes = {"height": output_size[0], "width": output_size[1]}
        for upsampling, name, size in (
            ("once", "sem_seg", {}),
            ("twice", "sem_seg", {}),
            ("twice", "sem_seg_resized", sizes),
            ("scores", "sem_seg_resized_after_inference", sizes),
        ):
            model.upsampling = upsampling
            golden.check(f"{at}/{name}", model([{**inputs, **size}])[0]["sem_seg"])
        model.upsampling = "scores"
        labels = model.inference([{**inputs, **sizes}], output="labels")[0]["sem_seg_labels"]
        assert torch.equal(labels, model([{**inputs, **sizes}])[0]["sem_seg"].argmax(0))

        for variant in sorted({name.split("/")[0] for name in golden.below(f"{at}/variants")}):
            _, pooling, start = variant.split("_", 2)  # "cross" and "self" attention give the same
            changed = Recognition(
                visual=model_visual(golden, model),
                num_layers=blocks,
                bias_per_block=model.recognition.bias_per_block,
                learnt_scale=False,
                pooling=pooling,
                start_token=START_TOKENS[start],
                num_queries=queries.shape[1],
            )
            if changed.sos_token is not None:
                changed.sos_token.data = golden["in/variants/sos_token"]
            with torch.no_grad():
                found = changed(tokens, proposals.attention_bias, grid)
            golden.check(f"{at}/variants/{variant}/mask_embs", model.classifier.refine(found))
    left = golden.unused("out/eval")
    assert {name for name in left if not name.endswith("_cls_token")} == set()


def model_visual(golden: Golden, model: SAN) -> torch.nn.Module:
    return create_clip(f"golden-{golden.config['seed']}", model.frozen_record["CLIP"]["pretrained"]).visual


class Spy:
    """A function that remembers its calls."""

    def __init__(self, function: Any) -> None:
        self.function, self.args, self.outs = function, [], []

    def __call__(self, *args: Any) -> Any:
        self.args.append(args)
        self.outs.append(self.function(*args))
        return self.outs[-1]


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the golden file drew, to be filled: ``torch.rand`` takes row after row of it."""
    waiting: list[Tensor] = []

    def recorded(rows: int, *others: int, **where: Any) -> Tensor:
        taken = torch.empty(0, *others)
        if rows:
            taken, rest = waiting[0].split([rows, len(waiting[0]) - rows])
            waiting[:1] = [rest] if len(rest) else []
        assert taken.shape == (rows, *others)
        return taken

    monkeypatch.setattr(torch, "rand", recorded)
    return waiting


def test_golden_training(golden: Golden, model: SAN, draws: list[Tensor]) -> None:
    model.train()
    classes = vocabulary(golden)
    for case, _ in golden.config["train"]:
        inputs = []
        for index in range(len([name for name in golden.below(f"in/train/{case}") if name.startswith("image_")])):
            masks, labels = (golden[f"in/train/{case}/gt_{what}_{index}"] for what in ("masks", "classes"))
            image = golden[f"in/train/{case}/image_{index}"]
            sem_seg = torch.full(image.shape[-2:], IGNORE_LABEL)
            for mask, label in zip(masks, labels, strict=True):
                sem_seg[mask] = label
            assert sum(len(mask.nonzero()) for mask in masks) == (sem_seg != IGNORE_LABEL).sum()
            inputs.append({"image": image, "sem_seg": sem_seg, "vocabulary": classes})
        draws[:] = [golden[f"in/train/{case}/rand/{k}"] for k in range(len(golden.below(f"in/train/{case}/rand")))]
        model.supervised_proposals, model.classify = Spy(model.supervised_proposals), Spy(model.classify)
        model.zero_grad()
        losses = model(inputs)
        assert not draws
        (given,), found = model.supervised_proposals.outs, model.classify.outs
        for (masks, _), outputs in zip(given, found, strict=True):
            masks.retain_grad()
            outputs.class_logits.retain_grad()
        total = sum(losses.values())
        total.backward()
        for name, loss in losses.items():
            if name != "loss_reg":  # of one background vector it is 0
                golden.check(f"loss/train/{case}/{name}", loss)
        golden.check(f"loss/train/{case}/total", total)

        order = ["last", *map(str, range(len(given) - 1))]
        for name, outputs, (masks, _) in zip(order, found, [given[-1], *given[:-1]], strict=True):
            golden.check(f"out/train/{case}/pred_logits_{name}", outputs.class_logits)
            golden.check(f"out/train/{case}/pred_masks_{name}", masks)
            golden.check(f"grad/train/{case}/pred_logits_{name}", outputs.class_logits.grad)
            golden.check(f"grad/train/{case}/pred_masks_{name}", masks.grad)

        gradients = {name: p.grad for name, p in model.named_parameters()}
        for name, expected in golden.below(f"grad/train/{case}").items():
            if name.startswith("pred_"):
                continue
            *_, (ours, shaped) = learnt_weights({POSITIONS: expected, name: expected}).items()
            gradient = gradients[ours]
            assert gradient is not None and gradient.shape == shaped.shape, name
            golden.check(f"grad/train/{case}/{name}", gradient.reshape(expected.shape))
        del model.supervised_proposals, model.classify
    assert golden.unused("loss/", "grad/") == set()


# ---- import-san ----
def test_released_weights_become_a_model_with_the_golden_outputs(golden: Golden, tmp_path: Path) -> None:
    config = config_file(golden, tmp_path)
    file, folder = tmp_path / "san_released.pth", tmp_path / "san"
    torch.save({"model": golden.below("state"), "iteration": 59999}, file)
    assert import_san([str(file), "--output", str(folder), "--config-file", str(config)]) == 0

    found = read_record(folder / "model_final.pth")
    assert found is not None and found.system == "SAN" and set(found.frozen) == {"CLIP"}
    cfg = load_config(folder / "config.yaml", weights=folder / "model_final.pth")
    imported = with_texts(build_predictor(cfg).model, golden)
    for case, _, (height, width) in golden.config["eval"]:
        inputs = {
            "image": golden[f"in/eval/{case}/image"],
            "vocabulary": vocabulary(golden),
            "height": height,
            "width": width,
        }
        golden.check(f"out/eval/{case}/sem_seg_resized", imported([inputs])[0]["sem_seg"])


def test_what_cannot_be_imported_is_refused(golden: Golden, tmp_path: Path) -> None:
    config, state = config_file(golden, tmp_path), golden.below("state")
    block = "clip_rec_head.resblocks.0.mlp.c_fc.weight"
    bg_embed = state.pop("ov_classifier.bg_embed")
    for changes, arguments, message in (
        ({}, ["--config-file", str(config)], "1 weights are there or here alone"),
        ({"ov_classifier.bg_embed": bg_embed.repeat(2, 1)}, ["--config-file", str(config)], "have another shape"),
        ({"ov_classifier.bg_embed": bg_embed}, [], f"CLIP of width {state[POSITIONS].shape[1]}"),
        ({block: 2 * state[block]}, ["--config-file", str(config)], "trained upon other CLIP weights"),
        ({block: state[block][:-1]}, ["--config-file", str(config)], "another CLIP than the config's"),
        ({"clip_adapter.weight": bg_embed}, ["--config-file", str(config)], "'clip_adapter.weight' is no weight of SAN"),
    ):
        torch.save({"model": {**state, **changes}}, tmp_path / "file.pth")
        with pytest.raises(ValueError, match=message):
            import_san([str(tmp_path / "file.pth"), "--output", str(tmp_path / "out"), *arguments])
    for content in ({"layer.weight": bg_embed}, {POSITIONS: bg_embed[0]}):
        torch.save({"model": content}, tmp_path / "file.pth")
        with pytest.raises(ValueError, match="holds no weights of SAN"):
            import_san([str(tmp_path / "file.pth"), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_releases_have_configs() -> None:
    """What fits the files that SAN's authors released: their sizes, and COCO-Stuff's 171 names unchanged."""
    for width, (name, layers, heads, resolution) in {
        768: ("ViT-B-16-quickgelu", 9, 12, 0.5),
        1024: ("ViT-L-14-336-quickgelu", 18, 16, 0.7),
    }.items():
        cfg = load_config(CONFIGS[width])
        san = cfg.MODEL.SAN
        given = [san.CLIP.NAME, san.CLIP.NUM_LAYERS, san.MASK_DECODER.BIAS_HEADS, san.CLIP.RESOLUTION]
        assert given == [name, layers, heads, resolution]
        trained = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).class_split
        assert len(trained) == 171 and "wall-brick" in trained.prompts_for(san.CLIP.NAMES)


# ---- the model ----
@pytest.fixture
def demo() -> Callable[..., SAN]:
    """``demo("SOME.KEY", value, ...)``: configs/demo/baselines/san.yaml on a random CLIP, from one seed."""

    def build(*options: object, config: str = "san") -> SAN:
        torch.manual_seed(0)
        random = ["MODEL.SAN.CLIP.PRETRAINED", "", "MODEL.SAN.CLIP.TEMPLATES", "single"]
        return SAN(load_config(f"demo/baselines/{config}.yaml", [*random, *options]))

    return build


def demo_inputs(count: int = 2) -> list[dict[str, Any]]:
    table = MetadataCatalog.get("demo_world_train_seen").label_table
    scenes = [demo_world.render(0, index) for index in range(count)]
    return [
        {
            "image": torch.from_numpy(scene.image).permute(2, 0, 1),
            "sem_seg": torch.from_numpy(table.apply(scene.label).astype(np.int64)),
            "dataset_name": "demo_world_train_seen",
        }
        for scene in scenes
    ]


@pytest.mark.parametrize("positions", [True, False])
def test_gradient_reaches_exactly_what_should_learn(demo: Callable[..., SAN], positions: bool) -> None:
    model = demo("MODEL.SAN.CLIP.TRAIN_POSITIONS", positions).train()
    sum(model(demo_inputs()).values()).backward()
    learnt = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    rooms = ("side_network.", "mask_decoder.", "classifier.")
    expected = {name for name, _ in model.named_parameters() if name.startswith(rooms)}
    expected |= {"clip_image_encoder.positional_embedding"} if positions else set()
    assert learnt == expected == set(model.state_dict())


def test_a_batch_gives_what_its_images_give(demo: Callable[..., SAN]) -> None:
    model = demo().eval()
    images = [inputs["image"] for inputs in demo_inputs()]
    images.append(images[0][:, :50, :41])
    batch = [{"image": image, "height": 70, "width": 60} for image in images]
    for inputs, together in zip(batch, model(batch), strict=True):
        (alone,) = model([inputs])
        assert together["sem_seg"].shape == (38, 70, 60)
        assert_close(together["sem_seg"], alone["sem_seg"])


def test_deep_supervision_has_losses_of_its_own_and_only_the_last_block_predicts(demo: Callable[..., SAN]) -> None:
    model = demo("MODEL.SAN.SIDE.SUPERVISED", [1, 2, 3]).train()
    expected = {f"loss_{name}{suffix}" for name in ("ce", "mask", "dice") for suffix in ("", "_0", "_1")} | {"loss_reg"}
    assert set(model(demo_inputs())) == expected
    images = torch.randn(1, 3, 64, 64)
    outputs = model.supervised_proposals(images)
    assert len(outputs) == 3
    for given, wanted in zip(model.eval().extract_proposals(images), outputs[-1], strict=True):
        assert_close(given, wanted)


def test_pbc_and_gepc_by_config(demo: Callable[..., SAN]) -> None:
    """Each of AlignZeg's parts adds its loss; the correction acts at test time."""
    plain = set(demo().train()(demo_inputs()))
    pbc, gepc = demo(config="san_pbc"), demo(config="san_gepc")
    assert set(pbc.train()(demo_inputs())) - plain == {"loss_bc"}
    assert set(gepc.train()(demo_inputs())) - plain == {"loss_vir"}
    assert gepc.classifier.phi_cls is not None and len(gepc.classifier.background_prototypes) > 1
    inputs = [{**demo_inputs(1)[0], "dataset_name": "demo_world_val"}]
    indicator = pbc.eval().inference(inputs, proposals=True)[0]["proposals"]["class_indicator"]
    pbc.postprocessor.gamma = indicator.median().item()
    (out,) = pbc.inference(inputs, proposals=True)
    changed = (out["proposals"]["class_logits"] != out["proposals"]["corrected_logits"]).any(-1)
    assert torch.equal(changed, indicator > pbc.postprocessor.gamma) and changed.any()


def test_a_bias_per_block_and_a_learnt_token(demo: Callable[..., SAN]) -> None:
    model = demo("MODEL.SAN.MASK_DECODER.BIAS_PER_BLOCK", True, "MODEL.SAN.RECOGNITION.START_TOKEN", "learnt").train()
    assert model.mask_decoder.num_biases == 4 * len(model.recognition.blocks)
    sum(model(demo_inputs()).values()).backward()
    assert model.recognition.sos_token.grad.any() and "recognition.sos_token" in model.state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.SAN.SIDE.FUSION", ["0-0"]], "texts such as"),
        (["MODEL.SAN.SIDE.FUSION", ["9->0"]], "CLIP.NUM_LAYERS is 1"),
        (["MODEL.SAN.SIDE.FUSION", ["0->9"]], "leads to block 9"),
        (["MODEL.SAN.SIDE.FUSION", ["0->1", "1->1"]], "leads twice to block 1"),
        (["MODEL.SAN.SIDE.SUPERVISED", [2, 1]], "ascending"),
        (["MODEL.SAN.SIZE_DIVISIBILITY", 6], "SIZE_DIVISIBILITY 6 must be a multiple of MODEL.SAN.SIDE.PATCH_SIZE 4"),
        (["MODEL.SAN.SIDE.NUM_HEADS", 5], "WIDTH 96 must be a multiple of MODEL.SAN.SIDE.NUM_HEADS 5"),
        (["MODEL.SAN.MASK_DECODER.BIAS_HEADS", 3], "must be 1 or CLIP's 4"),
        (["MODEL.SAN.CLIP.NUM_LAYERS", 6], "needs 1 to 6 of CLIP's blocks, got 0"),
        (["MODEL.SAN.RECOGNITION.POOLING", "nearest"], "POOLING must be one of"),
    ],
)
def test_broken_configs(demo: Callable[..., SAN], options: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        demo(*options)


def test_fusion_map() -> None:
    assert fusion_map(["0->0", "3->1"], 3) == {0: 0, 1: 3}
