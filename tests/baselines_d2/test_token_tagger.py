"""The five taggers as systems: what learns, vocabularies, labels, checkpoints, and training through Trainer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparisons import NETWORK, assert_close
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from baselines_d2.token_tagger import TokenTagger, signed_labels
from epsilon_d2.modeling.backbone import FrozenViT
from zeroshot_d2 import ClassSplit, load_config
from zeroshot_d2.demo_world import register_demo_world_multilabel
from zeroshot_d2.multilabel.registration import register_multilabel
from zeroshot_d2.predictor import build_predictor
from zeroshot_d2.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("fast0tag", "sdl", "lesa", "biam", "ml2p")
LOSSES = {
    "fast0tag": {"loss_rank"},
    "sdl": {"loss_rank", "loss_reg"},
    "lesa": {"loss_rank", "loss_distribution", "loss_global", "loss_span"},
    "biam": {"loss_rank"},
    "ml2p": {"loss_rank", "loss_reg"},
}
SPLIT = MetadataCatalog.get("demo_world_multilabel_test").class_split
BACKBONE, LABELS = "MODEL.EPSILON.BACKBONE", "MODEL.EPSILON.LABEL_EMBEDDINGS"

every_method = pytest.mark.parametrize("method", METHODS)


def config(method: str, *options: object) -> CfgNode:
    random = (f"{BACKBONE}.PRETRAINED", "", f"{LABELS}.CLIP_PRETRAINED", "", f"{LABELS}.TEMPLATES", "single")
    return load_config(f"demo/baselines/{method}.yaml", [*random, "DATALOADER.NUM_WORKERS", 0, *options])


def tagger(method: str, *options: object) -> TokenTagger:
    torch.manual_seed(0)
    return build_model(config(method, *options)).eval()


@pytest.fixture
def inputs() -> list[dict[str, Any]]:
    """Three training samples of the demo world, the second one without a label."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8),
            "dataset_name": "demo_world_multilabel_train",
            "positive_labels": labels,
        }
        for labels in ([0, 5, 7], [], [3])
    ]


@every_method
def test_training_moves_the_head_and_nothing_else(method, inputs):
    model = tagger(method).train()
    assert isinstance(model.backbone, FrozenViT)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    assert before and all(name == "label_mean" or name.startswith("head.") for name in before)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(2):
        losses = model(inputs)
        assert set(losses) == LOSSES[method] and all(loss.isfinite() for loss in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert all(torch.equal(value, frozen[name]) for name, value in model.backbone.state_dict().items())
    assert all(p.grad is None for p in model.backbone.parameters())
    learnt = {name for name, p in model.named_parameters() if p.requires_grad}
    same = {name for name in learnt if torch.equal(model.state_dict()[name], before[name])}
    # A bias of all keys changes no softmax over them.
    assert same <= {"head.region.key.bias"}, same


@every_method
def test_images_without_a_label_give_no_nan(method, inputs):
    model = tagger(method).train()
    losses = model([inputs[1], inputs[1]])
    assert set(losses) == LOSSES[method] and all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_method
def test_scores_follow_any_vocabulary(method, inputs):
    model = tagger(method)
    image = inputs[0]["image"]
    names = ["red tile", "dark water", "striped thing|zebra"]  # none of them was trained on
    with torch.no_grad():
        forward, backward, default, split, trained = model(
            [
                {"image": image, "vocabulary": names},
                {"image": image, "vocabulary": names[::-1]},
                {"image": image},
                {"image": image, "vocabulary": ClassSplit(SPLIT.names[:3])},
                inputs[0],
            ]
        )
    assert all(set(output) == {"scores"} and output["scores"].isfinite().all() for output in (forward, default))
    assert_close(forward["scores"], backward["scores"].flip(0))
    assert default["scores"].shape == (len(SPLIT),) and trained["scores"].shape == (len(SPLIT.only_seen()),)
    assert_close(split["scores"], default["scores"][:3])
    assert forward["scores"].std() > 0


@every_method
def test_a_batch_gives_what_its_images_give_alone(method, inputs):
    model = tagger(method)
    with torch.no_grad():
        together = model(inputs)
        alone = [model([x])[0] for x in inputs]
    for a, b in zip(together, alone, strict=True):
        assert_close(a["scores"], b["scores"])


@every_method
def test_the_head_runs_in_full_precision(method, inputs):
    model = tagger(method)
    with torch.no_grad():
        expected = [output["scores"] for output in model(inputs)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            given = [output["scores"] for output in model(inputs)]
    assert all(scores.dtype == torch.float32 for scores in given)
    # Only the backbone was rounded.
    assert_close(torch.stack(given), torch.stack(expected), 0.1)


# ------------------------------------------------------------------------------------------------------- training
@pytest.fixture
def small_sets() -> Iterator[tuple[str, str]]:
    names = ("taggers_small_train", "taggers_small_test")
    register_demo_world_multilabel(names[0], 1, 16, vocabulary="seen")
    register_demo_world_multilabel(names[1], 2, 12)
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@every_method
def test_two_steps_an_evaluation_and_a_prediction(method, small_sets, tmp_path):
    train, test = small_sets
    options = ("SOLVER.MAX_EPOCHS", 0, "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 4, "OUTPUT_DIR", str(tmp_path))
    cfg = config(method, "DATASETS.TRAIN", (train,), "DATASETS.TEST", (test,), *options)
    results = Trainer(cfg).train()
    assert results[test]["num_images"] == 12 and {"ZSL_mAP", "GZSL_mAP"} <= set(results[test])

    weights = ("MODEL.WEIGHTS", str(tmp_path / "model_final.pth"))
    predictor = build_predictor(config(method, "DATASETS.TRAIN", (), "DATASETS.TEST", (), *weights))
    tags = predictor(np.zeros((40, 90, 3), dtype=np.uint8), vocabulary=["red tile", "grass"])
    assert tags.scores.shape == (2,) and np.isfinite(tags.scores).all()


SETS = """
from zeroshot_d2.demo_world import register_demo_world_multilabel

register_demo_world_multilabel("taggers_pair_train", 1, 16, vocabulary="seen")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("method", "options"), [("lesa", {}), ("sdl", {"MODEL.SDL.LOSS.REDUCTION": "sum"})])
def test_two_processes_train_as_one(method, options, tmp_path):
    """Batch norms, norms and sums over a batch, not only means over its images."""
    (tmp_path / "sets.py").write_text(SETS)
    words = ["--config-file", str(ROOT / f"configs/demo/baselines/{method}.yaml"), "--import", "sets.py"]
    settings: dict[str, object] = {
        "DATASETS.TRAIN": "('taggers_pair_train',)",
        "DATASETS.TEST": "()",
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.MAX_EPOCHS": 0,
        "SOLVER.MAX_ITER": 3,
        f"{BACKBONE}.PRETRAINED": "",
        f"{LABELS}.TEMPLATES": "single",
        **options,
    }
    losses = []
    for processes in (1, 2):
        run = tmp_path / f"run{processes}"
        command = [sys.executable, str(ROOT / "train_net.py"), *words, "--num-gpus", str(processes)]
        command += [str(word) for pair in {**settings, "OUTPUT_DIR": run}.items() for word in pair]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
        losses.append({key: value for line in lines for key, value in line.items() if "loss" in key})
    assert LOSSES[method] <= set(losses[0])
    assert losses[1] == pytest.approx(losses[0], rel=NETWORK)


# --------------------------------------------------------------------------------------------------------- labels
def test_signed_labels_follow_the_data_set():
    split = ClassSplit(("a", "b", "c"))
    for name, complete in (("signed_complete", True), ("signed_sparse", False)):
        register_multilabel(name, split, "", {"x.png": {"a": 1, "b": -1}}, complete=complete)
    sample = {"positive_labels": [0], "negative_labels": np.array([1])}
    batch = [
        {**sample, "dataset_name": "signed_complete"},
        {**sample, "dataset_name": "signed_sparse"},
        {"positive_labels": [], "dataset_name": "signed_sparse"},
        {"positive_labels": [2]},
    ]
    assert signed_labels(batch, 3).tolist() == [[1, -1, -1], [1, -1, 0], [0, 0, 0], [-1, -1, 1]]
    with pytest.raises(ValueError, match="not all among the 3 classes"):
        signed_labels([{"positive_labels": [3]}], 3)


@pytest.mark.parametrize(
    ("options", "used"),
    [
        ((), [True, True, True]),
        (("MODEL.LESA.SKIP_UNLABELLED", True), [True, False, True]),
    ],
)
def test_images_that_do_not_train_change_nothing(inputs, options, used, monkeypatch):
    model = tagger("lesa", *options).train()
    seen: list[Any] = []
    prepare = model.images_of
    monkeypatch.setattr(model, "images_of", lambda batch: seen.extend(batch) or prepare(batch))
    model(inputs)
    assert [any(x is y for y in seen) for x in inputs] == used


def test_images_with_too_many_labels_do_not_train(inputs):
    few = {**inputs[0], "positive_labels": [0, 5]}
    options = ("MODEL.BIAM.MAX_LABELS", 2, "MODEL.BIAM.DROPOUT", 0.0, "MODEL.BIAM.SCENE_DROPOUT", 0.0)
    losses = [tagger("biam", *options).train()(batch) for batch in ([few], [few, inputs[0]])]
    assert_close(losses[1]["loss_rank"], losses[0]["loss_rank"])
    nothing = tagger("biam", "MODEL.BIAM.MAX_LABELS", 2).train()([inputs[0], inputs[1]])
    assert nothing["loss_rank"].item() == 0 and nothing["loss_rank"].requires_grad


# --------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("method", "key", "value", "message"),
    [
        ("sdl", f"{BACKBONE}.CLS_TOKEN", True, "CLS_TOKEN is True: SDL needs False"),
        ("biam", f"{BACKBONE}.CLS_TOKEN", False, "CLS_TOKEN is False: BiAM needs True"),
        ("biam", "MODEL.BIAM.NUM_HEADS", 7, "NUM_HEADS 7 does not divide MODEL.BIAM.CHANNELS"),
        ("biam", "MODEL.BIAM.TOP_PATCHES", 65, "TOP_PATCHES is 65, but an image has 64 patches"),
        ("ml2p", "MODEL.ML2P.GRID", 3, "GRID 3 does not divide a feature map of 8 x 8"),
        ("sdl", "MODEL.SDL.LOSS.WEIGHT", 1.5, r"MODEL.SDL.LOSS.WEIGHT must be .*got 1.5"),
        ("fast0tag", "MODEL.FAST0TAG.LOSS.FORM", "hinge", r"MODEL.FAST0TAG.LOSS.FORM must be one of .*got 'hinge'"),
    ],
)
def test_broken_configs(method, key, value, message):
    with pytest.raises(ValueError, match=message):
        tagger(method, key, value)


def test_a_sample_of_negatives_goes_with_pairs_only(inputs):
    options = ("MODEL.FAST0TAG.LOSS.FORM", "bce", "MODEL.FAST0TAG.LOSS.NUM_NEGATIVES", 5)
    with pytest.raises(ValueError, match="'bce' takes no sample of the absent classes"):
        tagger("fast0tag", *options).train()(inputs)
