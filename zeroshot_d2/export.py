"""Export to ONNX or torch.export, as far as all systems do the same: tracing, writing, describing, comparing.

What is exported is a module that takes tensors by name and returns one tensor. A system adds that module, a description of
what a user of the file must know, and examples of what its model itself returns.
"""

from __future__ import annotations

import json
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .storage import whole_file

FORMATS = {"onnx": ".onnx", "torch_export": ".pt2"}
OPSETS = range(18, 26)
"""Of ONNX: torch's exporter writes none before 18, and onnxruntime 1.32 runs none behind 25."""
# Greatest difference from the model's own scores, which are of order 1 in all systems. The kernels of two runtimes round
# differently, and what follows multiplies that: by 100 in the case of CLIP's logit scale.
TOLERANCE = 1e-3

Run = Callable[[Mapping[str, Tensor]], Tensor]
"""An exported program: inputs by name -> its output."""


def check_path(path: Path, file_format: str) -> None:
    """Raises ValueError for an unknown format, or a ``path`` that does not end as files of that format do."""
    if file_format not in FORMATS:
        raise ValueError(f"--format must be one of {', '.join(FORMATS)}, got {file_format!r}")
    if path.suffix != FORMATS[file_format]:
        raise ValueError(f"a file of format {file_format} ends with {FORMATS[file_format]}, got {path}")


def check_opset(opset: int | None, file_format: str) -> None:
    """Raises ValueError for an opset that cannot be written, or one for a format that has none."""
    if opset is None:
        return
    if file_format != "onnx":
        raise ValueError(f"--opset {opset} is for ONNX: leave it out with --format {file_format}")
    if opset not in OPSETS:
        raise ValueError(
            f"--opset {opset} cannot be written: PyTorch's exporter gives opsets from {OPSETS[0]} on, the lowest, "
            f"to {OPSETS[-1]}"
        )


def free_images() -> Dim:
    """The number of images as a free size. It has a limit, since torch 2.7 refuses to trace one without."""
    return Dim("n", max=2**31 - 1)


def trace(program: nn.Module, inputs: Mapping[str, Tensor], shapes: Mapping[str, Any]) -> ExportedProgram:
    """torch.export of ``program`` on examples of its inputs.

    Args:
        program: in evaluation mode. It may ask for ``x.shape[0]``, but ``len(x)`` would fix the number.
        inputs: by name. No dimension that is to be free may be 1: torch.export would take it as fixed.
        shapes: for each input its free dimensions, {dimension: torch.export.Dim}.
    """
    with _exportable(program):
        exported = torch.export.export(program, (), dict(inputs), dynamic_shapes=dict(shapes), strict=False)
    # What it returns needs no gradients, which would keep everything that was computed.
    for name, value in exported.state_dict.items():
        if isinstance(value, nn.Parameter):
            exported.state_dict[name] = nn.Parameter(value.detach(), requires_grad=False)
    for node in exported.graph.nodes:  # files and lines of this machine
        node.meta.pop("stack_trace", None)
    return exported


@contextmanager
def _exportable(program: nn.Module) -> Iterator[None]:
    """Without gradients, and with attention in its plain form: the fused one is a kernel that only PyTorch has."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    learns = [parameter for parameter in program.parameters() if parameter.requires_grad]
    try:
        for parameter in learns:
            parameter.requires_grad_(False)
        with torch.no_grad():  # else the frozen part would become a block of its own, which .pt2 archives cannot hold
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for parameter in learns:
            parameter.requires_grad_(True)


def write(
    exported: ExportedProgram,
    path: Path,
    file_format: str,
    description: Mapping[str, Any],
    description_key: str,
    *,
    shapes: Mapping[str, Mapping[int, Any]],
    opset: int | None = None,
) -> Run:
    """Write a traced program, with its description in the file's metadata.

    Args:
        exported: what :func:`trace` returned.
        path: of the file; its folder is made.
        file_format: one of :data:`FORMATS`.
        description: anything that JSON can hold; its "output" is the name of the output.
        description_key: under which :func:`read_metadata` finds it.
        shapes: as for :func:`trace`; ONNX files get the names of the free dimensions.
        opset: of ONNX, one of :data:`OPSETS`; None: the lowest, which most runtimes know.

    Returns:
        the program as read from the file and run by the file's own runtime.

    Raises:
        ModuleNotFoundError: ONNX without the packages of the extra "export".
        ValueError: PyTorch's exporter cannot write this opset, or onnxruntime cannot run it.
    """
    check_opset(opset, file_format)
    if file_format == "onnx":
        return _write_onnx(exported, path, description, description_key, shapes, OPSETS[0] if opset is None else opset)
    return _write_torch_export(exported, path, description, description_key)


def _write_torch_export(exported: ExportedProgram, path: Path, description: Mapping[str, Any], key: str) -> Run:
    with whole_file(path) as temporary:
        torch.export.save(exported, temporary, extra_files={key: json.dumps(description)})
    loaded = torch.export.load(path).module()  # what was just written here
    return lambda inputs: loaded(**inputs)


def _write_onnx(
    exported: ExportedProgram,
    path: Path,
    description: Mapping[str, Any],
    key: str,
    shapes: Mapping[str, Mapping[int, Any]],
    opset: int,
) -> Run:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx needs it)
        from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; ONNX needs the extra: pip install -e '.[export]'", name=error.name) from error
    # It warns of every node with several outputs that it does not fold.
    logging.getLogger("onnxscript.optimizer").setLevel(logging.ERROR)
    converted = torch.onnx.export(exported, (), dynamo=True, verbose=False, opset_version=opset)
    assert converted is not None
    model = converted.model
    written = model.opset_imports[""]
    if written != opset:
        raise ValueError(f"PyTorch {torch.__version__} writes opset {written} instead of {opset}: take --opset {written}")
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    model.graph.outputs[0].name = description["output"]
    _clear_traces(model, _names_of_symbols(model, shapes))
    model.metadata_props[key] = json.dumps(description)
    with whole_file(path) as temporary:
        converted.save(str(temporary))
        try:
            session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        except (runtime_errors.Fail, runtime_errors.InvalidGraph, runtime_errors.NotImplemented) as error:
            raise ValueError(
                f"onnxruntime {onnxruntime.__version__} cannot run {path} of opset {opset}, take a lower one: {error}"
            ) from error

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        return torch.from_numpy(session.run(None, {name: tensor.cpu().numpy() for name, tensor in inputs.items()})[0])

    return run


def _names_of_symbols(model: Any, shapes: Mapping[str, Mapping[int, Any]]) -> dict[str, str]:
    """The tracer's symbols and the names that the free dimensions were given, as {"s34": "n"}."""
    names = {}
    for value in model.graph.inputs:
        for axis, dimension in shapes[value.name].items():
            (symbol,), (name,) = (re.findall(r"[a-z_]\w*", text) for text in (value.shape[axis].value, dimension.__name__))
            names[symbol] = name
    return names


def _clear_traces(model: Any, names: Mapping[str, str]) -> None:
    """Rename the free dimensions, and remove what the exporter notes of the program's source: files, lines, classes."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*model.graph.inputs, *(output for node in model.graph.all_nodes() for output in node.outputs)):
        value.metadata_props.clear()
        value.doc_string = None
        for axis, dimension in enumerate(value.shape or ()):
            symbols = getattr(dimension, "value", None)  # of a dimension that is neither a number nor unknown
            if symbols is not None:
                readable = re.sub(r"[a-z_]\w*", lambda found: names.get(found[0], found[0]), symbols)
                value.shape[axis] = type(dimension)(readable)
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


def read_metadata(path: str | os.PathLike[str], description_key: str) -> dict[str, Any]:
    """The description in an exported file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or has no description under this key: another program wrote it.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"the exported file {os.fspath(path)} does not exist: correct the path")
    try:
        read = _onnx_entry if Path(path).suffix == FORMATS["onnx"] else _archive_entry
        text = read(path, description_key)
        description = json.loads(text) if text else None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
        raise ValueError(f"the exported file {os.fspath(path)} is damaged or none: export it again ({error})") from error
    if not isinstance(description, dict):
        raise ValueError(
            f"{os.fspath(path)} has no entry {description_key}: it is not an export of this system, export it again"
        )
    return description


def _onnx_entry(path: str | os.PathLike[str], key: str) -> str:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # without stubs; onnx brings it

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    return {entry.key: entry.value for entry in model.metadata_props}.get(key, "")


def _archive_entry(path: str | os.PathLike[str], key: str) -> str:
    """An extra file of torch.export's archive; torch's own reader would unpickle parts of it."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            folder, _, file = name.rpartition("/")
            if file == key and folder.rpartition("/")[2].startswith("extra"):
                return archive.read(name).decode("utf-8")
    return ""


def save_vocabulary(path: Path, names: Sequence[str], inputs: Mapping[str, Tensor]) -> None:
    """Write what a vocabulary that is an input consists of beside the program at ``path``, with the ending
    .vocabulary.npz: its ``names``, and the ``inputs`` by name."""
    arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in inputs.items()}
    with whole_file(path.with_suffix(".vocabulary.npz")) as temporary:
        np.savez(temporary, names=np.array(names), **arrays)


def largest_difference(
    run: Run, examples: Iterable[tuple[Mapping[str, Tensor], Tensor]], difference: Callable[[Tensor, Tensor], Tensor]
) -> float:
    """How far an exported program is from the model itself.

    Args:
        run: the exported program.
        examples: inputs, and what the model itself returns for them.
        difference: of two outputs of one shape, a number.

    Raises:
        ValueError: the program returns another shape.
    """
    worst = 0.0
    for inputs, expected in examples:
        given = run(inputs).to(expected.device)
        if given.shape != expected.shape:
            raise ValueError(f"the exported program returned {tuple(given.shape)} instead of {tuple(expected.shape)}")
        worst = max(worst, difference(given, expected).item())
    return worst


def greatest_difference(given: Tensor, expected: Tensor) -> Tensor:
    """Of any two scores."""
    return (given - expected).abs().max()


def share_of_others(given: Tensor, expected: Tensor) -> Tensor:
    """The share of labels that are not the same."""
    return (given != expected).float().mean()


def check_difference(difference: float, tolerance: float, path: Path) -> None:
    """Raises ValueError where the file at ``path`` does not do what the model does; NaN does not pass either."""
    if not difference <= tolerance:
        raise ValueError(f"{path} differs from the model by {difference:.2g}: do not use it (PyTorch {torch.__version__})")
