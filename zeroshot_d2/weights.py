"""Files of weights from anyone: tensors, numbers and texts are read from them, and no code in them is run."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from .storage import PathLike, wrong_content


def read_weights(path: PathLike, what: str = "checkpoint", *, mapped: bool = False) -> dict[str, Any]:
    """The entries of a file that ``torch.save`` or safetensors wrote, on the CPU.

    Args:
        path: the file.
        what: what it is to the reader of a message.
        mapped: leave the tensors on the disk until they are used; damage to them is then not noticed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file or damaged, or a pickle, which can run code; the file is named, with the way out.
    """
    file = Path(path)
    name = f"the {what} {file}"
    if not file.is_file():
        raise FileNotFoundError(f"{name} does not exist (looked for it from {Path.cwd()}): correct the path")
    if file.suffix in (".pkl", ".pickle"):
        raise ValueError(
            f"{name} is a pickle, which can run code: convert it with a program you trust to a .pth file "
            'of {"model": {name: tensor}}'
        )
    with file.open("rb") as stream:
        reason = wrong_content(stream.read(64))
    if reason:
        raise ValueError(f"{name} cannot be used: {reason}")
    try:
        if file.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(file))
        is_archive = zipfile.is_zipfile(file)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped and is_archive)
        if is_archive and not mapped:  # torch does not compare checksums
            check_checksums(file)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{name} holds more than tensors, numbers and texts, or is no checkpoint; nothing in it was run: save it anew "
            "as {name: tensor}"
        ) from error
    # A damaged archive: RuntimeError and OSError from torch's reader, the others from zipfile and the unpickler.
    except (
        *(RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, UnicodeDecodeError, AttributeError, TypeError),
        *(zipfile.BadZipFile, SafetensorError, NotImplementedError),
    ) as error:
        raise ValueError(f"{name} is damaged or cut off: take another one ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds a {type(content).__name__}, not named weights: save a dictionary {{name: tensor}}")
    return content


def check_checksums(file: Path) -> None:
    """Raise ValueError or BadZipFile where an entry of a zip archive is not what was written."""
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{file}: the checksum of {damaged} is wrong")


def check_tensors(weights: Mapping[str, Any], name: str) -> None:
    """Raise ValueError where named weights are no tensors, or hold NaN; ``name`` says whose they are."""
    for key, value in weights.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{name} has a {type(value).__name__} as {key}, which must be a tensor: save its state_dict()")
        if value.is_floating_point() and value.isnan().any():
            raise ValueError(f"{name} has NaN in {key}: its training had failed, take an earlier one")
