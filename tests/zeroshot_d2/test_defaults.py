"""Models, losses and new vocabularies whatever a program has set as torch's dtype and device."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from comparisons import assert_close
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from zeroshot_d2.cli import import_systems, load_config
from zeroshot_d2.defaults import plain_defaults
from zeroshot_d2.demo_world import SPLIT, render
from zeroshot_d2.system import find_system

import_systems()
CONFIGS = Path(__file__).parents[2] / "configs"
METHODS = ["alignzeg", "alignzeg_full", "epsilon", *(f"baselines/{path.stem}" for path in CONFIGS.glob("demo/baselines/*"))]
OTHER_DTYPES = [torch.float64, torch.bfloat16, torch.float16]


@contextlib.contextmanager
def defaults(dtype: torch.dtype, device: str = "cpu") -> Iterator[None]:
    """What a program may have set before it uses the project."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


# ---- the block ----


@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_within_the_block_the_defaults_are_torchs_own_and_afterwards_the_programs(dtype: torch.dtype) -> None:
    with defaults(dtype, "meta"):
        with plain_defaults(), plain_defaults():
            made = nn.Linear(2, 2).weight
        with pytest.raises(ZeroDivisionError), plain_defaults():
            raise ZeroDivisionError
        after = torch.zeros(2)
    assert (made.dtype, made.device.type) == (torch.float32, "cpu")
    assert (after.dtype, after.device.type) == (dtype, "meta")


def test_threads_leave_the_programs_defaults() -> None:
    @plain_defaults()
    def build(_: int) -> set[torch.dtype]:
        return {nn.Linear(3, 3).weight.dtype for _ in range(20)}

    with defaults(torch.float64), ThreadPoolExecutor(8) as pool:
        found = list(pool.map(build, range(64)))
        assert torch.get_default_dtype() == torch.float64
    assert found == [{torch.float32}] * 64


# ---- all methods ----


@pytest.fixture(params=METHODS)
def cfg(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CfgNode:
    """Each method of the demo world, without a cache: every vocabulary is computed."""
    monkeypatch.setenv("ZEROSHOT_D2_CACHE", str(tmp_path / "never written" / "a"))
    (tmp_path / "never written").write_text("")
    return load_config(f"demo/{request.param}.yaml", ["MODEL.DEVICE", "cpu"])


def built(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    return build_model(cfg)


def outputs(model: nn.Module, cfg: CfgNode) -> dict[str, Tensor]:
    """The losses of two images, and the scores of one of them with a vocabulary that was not there before."""
    names = ("sem_seg",) if find_system(cfg.MODEL.META_ARCHITECTURE).task == "segmentation" else ("positive_labels",)
    batch: list[dict[str, Any]] = []
    for index in range(2):
        scene = render(7, index)
        truth = {"sem_seg": torch.from_numpy(scene.label).long(), "positive_labels": sorted(scene.classes)}
        image = torch.from_numpy(scene.image.transpose(2, 0, 1).copy())
        batch.append({"image": image, "vocabulary": SPLIT, "seed": index, **{name: truth[name] for name in names}})
    torch.manual_seed(0)
    losses = model.train()(batch)
    sum(losses.values()).backward()
    with torch.no_grad():
        (output,) = model.eval()([{"image": batch[0]["image"], "vocabulary": ["zebra", "plain red tile", "dark water"]}])
    return {**losses, **{key: value for key, value in output.items() if isinstance(value, Tensor)}}


@pytest.mark.slow
def test_a_program_in_another_dtype_gets_the_same(cfg: CfgNode) -> None:
    expected = outputs(built(cfg), cfg)
    for dtype in (torch.float64, torch.bfloat16):
        with defaults(dtype):
            model = built(cfg)
            found = outputs(model, cfg)
        assert {value.dtype for value in model.state_dict().values()} <= {torch.float32, torch.int64}
        for key, value in expected.items():
            assert found[key].dtype == value.dtype, key
            assert_close(found[key].detach(), value.detach())


@pytest.mark.slow
def test_a_program_with_another_default_device_gets_the_same_weights_and_vectors(cfg: CfgNode) -> None:
    names = ["zebra", "dark water"]
    expected = built(cfg)
    with torch.device("meta"):
        model = built(cfg)
        embeddings = getattr(model, "text_embeddings", None) or model.label_embeddings
        vectors = embeddings(names)
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    assert_close(vectors, (getattr(expected, "text_embeddings", None) or expected.label_embeddings)(names))


# ---- Python's own settings ----


@pytest.mark.slow
@pytest.mark.parametrize(("option", "status"), [("-O", 0), ("-OO", 1)])
def test_python_without_assertions_and_without_docstrings(option: str, status: int) -> None:
    run = subprocess.run(
        [sys.executable, option, "-W", "ignore", "-m", "zeroshot_d2", "check", "--help"], capture_output=True, text=True
    )
    assert run.returncode == status, run.stderr
    if status:
        assert "python -OO (or PYTHONOPTIMIZE=2) removes docstrings" in run.stderr and run.stderr.endswith("use -O\n")
