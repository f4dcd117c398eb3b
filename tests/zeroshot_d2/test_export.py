"""What both exports share: both formats run what was traced for every free size, and say what they are."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from zeroshot_d2.export import (
    FORMATS,
    check_difference,
    check_path,
    free_images,
    greatest_difference,
    largest_difference,
    read_metadata,
    save_vocabulary,
    share_of_others,
    trace,
    write,
)


class Attends(nn.Module):
    """Has what makes exports difficult: a frozen part, attention with a fused kernel, ``len`` of a free dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.query = nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, tokens: Tensor, vectors: Tensor) -> Tensor:
        with torch.no_grad():
            tokens = self.frozen(tokens)
        tokens = torch.cat([self.query.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return self.layer(tokens)[:, 0] @ vectors.T


@pytest.fixture(scope="module")
def program() -> nn.Module:
    torch.manual_seed(0)
    return Attends().eval()


@pytest.fixture(scope="module")
def traced(program):
    fused, learns = torch.backends.mha.get_fastpath_enabled(), [p.requires_grad for p in program.parameters()]
    shapes = {"tokens": {0: free_images(), 1: Dim("l")}, "vectors": {0: Dim("k")}}
    result = trace(program, {"tokens": torch.zeros(2, 3, 8), "vectors": torch.zeros(2, 8)}, shapes)
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert [p.requires_grad for p in program.parameters()] == learns
    return result


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_file_does_what_the_program_does_and_says_what_it_is(program, traced, tmp_path, file_format):
    if file_format == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    path = tmp_path / "folder" / f"model{FORMATS[file_format]}"
    description = {"output": "scores", "names": ["a", "ä"]}
    run = write(traced, path, file_format, description, "toy.json")
    for n, length, k in ((1, 4, 3), (5, 2, 1)):
        inputs = {"tokens": torch.randn(n, length, 8), "vectors": torch.randn(k, 8)}
        torch.testing.assert_close(run(inputs).detach(), program(**inputs).detach(), atol=1e-5, rtol=1e-5)
    assert read_metadata(path, "toy.json") == description
    with pytest.raises(ValueError, match=r"model\..* has no entry other\.json: it is not an export of this system"):
        read_metadata(path, "other.json")


def test_the_output_of_an_onnx_file_has_its_name(traced, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    write(traced, tmp_path / "model.onnx", "onnx", {"output": "scores"}, "toy.json")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [x.name for x in session.get_inputs()] == ["tokens", "vectors"]
    assert [x.name for x in session.get_outputs()] == ["scores"]


def test_without_the_extra_one_sentence_says_how_to_get_it(traced, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[export\]'"):
        write(traced, tmp_path / "model.onnx", "onnx", {"output": "scores"}, "toy.json")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the exported file .*absent\.pt2 does not exist"):
        read_metadata(tmp_path / "absent.pt2", "toy.json")


def test_format_and_ending(tmp_path):
    check_path(tmp_path / "model.onnx", "onnx")
    check_path(tmp_path / "model.pt2", "torch_export")
    with pytest.raises(ValueError, match="--format must be one of onnx, torch_export, got 'tflite'"):
        check_path(tmp_path / "model.tflite", "tflite")
    with pytest.raises(ValueError, match=r"a file of format torch_export ends with \.pt2, got .*model\.onnx"):
        check_path(tmp_path / "model.onnx", "torch_export")


def test_a_vocabulary_lies_beside_the_program(tmp_path):
    save_vocabulary(tmp_path / "new" / "open.onnx", ("cat", "dog"), {"vectors": torch.eye(2)})
    stored = np.load(tmp_path / "new" / "open.vocabulary.npz")
    assert stored["names"].tolist() == ["cat", "dog"] and np.array_equal(stored["vectors"], np.eye(2))


def test_the_worst_of_all_examples_counts():
    examples = [({"x": torch.tensor([value])}, torch.tensor([1.0])) for value in (1.0, 3.0, 0.5)]
    assert largest_difference(lambda inputs: inputs["x"], examples, greatest_difference) == 2.0
    assert largest_difference(lambda inputs: inputs["x"], examples, share_of_others) == 1.0
    assert share_of_others(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 4])) == 0.25
    with pytest.raises(ValueError, match=r"returned \(1, 1\) instead of \(1,\)"):
        largest_difference(lambda inputs: inputs["x"][None], examples, greatest_difference)


@pytest.mark.parametrize("difference", [2e-3, float("nan")])
def test_a_program_that_differs_is_refused(tmp_path, difference):
    check_difference(1e-3, 1e-3, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"model\.onnx differs from the model by .*: do not use it"):
        check_difference(difference, 1e-3, tmp_path / "model.onnx")
