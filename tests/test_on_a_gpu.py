"""Every system on a GPU: what it gives on the CPU, in float32; a step of training in every precision; a whole short run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comparisons import assert_close
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from devices import needs_gpu
from torch import nn

from alignzeg_d2.predictor import AlignZegPredictor
from benchmarks.gpu import Repeated
from epsilon_d2.predictor import EpsilonPredictor
from zeroshot_d2.cli import load_config
from zeroshot_d2.commands import train
from zeroshot_d2.demo_world import register_demo_world, register_demo_world_multilabel
from zeroshot_d2.precision import PRECISIONS, compile_parts, missing_compiler
from zeroshot_d2.solver import build_optimizer
from zeroshot_d2.storage import read_json
from zeroshot_d2.training_step import TrainingStep

pytestmark = needs_gpu

register_demo_world("gpu_alignzeg_test", seed=33, num_images=8)
register_demo_world_multilabel("gpu_epsilon_test", seed=33, num_images=8)

SYSTEMS = ("alignzeg", "alignzeg_full", "epsilon")
COMPARED = ("san", "san_gepc", "san_pbc", "zegclip", "zegformer", "simbaseline", "sdl", "fast0tag", "lesa", "biam", "ml2p")
CONFIGS = (*SYSTEMS, *(f"baselines/{name}" for name in COMPARED))
PROMPTED = ("MODEL.ALIGNZEG.CLIP.NUM_PROMPTS", 4)
LARGER = 1e-3  # a GPU sums in other orders, and its exponentials and roots are rounded otherwise


@pytest.fixture(autouse=True)
def exact_products():
    """Convolutions without TensorFloat-32, whose 10 bits cuDNN would use."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def config(name: str, device: str, *options: object) -> CfgNode:
    return load_config(f"demo/{name}.yaml", ["MODEL.DEVICE", device, *options])


def build(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    return build_model(cfg).eval()


def inputs(cfg: CfgNode, count: int = 2) -> list[dict[str, Any]]:
    """Random images, with labels of both kinds."""
    generator = torch.Generator().manual_seed(0)
    (dataset,) = cfg.DATASETS.TRAIN
    classes = len(MetadataCatalog.get(dataset).class_split)
    return [
        {
            "image": torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8),
            "sem_seg": torch.randint(0, classes, (4, 4), generator=generator).kron(torch.ones(16, 16, dtype=torch.long)),
            "positive_labels": torch.randperm(classes, generator=generator)[:3].numpy(),
            "dataset_name": dataset,
        }
        for _ in range(count)
    ]


def main_output(output: dict[str, Any]) -> torch.Tensor:
    return output["sem_seg" if "sem_seg" in output else "scores"].cpu()


@pytest.mark.parametrize("name", CONFIGS)
def test_gives_what_the_cpu_gives(name: str) -> None:
    on_cpu, on_gpu = (build(config(name, device)) for device in ("cpu", "cuda"))
    batch = inputs(config(name, "cpu"))
    for expected, found in zip(on_cpu(batch), on_gpu(batch), strict=True):
        assert_close(main_output(found), main_output(expected), LARGER)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_gives_nearly_the_same(name: str, precision: str) -> None:
    exact, rounded = (build(config(name, "cuda", "TEST.PRECISION", value)) for value in ("float32", precision))
    batch = inputs(config(name, "cpu"))
    for expected, found in zip(exact(batch), rounded(batch), strict=True):
        expected, found = main_output(expected), main_output(found)
        assert found.dtype == torch.float32
        assert (found - expected).abs().mean() < 0.1 * expected.abs().mean()


@pytest.mark.parametrize(
    ("name", "options"),
    [("alignzeg", ()), ("alignzeg", PROMPTED), ("alignzeg_full", ()), ("epsilon", ())],
    ids=["alignzeg", "alignzeg, prompts", "alignzeg_full", "epsilon"],
)
def test_losses_and_gradients_are_those_of_the_cpu(name: str, options: tuple[object, ...]) -> None:
    """With points on a grid and without dropout: random numbers of a GPU are others."""
    fixed = ("MODEL.EPSILON.GPA.DROPOUT", 0.0) if name == "epsilon" else ("MODEL.ALIGNZEG.LOSS.NUM_POINTS", 0)
    found = []
    for device in ("cpu", "cuda"):
        cfg = config(name, device, *options, *fixed)
        model = build(cfg).train()
        with EventStorage():
            losses = model(inputs(cfg))
        sum(losses.values()).backward()
        gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
        found.append(({name: loss.cpu() for name, loss in losses.items()}, gradients))
    (expected, expected_gradients), (losses, gradients) = found
    assert losses.keys() == expected.keys() and gradients.keys() == expected_gradients.keys() and gradients
    for key, loss in expected.items():
        assert_close(losses[key], loss, LARGER)
    largest = max(gradient.abs().max().item() for gradient in expected_gradients.values())
    for key, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[key], gradient, rtol=0.02, atol=LARGER * largest)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_of_training(name: str, precision: str) -> None:
    cfg = config(name, "cuda")
    model = build(cfg).train()
    step = TrainingStep(model, Repeated(inputs(cfg)), build_optimizer(cfg, model), precision=PRECISIONS[precision])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with EventStorage() as storage:
        for number in range(20):  # float16's scale is too large at first, and halved at each step that is skipped
            step.run_step()
            storage.step()
            if step.skipped <= number:
                break
        else:
            pytest.fail("every step was skipped")
    after = model.state_dict()
    assert any(not torch.equal(value, before[key]) for key, value in after.items())
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alignzeg", "epsilon"])
def test_train_evaluate_save_and_load(name: str, tmp_path: Path) -> None:
    words = ["MODEL.DEVICE", "cuda", "SOLVER.MAX_ITER", "4", "OUTPUT_DIR", str(tmp_path), "DATALOADER.NUM_WORKERS", "0"]
    words += ["DATASETS.TRAIN", f"('short_{name}_train',)", "DATASETS.TEST", f"('gpu_{name}_test',)"]
    words += ["SOLVER.AMP.ENABLED", "True"] + (["SOLVER.MAX_EPOCHS", "0"] if name == "epsilon" else [])
    train.main(["--config-file", f"demo/{name}.yaml", *words])
    assert torch.cuda.get_device_name() in str(read_json(tmp_path / "results.json"))
    image = inputs(config(name, "cpu"))[0]["image"].permute(1, 2, 0).numpy()
    of_system = AlignZegPredictor if name == "alignzeg" else EpsilonPredictor
    on_gpu, on_cpu = (of_system.from_pretrained(tmp_path, device=device) for device in ("cuda", "cpu"))
    assert on_gpu.model.device.type == "cuda" and on_cpu.model.device.type == "cpu"
    for predictor in (on_gpu, on_cpu):
        predictor(image)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(missing_compiler("cuda") != "", reason=missing_compiler("cuda"))
@pytest.mark.parametrize(
    ("name", "options"),
    [("alignzeg", ()), ("alignzeg", PROMPTED), ("epsilon", ())],
    ids=["alignzeg", "alignzeg, prompts", "epsilon"],
)
def test_compiled_models_train_and_give_what_they_gave(name: str, options: tuple[object, ...]) -> None:
    cfg = config(name, "cuda", "MODEL.COMPILE", True, *options)
    plain, compiled = build(cfg), build(cfg)
    compile_parts(compiled, cfg)
    batch = inputs(cfg)
    for expected, found in zip(plain(batch), compiled(batch), strict=True):
        assert_close(main_output(found), main_output(expected), LARGER)
    with EventStorage(), torch.autocast("cuda", torch.bfloat16):
        sum(compiled.train()(batch).values()).backward()
    assert all(p.grad.isfinite().all() for p in compiled.parameters() if p.grad is not None)
