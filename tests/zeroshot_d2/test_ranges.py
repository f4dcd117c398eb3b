"""Which values config keys may have: each kind of range, and how a value out of it is said wherever a config enters."""

import math

import pytest
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from fvcore.common.registry import Registry

from zeroshot_d2 import ranges
from zeroshot_d2.cli import load_config
from zeroshot_d2.ranges import (
    about,
    check_multiple,
    check_ranges,
    choice,
    declare,
    device,
    each,
    folder,
    number,
    optional,
    registered,
    text,
    whole,
)
from zeroshot_d2.segmentation.mapper import SegmentationMapper
from zeroshot_d2.startup import check_datasets, check_training

PARTS = Registry("PARTS_OF_RANGES")


@PARTS.register()
class Part:
    pass


@pytest.mark.parametrize(
    ("kind", "inside", "outside"),
    [
        (whole(1), [1, 10**9], [0, -1, 1.0, True, None, "1", math.nan]),
        (whole(-1, 3), [-1, 0, 3], [-2, 4]),
        (whole(0, 0), [0], [1]),
        (number(), [0, -1.5, 10**9], [math.nan, math.inf, "1", None, True]),
        (number(0, below=1), [0, 0.999], [1, -0.001]),
        (number(most=1, above=0), [1, 0.001], [0, 1.001]),
        (choice("a", "b"), ["a"], ["A", "", None, ["a"]]),
        (choice(False), [False], [True]),
        (registered(PARTS), ["Part"], ["part", "", None]),
        (text(), ["a"], ["", "  ", None, 3]),
        (device(), ["cpu", "cuda", "cuda:1", "mps", "mps:0"], ["gpu", "cuda:one", "meta", "", None]),
        (optional(number(0)), [None, 0], [-1, "a"]),
        (each(whole(1)), [(), [1, 2], (1, 1)], [(0,), 1, "1", None, (1, "a")]),
        (each(text(), least=1, distinct=True), [["a", "b"]], [[], ["a", "a"], ["a", ""]]),
        (each(number(), count=3), [[1, 2, 3.5]], [[1, 2], [1, 2, 3, 4]]),
    ],
)
def test_what_is_in_a_range(kind, inside, outside):
    assert [value for value in inside if not kind.holds(value)] == []
    assert [value for value in outside if kind.holds(value)] == []
    assert kind.words()


def test_a_folder_is_no_file_nor_below_one(tmp_path):
    (tmp_path / "file").touch()
    assert folder().holds(str(tmp_path)) and folder().holds(str(tmp_path / "new" / "folder"))
    assert not any(map(folder().holds, [str(tmp_path / "file"), str(tmp_path / "file" / "below"), "", None]))


def test_a_value_out_of_its_range_is_said_with_its_key(monkeypatch):
    monkeypatch.setattr(ranges, "_declared", {})
    declare("A.B", {"COUNT": whole(1), "C.SHARE": number(0, 1)})
    check_ranges(CfgNode({"OTHER": 0}))  # keys that a config does not have are no fault of it
    check_ranges(CfgNode({"A": {"B": 3}}))
    check_ranges(CfgNode({"A": {"B": {"COUNT": 1, "C": {"SHARE": 0.5}}}}))
    with pytest.raises(ValueError, match=r"A\.B\.COUNT must be a whole number from 1, got 0"):
        check_ranges(CfgNode({"A": {"B": {"COUNT": 0}}}))
    with pytest.raises(ValueError, match=r"A\.B\.C\.SHARE must be a number at least 0 and at most 1, got 2\.0"):
        check_ranges(CfgNode({"A": {"B": {"C": {"SHARE": 2.0}}}}))
    declare("A.B", {"COUNT": whole(0)})
    check_ranges(CfgNode({"A": {"B": {"COUNT": 0}}}))


def test_multiples_and_keys_in_front_of_errors():
    check_multiple("A", 12, "B", 4)
    with pytest.raises(ValueError, match="A 12 must be a multiple of B 5"):
        check_multiple("A", 12, "B", 5)
    for kind in (ValueError, FileNotFoundError):
        with pytest.raises(kind, match=r"A\.FILE 'x', A\.NAME 'y': is not there"), about("A", FILE="x", NAME="y"):
            raise kind("is not there")


@pytest.mark.parametrize(
    ("system", "key", "value"),
    [
        ("alignzeg", "SOLVER.MAX_ITER", 0),
        ("alignzeg", "SOLVER.CHECKPOINT_PERIOD", 0),
        ("alignzeg", "SEED", -2),
        ("alignzeg", "MODEL.DEVICE", "gpu"),
        ("alignzeg", "MODEL.ALIGNZEG.PBC.TOP_K", 0),
        ("alignzeg", "MODEL.ALIGNZEG.LOSS.OVERSAMPLE_RATIO", 0.0),
        ("alignzeg", "MODEL.ALIGNZEG.PIXEL_DECODER.NUM_HEADS", 0),
        ("alignzeg", "MODEL.ALIGNZEG.PIXEL_DECODER.NAME", "MaskFormer"),
        ("alignzeg", "INPUT.MIN_SIZE_TRAIN", ()),
        ("epsilon", "TEST.TOP_K", (3, 3)),
        ("epsilon", "MODEL.EPSILON.GPA.DROPOUT", 1.5),
    ],
)
def test_a_config_is_checked_wherever_it_enters(system, key, value):
    with pytest.raises(ValueError, match=rf"{key} must be .*, got "):
        load_config(f"demo/{system}.yaml", [key, value])
    cfg = load_config(f"demo/{system}.yaml")
    section, _, name = key.rpartition(".")
    node = cfg
    for part in section.split(".") if section else ():
        node = node[part]
    node[name] = value
    for use in (check_datasets, build_model, *([SegmentationMapper] if system == "alignzeg" else [])):
        with pytest.raises(ValueError, match=rf"{key} must be .*, got "):
            use(cfg)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.ALIGNZEG.IMAGE_ENCODER.IMAGE_SIZE", 65), "IMAGE_SIZE 65 must be a multiple of .*PATCH_SIZE 4"),
        (("MODEL.ALIGNZEG.IMAGE_ENCODER.NUM_HEADS", 5), "IMAGE_ENCODER.WIDTH 96 must be a multiple of .*NUM_HEADS 5"),
        (("MODEL.ALIGNZEG.CLIP.TAP", 6), "CLIP.TAP 6 must be one of the blocks before .*NUM_LAYERS 5 leave 1"),
        (("MODEL.ALIGNZEG.SEMANTIC_DECODER.NUM_LAYERS", 60), "CLIP.TAP 1 must be one of the blocks .*NUM_LAYERS 60"),
        (("MODEL.ALIGNZEG.CLIP.NAME", "ViT-B16"), "MODEL.ALIGNZEG.CLIP.NAME 'ViT-B16', .*unknown CLIP 'ViT-B16'"),
    ],
)
def test_what_two_keys_say_together_is_checked_by_the_part_that_reads_both(opts, message):
    with pytest.raises(ValueError, match=message):
        build_model(load_config("demo/alignzeg.yaml", opts))


def test_a_training_needs_data():
    cfg = load_config("demo/alignzeg.yaml", ["DATASETS.TRAIN", "()"])
    check_datasets(cfg)  # an evaluation needs none
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is \(\): name a data set to train on, such as "):
        check_training(cfg)
