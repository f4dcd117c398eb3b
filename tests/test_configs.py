"""Every config of AlignZeg builds on a random CLIP and runs forward, in evaluation and in training, without any data."""

import functools
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog

from alignzeg_d2 import MRPE, AlignZeg, TransformerPixelDecoder, add_alignzeg_config, alignzeg
from zeroshot_d2 import IGNORE_LABEL, clip_loader

CONFIGS = Path(__file__).parents[1] / "configs"


def architecture(path: Path) -> str:
    return CfgNode.load_yaml_with_base(str(path)).get("MODEL", {}).get("META_ARCHITECTURE", "AlignZeg")


ALIGNZEG = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml") if architecture(path) == "AlignZeg")


def config(name: str) -> CfgNode:
    cfg = get_cfg()
    add_alignzeg_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    return cfg


@pytest.fixture(scope="module", autouse=True)
def one_clip_per_name():
    """Building a random ViT-B/16 takes longer than everything else here: the configs share it, frozen as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignzeg, "create_clip", functools.lru_cache(clip_loader.create_clip))
        patch.setattr(alignzeg, "fingerprint", functools.lru_cache(clip_loader.fingerprint))
        yield


def test_there_are_configs():
    assert {"coco/alignzeg.yaml", "voc/alignzeg.yaml", "pascal_context/alignzeg.yaml", "demo/alignzeg.yaml"} <= set(ALIGNZEG)


@pytest.mark.parametrize("name", ALIGNZEG)
def test_builds_and_runs(name):
    cfg = config(name)
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.ALIGNZEG.CLIP.PRETRAINED", "", "MODEL.ALIGNZEG.CLIP.TEMPLATES", "single"]
    )
    torch.manual_seed(0)
    model = AlignZeg(cfg)
    vocabulary = MetadataCatalog.get(cfg.DATASETS.TEST[0]).class_split
    image = torch.randint(0, 256, (3, 64, 48), dtype=torch.uint8)
    (out,) = model.eval()([{"image": image}])
    assert out["sem_seg"].shape == (len(vocabulary), 64, 48) and out["sem_seg"].isfinite().all()

    trained = cfg.DATASETS.TRAIN[0]
    sem_seg = torch.randint(0, len(MetadataCatalog.get(trained).class_split), (1, 2)).repeat_interleave(24, 1).repeat(64, 1)
    sem_seg[:20] = IGNORE_LABEL
    losses = model.train()([{"image": image, "sem_seg": sem_seg, "dataset_name": trained}])
    expected = {"loss_ce", "loss_mask", "loss_dice", "loss_reg"}
    expected |= {"loss_vir"} if cfg.MODEL.ALIGNZEG.GEPC.FEATURE_EXPANSION else set()
    expected |= {"loss_bc"} if cfg.MODEL.ALIGNZEG.PBC.ENABLED else set()
    assert set(losses) == expected and all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("name", ALIGNZEG)
def test_names_registered_sets_and_an_output_folder_of_its_own(name):
    cfg = config(name)
    assert all(hasattr(MetadataCatalog.get(d), "class_split") for d in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    assert [other for other in ALIGNZEG if config(other).OUTPUT_DIR == cfg.OUTPUT_DIR] == [name]
    assert cfg.VERSION == 2


@pytest.mark.parametrize(
    ("name", "iterations", "prompts", "backgrounds"),
    [("voc", 20000, 0, 10), ("coco", 80000, 20, 20), ("pascal_context", 40000, 0, 10)],
)
def test_numbers_of_section_4_2(name, iterations, prompts, backgrounds):
    cfg = config(f"{name}/alignzeg.yaml")
    model = cfg.MODEL.ALIGNZEG
    assert (
        iterations, prompts, backgrounds,
    ) == (cfg.SOLVER.MAX_ITER, model.CLIP.NUM_PROMPTS, model.GEPC.NUM_BACKGROUND_PROTOTYPES)  # fmt: skip
    assert cfg.SOLVER.IMS_PER_BATCH == 16 and cfg.INPUT.CROP.SIZE == [640, 640]
    assert (model.CLIP.NAME, model.CLIP.TAP, model.CLIP.RESOLUTION) == ("ViT-B-16-quickgelu", 6, 0.5)
    assert model.SEMANTIC_DECODER.NUM_LAYERS == 3
    encoder = model.IMAGE_ENCODER
    assert (encoder.DEPTH, encoder.WIDTH, encoder.PATCH_SIZE) == (8, 240, 16)
    loss = model.LOSS
    assert (loss.CE_WEIGHT, loss.MASK_WEIGHT, loss.DICE_WEIGHT, loss.VIR_WEIGHT, loss.REG_WEIGHT) == (2, 5, 5, 1e-2, 1e-4)
    assert (model.PBC.TOP_K, model.PIXEL_DECODER.NUM_QUERIES, model.GEPC.ALPHA) == (50, 100, 3)


@pytest.mark.parametrize("dataset", ["coco", "voc", "demo"])
def test_ablations_of_tables_4_and_5(dataset):
    """Each row of Table 4 switches one more part on; the last is the whole model."""
    full = config(f"{dataset}/alignzeg.yaml").MODEL.ALIGNZEG
    many = full.GEPC.NUM_BACKGROUND_PROTOTYPES
    rows = {}
    for row in ("ablation/baseline", "ablation/pbc", "ablation/pbc_mrpe", "ablation/pbc_mrpe_fes", "alignzeg"):
        model = config(f"{dataset}/{row}.yaml").MODEL.ALIGNZEG
        assert (model.PBC.POSTPROCESSOR == "PBC") == model.PBC.ENABLED
        rows[row] = [
            model.PBC.ENABLED,
            MRPE.__name__ == model.PIXEL_DECODER.NAME,
            model.GEPC.FEATURE_EXPANSION,
            many == model.GEPC.NUM_BACKGROUND_PROTOTYPES,
        ]
        assert model.GEPC.NUM_BACKGROUND_PROTOTYPES in (1, many)
    assert list(rows.values()) == [[part < row for part in range(4)] for row in range(5)]
    table_5 = config(f"{dataset}/ablation/transformer_decoder.yaml").MODEL.ALIGNZEG
    assert TransformerPixelDecoder.__name__ == table_5.PIXEL_DECODER.NAME
    table_5.PIXEL_DECODER.NAME = full.PIXEL_DECODER.NAME
    assert table_5 == full
