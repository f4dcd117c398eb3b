"""Files of weights from anyone: tensors, numbers and texts are read from them, and no code in them is run."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .storage import PathLike, whole_file, wrong_content

SAFETENSORS = ".safetensors"

_FINGERPRINT = "zeroshot_d2.fingerprint"  # among the texts of a file of ours: what its tensors must be


def read_weights(path: PathLike, what: str = "checkpoint", *, mapped: bool = False) -> dict[str, Any]:
    """The entries of a file that ``torch.save`` or safetensors wrote, on the CPU.

    Args:
        path: the file.
        what: what it is to the reader of a message.
        mapped: leave the tensors on the disk until they are used; damage to them is then not noticed. Otherwise it is, but
            in safetensors only where :func:`write_safetensors` wrote them: the format has no checksums.

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
        if file.suffix == SAFETENSORS:
            weights = dict(safetensors.torch.load_file(file))
            expected = read_texts(file).get(_FINGERPRINT)
            if expected is not None and not mapped and expected != fingerprint_of(weights):
                raise ValueError(f"{file}: its tensors are not those that were written")
            return weights
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


def read_texts(file: PathLike) -> dict[str, str]:
    """The texts in the header of a file of safetensors, by name.

    Raises:
        SafetensorError: it is no such file, or is cut off.
    """
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata() or {})


def write_safetensors(path: PathLike, weights: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Write named tensors as safetensors, whole or not at all, with texts in the header.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    # Each in memory of its own, as the format wants it: parameters may be views of one another.
    copies = {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for name, value in weights.items()
    }
    header = {"format": "pt", **texts, _FINGERPRINT: fingerprint_of(copies)}
    content = safetensors.torch.save(copies, metadata=header)
    with whole_file(path) as temporary:  # save_file puts a file of its own there, which the owner alone may read
        temporary.write_bytes(content)


def fingerprint_of(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors (names, shapes and values), as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for key, value in sorted(weights.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        content = value.detach().cpu().contiguous()
        digest.update(content.view(torch.uint8).numpy().data if value.ndim else str(value).encode())
    return digest.hexdigest()


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
