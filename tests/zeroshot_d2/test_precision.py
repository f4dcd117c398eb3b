"""Half precision at test time, and torch.compile where it can be had."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comparisons import assert_close
from detectron2.modeling import build_model
from torch import nn

from zeroshot_d2 import precision
from zeroshot_d2.cli import load_config
from zeroshot_d2.precision import compile_parts, missing_compiler, mixed, precision_at_test

IMAGE = torch.randint(0, 256, (3, 64, 96), generator=torch.Generator().manual_seed(0))


def outputs(model):
    (output,) = model([{"image": IMAGE}])
    return output


@pytest.mark.parametrize(
    "config", ["alignzeg", "epsilon", "baselines/san", "baselines/zegclip", "baselines/zegformer", "baselines/sdl"]
)
def test_bfloat16_gives_nearly_the_same_in_float32(config):
    cfg = load_config(f"demo/{config}.yaml", ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg).eval()
    exact = outputs(model)
    model.precision = torch.bfloat16
    rounded = outputs(model)
    key = "sem_seg" if "sem_seg" in exact else "scores"
    assert rounded[key].dtype == exact[key].dtype == torch.float32
    assert not torch.equal(rounded[key], exact[key])
    difference = (rounded[key] - exact[key]).abs().mean() / exact[key].abs().mean()
    assert difference < 0.1


def test_the_key_reaches_the_models(demo_cfg, epsilon_cfg, demo_model):
    for cfg in (demo_cfg, epsilon_cfg):
        assert build_model(cfg("TEST.PRECISION", "bfloat16")).precision is torch.bfloat16
        assert build_model(cfg()).precision is None
    with pytest.raises(ValueError, match=r"TEST\.PRECISION must be one of"):
        demo_cfg("TEST.PRECISION", "int8")


def test_training_is_not_touched(demo_cfg):
    model = build_model(demo_cfg("TEST.PRECISION", "bfloat16", "MODEL.ALIGNZEG.PBC.TOP_K", 2)).train()
    sem_seg = torch.zeros(64, 96, dtype=torch.long)
    losses = []
    for value in (torch.bfloat16, None):
        model.precision = value
        torch.manual_seed(0)
        losses.append(sum(model([{"image": IMAGE, "sem_seg": sem_seg}]).values()))
    assert_close(losses[0], losses[1])


def test_float16_is_for_cuda(demo_cfg, caplog):
    assert precision_at_test(demo_cfg("TEST.PRECISION", "float16", "MODEL.DEVICE", "cpu")) is None
    with mixed(torch.device("cpu"), None):
        assert not torch.is_autocast_enabled("cpu")
    with mixed(torch.device("cpu"), torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")


# ---- torch.compile ----


class Parts(nn.Module):
    compiled_parts = ("first",)

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)


def test_what_lacks_a_compiler_runs_as_it_is(demo_cfg, monkeypatch, caplog):
    cfg = demo_cfg("MODEL.COMPILE", True)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    assert missing_compiler("cpu").startswith("there is no C++ compiler")
    model = Parts()
    compile_parts(model, cfg)
    assert "MODEL.COMPILE is ignored: there is no C++ compiler" in caplog.text
    assert model.first._compiled_call_impl is None
    monkeypatch.setenv("CXX", "my-compiler")
    assert "(my-compiler; $CXX names another)" in missing_compiler("cpu")


def test_torch_does_not_compile_without_vector_instructions(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert missing_compiler("cpu") == ""
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert "ATEN_CPU_CAPABILITY=default" in missing_compiler("cpu")


def test_only_listed_parts_are_compiled(demo_cfg, monkeypatch):
    monkeypatch.setattr(precision, "missing_compiler", lambda device: "")
    model, plain = Parts(), Parts()
    compile_parts(plain, demo_cfg())
    assert plain.first._compiled_call_impl is None
    compile_parts(model, demo_cfg("MODEL.COMPILE", True))
    assert model.first._compiled_call_impl is not None and model.second._compiled_call_impl is None
    assert list(model.state_dict()) == list(plain.state_dict())
    with pytest.raises(ValueError, match="does not say which of its parts can be compiled; set it to False"):
        compile_parts(nn.Linear(1, 1), demo_cfg("MODEL.COMPILE", True))


_COMPILED = """
import torch
from detectron2.modeling import build_model
from zeroshot_d2.cli import load_config
from zeroshot_d2.precision import compile_parts

for config, keys in (("alignzeg", ["MODEL.ALIGNZEG.PBC.TOP_K", 2]), ("epsilon", [])):
    cfg = load_config(f"demo/{config}.yaml", ["MODEL.DEVICE", "cpu", "MODEL.COMPILE", True, *keys])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    generator = torch.Generator().manual_seed(0)
    inputs = [[{"image": torch.randint(0, 256, (3, *size), generator=generator)}] for size in ((64, 64), (64, 96), (96, 64))]
    key = {"alignzeg": "sem_seg", "epsilon": "scores"}[config]
    plain = [model(batch)[0][key] for batch in inputs]
    compile_parts(model, cfg)
    for batch, expected in zip(inputs, plain):
        found = model(batch)[0][key]
        assert (found - expected).abs().max() <= 1e-3 * expected.abs().max(), config
print("equal")
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(missing_compiler("cpu") != "", reason=missing_compiler("cpu"))
def test_compiled_models_give_what_they_gave_at_any_size(tmp_path):
    """In a process of its own: what torch.compile keeps would stay for other tests."""
    run = [sys.executable, "-W", "ignore", "-c", _COMPILED]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0 and "equal" in done.stdout, done.stderr[-3000:]
