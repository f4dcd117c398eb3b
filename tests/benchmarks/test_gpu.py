"""The GPU benchmark in its CPU form, with small models; no test asserts a time."""

import argparse
import json
import time

import pytest
import torch
from detectron2.data import DatasetCatalog

from benchmarks import gpu
from zeroshot_d2.precision import PRECISIONS

CASE = gpu.Case("AlignZeg", 20, True, "bfloat16", False, 1)


def run_in(folder, **options):
    return gpu.Run(argparse.Namespace(output=folder, device="cpu", tiny=True, minutes=5, processes=2, **options), folder, {})


def test_every_case_is_there_once_and_what_needs_no_compiler_comes_first():
    groups = gpu.cases(gpu.FULL, "cuda")
    every = [case for group in groups for case in group]
    assert len(set(every)) == len(every) == len(gpu.MODELS) * 2 * len(PRECISIONS) * 2 * len(gpu.FULL.batches)
    assert not any(case.compiled for case in groups[0]) and {case.model[:2] for case in groups[0]} == set(gpu.MODELS)
    assert gpu.pair_case(gpu.FULL).batch == groups[0][0].batch == 16
    assert {case.precision for case in gpu.cases(gpu.TINY, "cpu")[0]} == {"float32", "bfloat16"}


@pytest.fixture
def quick(monkeypatch):
    """Options of a run that compiles nothing, but ends no earlier on a slow machine."""
    monkeypatch.setattr(gpu, "COMPILING", float("inf"))
    monkeypatch.setattr(gpu, "WARM_UP", 0)
    return ["--device", "cpu", "--tiny", "--repeats", "1", "--workers", "0", "--processes", "1", "--minutes", "60"]


def test_command_on_a_cpu(quick, tmp_path, capsys):
    assert gpu.main([*quick, "--output", str(tmp_path / "new")]) == 0
    content = json.loads((tmp_path / "new/gpu.json").read_text())
    measured = [result for result in content["results"] if not result["problem"]]
    assert {(r["case"]["system"], r["case"]["prompts"]) for r in measured} == set(gpu.MODELS)
    for result in measured:
        assert result["finite"] and result["images_per_second"] > 0 and result["share_of_rate"] > 0
        assert isinstance(result["waits_for_loader"], bool) == result["case"]["training"]
        assert result["peak_megabytes"] is None  # of a card
    left = [result for result in content["results"] if result["problem"]]
    assert {result["problem"] for result in left} == {gpu.NOT_REACHED}
    assert all(result["case"]["compiled"] for result in left)
    text = (tmp_path / "new/gpu.md").read_text()
    assert text.count("\n| ") == len(measured) + 1 and f"{len(left)} further cases were not reached" in text
    assert "only to try the command" in text
    assert capsys.readouterr().out.count("images/s") == len(measured)
    assert gpu.DATASET not in DatasetCatalog.list()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a machine without GPUs, two processes talk through gloo")
def test_two_processes(tmp_path):
    found = gpu.two_processes(run_in(tmp_path, repeats=1).args)
    assert found.case == gpu.pair_case(gpu.TINY) and found.finite and len(found.seconds) == 1
    assert found.images_per_second == pytest.approx(2 * found.case.batch / found.seconds[0])
    assert not (tmp_path / gpu.PAIR_FILE).exists()


# ---- what goes wrong ----


@pytest.mark.parametrize(
    ("error", "problem", "failed"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory", False),
        (FloatingPointError("the loss is not finite in iteration 3"), "the loss is not finite in iteration 3", True),
        (RuntimeError("the compiler\nfailed"), "RuntimeError: the compiler", True),
        (ChildProcessError("process 1 of 2 was killed"), "ChildProcessError: process 1 of 2 was killed", True),
    ],
)
def test_a_case_that_fails_is_recorded(error, problem, failed, tmp_path):
    def measure():
        raise error

    run = run_in(tmp_path)
    result = run.tried(CASE, 1, measure)
    assert (result.problem, result.failed, result.images_per_second) == (problem, failed, None)
    run.add(result)
    assert json.loads((tmp_path / "gpu.json").read_text())["results"][0]["problem"] == problem
    assert problem in (tmp_path / "gpu.md").read_text()


def test_a_fault_of_the_benchmark_itself_is_not_hidden(tmp_path):
    def measure():
        raise KeyError("case")

    with pytest.raises(KeyError):
        run_in(tmp_path).tried(CASE, 1, measure)


def test_no_case_starts_that_may_end_too_late(tmp_path):
    run = run_in(tmp_path)
    run.end = time.monotonic() + 50
    assert run.tried(CASE, 60, lambda: pytest.fail("it was started")).problem == gpu.NOT_REACHED


def test_a_failure_is_the_status_of_the_command(quick, tmp_path, monkeypatch, capsys):
    def fails(*args):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu, "measured", fails)
    monkeypatch.setattr(gpu, "MODELS", gpu.MODELS[:1])
    assert gpu.main([*quick, "--output", str(tmp_path)]) == 1
    assert "failed: AlignZeg, 20 prompts training bfloat16 no 2 1: RuntimeError: no such kernel" in capsys.readouterr().err


def test_outputs_that_are_not_finite_are_seen(tmp_path):
    assert gpu._is_finite([{"scores": torch.ones(3), "labels": torch.ones(3, dtype=torch.long), "proposals": None}])
    assert not gpu._is_finite([{"scores": torch.tensor([1.0, float("nan")])}])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_told_what_to_do(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--output", str(tmp_path)])
    assert "--device cuda: this machine has no GPU that torch can use; --device cpu --tiny" in capsys.readouterr().err
