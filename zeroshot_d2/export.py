"""Export to ONNX or torch.export, as far as all systems do the same: tracing, writing, describing, comparing.

What is exported is a module that takes tensors by name and returns one tensor. A system adds that module, a description of
what a user of the file must know, and examples of what its model itself returns.
"""

from __future__ import annotations

import json
import logging
import os
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
        return torch.export.export(program, (), dict(inputs), dynamic_shapes=dict(shapes), strict=False)


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
    exported: ExportedProgram, path: Path, file_format: str, description: Mapping[str, Any], description_key: str
) -> Run:
    """Write a traced program, with its description in the file's metadata.

    Args:
        exported: what :func:`trace` returned.
        path: of the file; its folder is made.
        file_format: one of :data:`FORMATS`.
        description: anything that JSON can hold; its "output" is the name of the output.
        description_key: under which :func:`read_metadata` finds it.

    Returns:
        the program as read from the file and run by the file's own runtime.

    Raises:
        ModuleNotFoundError: ONNX without the packages of the extra "export".
    """
    writer = _write_onnx if file_format == "onnx" else _write_torch_export
    return writer(exported, path, description, description_key)


def _write_torch_export(exported: ExportedProgram, path: Path, description: Mapping[str, Any], key: str) -> Run:
    with whole_file(path) as temporary:
        torch.export.save(exported, temporary, extra_files={key: json.dumps(description)})
    loaded = torch.export.load(path).module()  # what was just written here
    return lambda inputs: loaded(**inputs)


def _write_onnx(exported: ExportedProgram, path: Path, description: Mapping[str, Any], key: str) -> Run:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; ONNX needs the extra: pip install -e '.[export]'", name=error.name) from error
    # It warns of every node with several outputs that it does not fold.
    logging.getLogger("onnxscript.optimizer").setLevel(logging.ERROR)
    converted = torch.onnx.export(exported, (), dynamo=True, verbose=False)
    assert converted is not None
    converted.model.graph.outputs[0].name = description["output"]
    converted.model.metadata_props[key] = json.dumps(description)
    with whole_file(path) as temporary:
        converted.save(str(temporary))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        return torch.from_numpy(session.run(None, {name: tensor.cpu().numpy() for name, tensor in inputs.items()})[0])

    return run


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
