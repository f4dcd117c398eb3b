"""Test sets of the same images: which they are, how often the network runs, and that no number changes."""

import pytest
import torch
from detectron2.modeling import build_model

from zeroshot_d2 import load_config
from zeroshot_d2.cli import import_systems
from zeroshot_d2.demo_world import register_demo_world, register_demo_world_multilabel
from zeroshot_d2.shared_pass import distinct_images, sets_of_same_images
from zeroshot_d2.system import find_system
from zeroshot_d2.trainer import Trainer

import_systems()
register_demo_world("shared_val", seed=21, num_images=7)
register_demo_world("shared_val_unseen", seed=21, num_images=7, vocabulary="unseen")
register_demo_world("shared_other", seed=22, num_images=3)
register_demo_world_multilabel("shared_labels", seed=21, num_images=7)
register_demo_world_multilabel("shared_labels_unseen", seed=21, num_images=7, vocabulary="unseen")

SEGMENTATION = ("shared_val", "shared_other", "shared_val_unseen")
LABELS = ("shared_labels", "shared_labels_unseen")
CONFIGS = [
    ("demo/alignzeg.yaml", SEGMENTATION, "extract_proposals"),
    ("demo/baselines/san.yaml", SEGMENTATION, "extract_proposals"),
    ("demo/baselines/simbaseline.yaml", SEGMENTATION, "extract_proposals"),
    ("demo/epsilon.yaml", LABELS, "extract_semantics"),
    ("demo/baselines/biam.yaml", LABELS, "_tokens_of"),
]


def test_sets_of_the_same_files_belong_together():
    def records(*names):
        return [{"file_name": name} for name in names]

    sets = {
        "a": records("x", "y"),
        "b": records("y", "x"),
        "c": records("x", "y"),
        "d": records("x"),
        "e": records("x", "y"),
    }
    assert sets_of_same_images(sets) == [["a", "c", "e"], ["b"], ["d"]]
    assert sets_of_same_images({"a": [{}], "b": [{}]}) == [["a"], ["b"]]  # without files, nothing is known


def test_inputs_of_one_tensor():
    image, other = torch.zeros(1), torch.zeros(1)
    assert distinct_images([{"image": image}, {"image": other}, {"image": image}]) == ([0, 1], [0, 1, 0])


@pytest.mark.parametrize(("config", "names", "network"), CONFIGS, ids=lambda value: value if isinstance(value, str) else "")
def test_one_pass_gives_the_numbers_of_several(config, names, network, tmp_path, monkeypatch):
    opts = ["TEST.IMS_PER_BATCH", 3, "DATALOADER.NUM_WORKERS", 1, "OUTPUT_DIR", str(tmp_path)]
    cfg = load_config(config, [*opts, "DATASETS.TEST", str(names)])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    images = 0
    compute = getattr(model, network)

    def counted(given):
        nonlocal images
        images += len(given)
        return compute(given)

    monkeypatch.setattr(model, network, counted)
    together = Trainer.test(cfg, model)
    assert list(together) == list(names)
    assert images == (10 if names is SEGMENTATION else 7)
    alone = {}
    for name in names:
        cfg.DATASETS.TEST = (name,)
        alone |= Trainer.test(cfg, model)
    for name in names:
        for key, value in alone[name].items():
            if isinstance(value, float):
                assert together[name][key] == pytest.approx(value, rel=1e-5, abs=1e-4), (name, key)
    assert not model.training


def test_a_mapper_of_ones_own_reads_each_set(monkeypatch):
    cfg = load_config("demo/alignzeg.yaml", ["DATASETS.TEST", str(SEGMENTATION)])
    assert Trainer._test_groups(cfg) == [["shared_val", "shared_val_unseen"], ["shared_other"]]
    object.__setattr__(find_system("AlignZeg"), "mapper", lambda cfg, is_train: None)
    try:
        assert Trainer._test_groups(cfg) == [[name] for name in SEGMENTATION]
    finally:
        object.__setattr__(find_system("AlignZeg"), "mapper", None)
