"""What both exports share: both formats run what was traced for every free size, and say what they are."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from zeroshot_d2.export import (
    FORMATS,
    OPSETS,
    check_difference,
    check_opset,
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


SHAPES = {"tokens": {0: free_images(), 1: 2 * Dim("l") + 1}, "vectors": {0: Dim("k")}}


@pytest.fixture(scope="module")
def program() -> nn.Module:
    torch.manual_seed(0)
    return Attends().eval()


@pytest.fixture(scope="module")
def traced(program):
    fused, learns = torch.backends.mha.get_fastpath_enabled(), [p.requires_grad for p in program.parameters()]
    result = trace(program, {"tokens": torch.zeros(2, 5, 8), "vectors": torch.zeros(2, 8)}, SHAPES)
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert [p.requires_grad for p in program.parameters()] == learns
    return result


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_file_does_what_the_program_does_and_says_what_it_is(program, traced, tmp_path, file_format):
    if file_format == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    path = tmp_path / "folder" / f"model{FORMATS[file_format]}"
    description = {"output": "scores", "names": ["a", "ä"]}
    run = write(traced, path, file_format, description, "toy.json", shapes=SHAPES)
    for n, length, k in ((1, 5, 3), (5, 7, 1)):
        inputs = {"tokens": torch.randn(n, length, 8), "vectors": torch.randn(k, 8)}
        found = run(inputs)
        assert not found.requires_grad  # it would keep all that was computed
        torch.testing.assert_close(found, program(**inputs).detach(), atol=1e-5, rtol=1e-5)
    content = path.read_bytes()
    for trace_of_this_machine in (str(Path(__file__).parent), "test_export.py", "forward("):
        assert trace_of_this_machine.encode() not in content
    assert read_metadata(path, "toy.json") == description
    with pytest.raises(ValueError, match=r"model\..* has no entry other\.json: it is not an export of this system"):
        read_metadata(path, "other.json")


def test_the_inputs_and_outputs_of_an_onnx_file_and_their_dimensions_have_names(traced, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    write(traced, tmp_path / "model.onnx", "onnx", {"output": "scores"}, "toy.json", shapes=SHAPES)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert {x.name: x.shape for x in session.get_inputs()} == {"tokens": ["n", "2*l + 1", 8], "vectors": ["k", 8]}
    assert {x.name: x.shape for x in session.get_outputs()} == {"scores": ["n", "k"]}


@pytest.mark.slow
@pytest.mark.parametrize("opset", [None, *OPSETS])
def test_every_opset_does_what_the_program_does(program, traced, tmp_path, opset):
    onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")
    try:
        run = write(traced, tmp_path / "model.onnx", "onnx", {"output": "scores"}, "toy.json", shapes=SHAPES, opset=opset)
    except ValueError as error:  # older releases of PyTorch and onnxruntime know fewer
        assert opset not in (None, OPSETS[0])
        assert re.search(r"take --opset \d+$|take a lower one", str(error)) and not (tmp_path / "model.onnx").exists()
        pytest.skip(str(error))
    inputs = {"tokens": torch.randn(3, 9, 8), "vectors": torch.randn(4, 8)}
    torch.testing.assert_close(run(inputs), program(**inputs).detach(), atol=1e-5, rtol=1e-5)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset or OPSETS[0])]
    assert model.ir_version == onnx.helper.find_min_ir_version_for(model.opset_import)


@pytest.mark.parametrize("opset", [9, 17, 99])
def test_opsets_that_cannot_be_written(opset):
    with pytest.raises(ValueError, match=rf"--opset {opset} cannot be written: .* from 18 on, the lowest, to {OPSETS[-1]}"):
        check_opset(opset, "onnx")


def test_only_onnx_has_opsets():
    check_opset(None, "torch_export")
    with pytest.raises(ValueError, match="--opset 20 is for ONNX: leave it out with --format torch_export"):
        check_opset(20, "torch_export")


def test_without_the_extra_one_sentence_says_how_to_get_it(traced, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[export\]'"):
        write(traced, tmp_path / "model.onnx", "onnx", {"output": "scores"}, "toy.json", shapes=SHAPES)


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
