"""Every config builds on random weights and runs forward, in evaluation and in training, without any data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from timm.models import get_pretrained_cfg

from alignzeg_d2 import MRPE, TransformerPixelDecoder
from baselines_d2.zegclip import IMAGENET
from epsilon_d2 import tagger as tagger_module
from zeroshot_d2 import IGNORE_LABEL, load_config
from zeroshot_d2.cli import import_systems, system_of_config
from zeroshot_d2.clip import frozen_clip as frozen_clip_module
from zeroshot_d2.clip import loader
from zeroshot_d2.pixel_stats import PixelStats, check_pixel_stats
from zeroshot_d2.startup import check_datasets
from zeroshot_d2.trainer import Trainer

import_systems()
CONFIGS = Path(__file__).parents[1] / "configs"
SEGMENTERS = {"AlignZeg": "ALIGNZEG", "SAN": "SAN", "ZegCLIP": "ZEGCLIP", "TwoStage": "TWO_STAGE"}  # where their keys are
# On Epsilon's frozen tokens, with the names of their losses.
COMPARED_TAGGERS = {
    "Fast0Tag": {"loss_rank"},
    "SDL": {"loss_rank", "loss_reg"},
    "LESA": {"loss_rank", "loss_distribution", "loss_global", "loss_span"},
    "BiAM": {"loss_rank"},
    "ML2P": {"loss_rank", "loss_reg"},
}
TAGGERS = {"Epsilon": {"loss_rank", "loss_reg"}, **COMPARED_TAGGERS}
NAMES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))


class RandomVectors:
    """In place of text prototypes and word vectors, whose towers and files are as large as everything else together."""

    templates = ("a photo of a {}.",)

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, prompts: Sequence[str], **at_hand: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(prompts))
        return F.normalize(torch.randn(len(prompts), self.width, generator=generator), dim=-1)


def random_texts(*, name: str, **arguments: Any) -> RandomVectors:
    return RandomVectors(loader.embedding_dim(name))


def random_labels(cfg: CfgNode) -> tuple[Callable[[Sequence[str]], torch.Tensor], dict[str, str]]:
    return RandomVectors(300), {"sha256": ""}


@pytest.fixture(scope="module", autouse=True)
def shared_weights() -> Iterator[None]:
    """One CLIP per name for all configs, frozen as it is: to draw a random ViT-B/16 takes longer than anything else here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen_clip_module, "create_clip", functools.cache(loader.create_clip))
        patch.setattr(frozen_clip_module, "fingerprint", functools.cache(lambda clip: "random"))
        patch.setattr(frozen_clip_module, "ClipTextEmbeddings", random_texts)
        patch.setattr(tagger_module, "build_label_embeddings", random_labels)
        yield


@functools.cache
def config(name: str) -> CfgNode:
    """Frozen; ``clone`` gives one that can be changed."""
    cfg = load_config(CONFIGS / name)
    cfg.freeze()
    return cfg


@functools.cache
def system(name: str) -> str:
    return system_of_config(CONFIGS / name).name


def names_of(wanted: str) -> list[str]:
    return [name for name in NAMES if system(name) == wanted]


def by_size(*wanted: str) -> list[Any]:
    """Arguments of a test; those with a ViT-B/16 are slow."""
    names = [name for name in NAMES if system(name) in wanted]
    return [pytest.param(name, marks=() if name.startswith("demo/") else pytest.mark.slow) for name in names]


def light(name: str) -> CfgNode:
    """A config on random weights; of a ViT-B/16 that is Epsilon's own only two of the twelve blocks."""
    cfg = config(name).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    if system(name) in SEGMENTERS:
        cfg.MODEL[SEGMENTERS[system(name)]].CLIP.PRETRAINED = ""
        if system(name) == "TwoStage":
            cfg.MODEL.TWO_STAGE.DECODER.NUM_QUERIES = 4  # CLIP on the crops of a hundred takes a minute
        return cfg
    backbone = cfg.MODEL.EPSILON.BACKBONE
    backbone.PRETRAINED = ""
    if cfg.MODEL.BACKBONE.NAME == "TimmViT":
        backbone.TAP = 2
        if "ablation" in name:
            backbone.NAME = "vit_tiny_patch16_224"
    return cfg


def test_there_are_configs() -> None:
    for dataset in ("coco", "voc", "pascal_context", "demo"):
        assert f"{dataset}/alignzeg.yaml" in names_of("AlignZeg")
    for dataset in ("nus_wide", "open_images", "demo"):
        assert f"{dataset}/epsilon.yaml" in names_of("Epsilon")
        for method in COMPARED_TAGGERS:
            assert f"{dataset}/baselines/{method.lower()}.yaml" in names_of(method)


@pytest.mark.parametrize("name", NAMES)
def test_names_its_system_its_data_sets_and_an_output_folder(name: str) -> None:
    cfg = config(name)
    assert system(name) == cfg.MODEL.META_ARCHITECTURE and cfg.VERSION == 2
    assert cfg.DATASETS.TRAIN and cfg.DATASETS.TEST
    check_datasets(cfg)
    for is_train in (True, False):
        assert Trainer.build_mapper(cfg, is_train=is_train) is not None
    assert [other for other in NAMES if config(other).OUTPUT_DIR == cfg.OUTPUT_DIR] == [name]


@pytest.mark.parametrize("name", by_size(*SEGMENTERS))
def test_segmenter_builds_and_runs(name: str) -> None:
    cfg = light(name)
    torch.manual_seed(0)
    model = build_model(cfg)
    vocabulary = MetadataCatalog.get(cfg.DATASETS.TEST[0]).class_split
    image = torch.randint(0, 256, (3, 64, 48), dtype=torch.uint8)
    (out,) = model.eval()([{"image": image}])
    assert out["sem_seg"].shape == (len(vocabulary), 64, 48) and out["sem_seg"].isfinite().all()

    trained = cfg.DATASETS.TRAIN[0]
    sem_seg = torch.randint(0, len(MetadataCatalog.get(trained).class_split), (1, 2)).repeat_interleave(24, 1).repeat(64, 1)
    sem_seg[:20] = IGNORE_LABEL
    losses = model.train()([{"image": image, "sem_seg": sem_seg, "dataset_name": trained}])
    assert set(losses) == expected_losses(cfg) and all(loss.isfinite() for loss in losses.values())


def expected_losses(cfg: CfgNode) -> set[str]:
    if cfg.MODEL.META_ARCHITECTURE == "ZegCLIP":
        return {"loss_mask", "loss_dice"}
    expected = {"loss_ce", "loss_mask", "loss_dice", "loss_reg"}
    expected |= {"loss_vir"} if cfg.MODEL.ALIGNZEG.GEPC.FEATURE_EXPANSION else set()
    expected |= {"loss_bc"} if cfg.MODEL.ALIGNZEG.PBC.POSTPROCESSOR == "PBC" else set()
    if cfg.MODEL.META_ARCHITECTURE == "SAN":
        expected |= {"loss_ce_0", "loss_mask_0", "loss_dice_0"}
    return expected


@pytest.mark.parametrize("name", by_size(*TAGGERS))
def test_tagger_builds_and_runs(name: str) -> None:
    cfg = light(name)
    model = build_model(cfg)
    image = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8)
    (out,) = model.eval()([{"image": image}])
    vocabulary = MetadataCatalog.get(cfg.DATASETS.TEST[0]).class_split
    assert out["scores"].shape == (len(vocabulary),) and out["scores"].isfinite().all()
    sample = {"image": image, "positive_labels": np.array([1, 4]), "dataset_name": cfg.DATASETS.TRAIN[0]}
    losses = model.train()([sample, {**sample, "positive_labels": np.array([], dtype=int)}])
    assert set(losses) == TAGGERS[system(name)] and all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("name", NAMES)
def test_images_are_normalised_as_the_pretrained_weights_need_it(name: str) -> None:
    cfg = config(name)
    if (key := SEGMENTERS.get(system(name))) is None:
        keys, also = cfg.MODEL.EPSILON.BACKBONE, []
    else:
        keys, also = cfg.MODEL[key].CLIP, [IMAGENET] if system(name) == "ZegCLIP" else []
    if cfg.MODEL.BACKBONE.NAME == "TimmViT":
        known = [PixelStats.of_pretrained(get_pretrained_cfg(f"{keys.NAME}.{keys.PRETRAINED}").to_dict())]
    else:
        known = loader.pixel_stats(keys.NAME, keys.PRETRAINED)
        assert loader.is_tag(keys.NAME, keys.PRETRAINED)
    assert known
    check_pixel_stats(cfg, known, keys.PRETRAINED, also=also)


# ---- AlignZeg's numbers ----


@pytest.mark.parametrize(("name", "side", "clip_side"), [("vit_l_14", 280, 224), ("vit_l_14_336", 448, 336)])
def test_larger_clips_are_divided_as_san_divides_them(name: str, side: int, clip_side: int) -> None:
    cfg = config(f"coco/alignzeg_{name}.yaml")
    clip, san = cfg.MODEL.ALIGNZEG.CLIP, config("coco/baselines/san_vit_l_all.yaml").MODEL.SAN
    vision = open_clip.get_model_config(clip.NAME)["vision_cfg"]
    assert (vision["image_size"], vision["patch_size"], vision["layers"]) == (clip_side, 14, 24)
    assert vision["layers"] - cfg.MODEL.ALIGNZEG.SEMANTIC_DECODER.NUM_LAYERS == san.CLIP.NUM_LAYERS == 18
    assert clip.TAP / vision["layers"] == 6 / 12
    assert cfg.INPUT.CROP.SIZE[0] * clip.RESOLUTION == pytest.approx(side)
    if clip.NAME == san.CLIP.NAME:
        assert clip.RESOLUTION == san.CLIP.RESOLUTION


@pytest.mark.parametrize(
    ("name", "iterations", "prompts", "backgrounds"),
    [("voc", 20000, 0, 10), ("coco", 80000, 20, 20), ("pascal_context", 40000, 0, 10)],
)
def test_numbers_of_section_4_2(name: str, iterations: int, prompts: int, backgrounds: int) -> None:
    cfg = config(f"{name}/alignzeg.yaml")
    model = cfg.MODEL.ALIGNZEG
    given = (cfg.SOLVER.MAX_ITER, model.CLIP.NUM_PROMPTS, model.GEPC.NUM_BACKGROUND_PROTOTYPES)
    assert given == (iterations, prompts, backgrounds)
    assert cfg.SOLVER.IMS_PER_BATCH == 16 and cfg.INPUT.CROP.SIZE == [640, 640]
    assert (model.CLIP.NAME, model.CLIP.TAP, model.CLIP.RESOLUTION) == ("ViT-B-16-quickgelu", 6, 0.5)
    assert model.SEMANTIC_DECODER.NUM_LAYERS == 3
    encoder = model.IMAGE_ENCODER
    assert (encoder.DEPTH, encoder.WIDTH, encoder.PATCH_SIZE) == (8, 240, 16)
    loss = model.LOSS
    assert (loss.CE_WEIGHT, loss.MASK_WEIGHT, loss.DICE_WEIGHT, loss.VIR_WEIGHT, loss.REG_WEIGHT) == (2, 5, 5, 1e-2, 1e-4)
    assert (model.PBC.TOP_K, model.PIXEL_DECODER.NUM_QUERIES, model.GEPC.ALPHA) == (50, 100, 3)


@pytest.mark.parametrize("dataset", ["coco", "voc", "demo"])
def test_ablations_of_tables_4_and_5(dataset: str) -> None:
    """Each row of Table 4 switches one more part on; the last is the whole model."""
    full = config(f"{dataset}/alignzeg.yaml").MODEL.ALIGNZEG
    many = full.GEPC.NUM_BACKGROUND_PROTOTYPES
    rows = {}
    for row in ("ablation/baseline", "ablation/pbc", "ablation/pbc_mrpe", "ablation/pbc_mrpe_fes", "alignzeg"):
        model = config(f"{dataset}/{row}.yaml").MODEL.ALIGNZEG
        assert model.PBC.POSTPROCESSOR in ("PBC", "NoCorrection")
        rows[row] = [
            model.PBC.POSTPROCESSOR == "PBC",
            MRPE.__name__ == model.PIXEL_DECODER.NAME,
            model.GEPC.FEATURE_EXPANSION,
            many == model.GEPC.NUM_BACKGROUND_PROTOTYPES,
        ]
        assert model.GEPC.NUM_BACKGROUND_PROTOTYPES in (1, many)
    assert list(rows.values()) == [[part < row for part in range(4)] for row in range(5)]
    table_5 = config(f"{dataset}/ablation/transformer_decoder.yaml").MODEL.ALIGNZEG.clone()
    table_5.defrost()
    assert TransformerPixelDecoder.__name__ == table_5.PIXEL_DECODER.NAME
    table_5.PIXEL_DECODER.NAME = full.PIXEL_DECODER.NAME
    assert table_5 == full


# ---- Epsilon's numbers ----


@pytest.mark.parametrize("dataset", ["nus_wide", "open_images"])
def test_numbers_of_the_implementation_details(dataset: str) -> None:
    cfg = config(f"{dataset}/epsilon.yaml")
    solver, model = cfg.SOLVER, cfg.MODEL.EPSILON
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM) == ("ADAM", 1e-5, 4e-3, 4e-3)
    assert (solver.IMS_PER_BATCH, solver.MAX_EPOCHS, solver.STEPS_EPOCHS, solver.GAMMA) == (96, 7, [3], 0.5)
    assert (model.NUM_GROUPS, model.LOSS.LAMBDA, model.LOSS.RANK_FORM) == (8, 0.3, "sdl")
    assert model.BACKBONE.NAME == "vit_base_patch16_224" and cfg.INPUT.IMAGE_SIZE == 224
    assert tuple(cfg.TEST.TOP_K) == ((3, 5) if dataset == "nus_wide" else (10, 20))
    split = MetadataCatalog.get(cfg.DATASETS.TEST[0]).class_split
    assert (len(split.seen), len(split.unseen)) == ((925, 81) if dataset == "nus_wide" else (7186, 400))
    assert len(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).class_split) == len(split.seen)


@pytest.mark.parametrize("dataset", ["nus_wide", "demo"])
def test_ablations_of_table_3(dataset: str) -> None:
    columns = {
        "backbone_only": (False, False, 8),
        "backbone_only_m2": (False, False, 2),
        "gpa": (True, False, 8),
        "gpa_m2": (True, False, 2),
        "gfp": (False, True, 8),
        "gfp_m2": (False, True, 2),
    }
    full = config(f"{dataset}/epsilon.yaml")
    for name, column in columns.items():
        cfg = config(f"{dataset}/epsilon_ablation/{name}.yaml").clone()
        cfg.defrost()
        model = cfg.MODEL.EPSILON
        assert column == (model.GPA.ENABLED, model.GFP.ENABLED, model.NUM_GROUPS)
        model.GPA.ENABLED, model.GFP.ENABLED, model.NUM_GROUPS, cfg.OUTPUT_DIR = True, True, 8, full.OUTPUT_DIR
        assert cfg == full


# ---- the compared taggers ----


@pytest.mark.parametrize("dataset", ["nus_wide", "open_images", "demo"])
def test_taggers_are_compared_on_the_same_images_tokens_and_label_vectors(dataset: str) -> None:
    ours = config(f"{dataset}/epsilon.yaml")
    for method in COMPARED_TAGGERS:
        cfg = config(f"{dataset}/baselines/{method.lower()}.yaml").clone()
        cfg.defrost()
        assert (method == "BiAM") == cfg.MODEL.EPSILON.BACKBONE.CLS_TOKEN
        cfg.MODEL.EPSILON.BACKBONE.CLS_TOKEN = False
        assert {key: ours.MODEL.EPSILON[key] for key in ("BACKBONE", "LABEL_EMBEDDINGS")} == cfg.MODEL.EPSILON
        assert (cfg.INPUT, cfg.DATASETS, cfg.TEST) == (ours.INPUT, ours.DATASETS, ours.TEST)
        for key in ("BACKBONE", "PIXEL_MEAN", "PIXEL_STD"):
            assert cfg.MODEL[key] == ours.MODEL[key]


@pytest.mark.parametrize(
    ("method", "optimizer", "batch", "rate", "epochs", "decay"),
    [
        ("fast0tag", "ADAM", 512, 5e-4, 100, 0.0),
        ("sdl", "ADAM", 32, 2.5e-5, 10, 3e-4),
        ("lesa", "RMSPROP", 32, 1e-3, 0, 0.0),
        ("biam", "ADAM", 32, 1e-3, 40, 5e-4),
        ("ml2p", "ADAM", 96, 5e-5, 20, 0.0),
    ],
)
def test_published_training_of_the_compared_taggers(
    method: str, optimizer: str, batch: int, rate: float, epochs: int, decay: float
) -> None:
    solver = config(f"nus_wide/baselines/{method}.yaml").SOLVER
    assert (optimizer, batch, rate) == (solver.OPTIMIZER, solver.IMS_PER_BATCH, solver.BASE_LR)
    assert (epochs, decay, decay) == (solver.MAX_EPOCHS, solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM)
    if method == "lesa":
        assert (solver.MAX_ITER, solver.MOMENTUM, solver.RMSPROP_DECAY, solver.RMSPROP_EPS) == (200000, 0.9, 0.9, 1.0)
    if method == "biam":
        other = config("open_images/baselines/biam.yaml")
        assert (other.SOLVER.BASE_LR, other.SOLVER.MAX_EPOCHS, other.MODEL.BIAM.NUM_HEADS) == (1e-4, 10, 16)
        assert other.MODEL.BIAM.MAX_LABELS == 40
