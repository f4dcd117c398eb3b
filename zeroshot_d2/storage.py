"""Files of this project: one atomic writer, one cache folder, one reader of text lists and one of JSON.

A file that is written here is whole or absent at its final name, whatever interrupts the program, and has the permissions
that the umask gives.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import secrets
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

PathLike = str | os.PathLike[str]

UNFINISHED = ".unfinished-"
"""How the name of a file begins until it is whole; what a killed process leaves behind."""


# --------------------------------------------------------------------------------------------------------- writing
@contextmanager
def whole_file(path: PathLike, *, sync: bool = True) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; it becomes ``path`` only when the block ends without an error.

    Args:
        path: the final name; its folder is made.
        sync: wait until the disk has the content before the file gets its name. False is for the many small files of a
            cache, which can be made again.

    Raises:
        OSError: the folder or the file cannot be written, for example because the disk is full; ``path`` is named.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: Pillow, numpy and matplotlib choose the format by it.
    suffix = target.suffix if len(target.suffix) < 20 else ""
    temporary = target.with_name(f"{UNFINISHED}{secrets.token_hex(6)}-{target.stem[:40]}{suffix}")  # within 255 bytes
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # the umask is applied by the system
    try:
        yield temporary
        if sync:
            _sync(temporary)
        os.replace(temporary, target)  # noqa: TID251  (the one writer)
        if sync and os.name == "posix":
            _sync(target.parent)
    except OSError as error:
        if error.errno is None or (error.filename is not None and Path(error.filename).name != temporary.name):
            raise  # about something else
        raise OSError(error.errno, f"cannot write {target}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: PathLike, text: str, *, newline: str | None = None) -> None:
    """Write ``text`` in UTF-8; ``newline`` as for :func:`open`."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline=newline)


def write_json(path: PathLike, content: Any) -> None:
    """Write ``content`` as JSON, with null for NaN, which JSON does not have."""
    write_text(path, json.dumps(_without_nan(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


# ----------------------------------------------------------------------------------------------------------- cache
def cache_directory() -> Path:
    """The folder of label embeddings and rendered images: ``$ZEROSHOT_D2_CACHE``, else ``~/.cache/zeroshot_d2``."""
    return Path(os.environ.get("ZEROSHOT_D2_CACHE", "~/.cache/zeroshot_d2")).expanduser()


def datasets_root() -> Path:
    """The folder of all data sets: ``$DETECTRON2_DATASETS``, else ``./datasets``, as in Detectron2."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def check_inside(entry: str, source: str) -> str:
    """An entry of a list of files, as it is; it must be a relative path that stays in the data set's folder.

    Raises:
        ValueError: it is absolute or leads out of the folder; ``source`` is named.
    """
    parts = entry.replace("\\", "/").split("/")
    if ".." in parts or entry.startswith(("/", "\\", "~")) or (len(entry) > 1 and entry[1] == ":"):
        raise ValueError(
            f"{source} names {entry!r}, which lies outside of the data set's folder: such lists are not used, correct it"
        )
    return entry


# --------------------------------------------------------------------------------------------------------- reading
_CONFLICT_MARKERS = ("<<<<<<< ", ">>>>>>> ")


# What zipfile and numpy raise at a damaged ``.npz``, whose header may also ask for another version, a password or terabytes.
DAMAGED_ARCHIVE = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, MemoryError, RuntimeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


def file_sha256(path: PathLike) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    return file_digest(path, "sha256")


def file_digest(path: PathLike, kind: str) -> str:
    """The digest of a file's content in hexadecimal digits; ``kind`` is "md5", "sha1" or another that hashlib has.

    hashlib has such a function from Python 3.11 on.
    """
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as stream:
        while data := stream.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, whether it is stored by columns, dtype) of an array in an ``.npy``; the stream is then at its content.

    Raises:
        one of :data:`DAMAGED_ARCHIVE`: it is none, or is cut off.
    """
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read_header(stream)


def wrong_content(head: bytes) -> str:
    """What the first bytes of a file say that an interrupted or refused download has left, with the way out; else ""."""
    if not head:
        return "it is empty: the run or the download was cut off, fetch or make it again"
    if head.startswith(b"version https://git-lfs"):
        return "it is only a pointer of Git LFS: fetch the file itself with `git lfs pull`"
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "it is a web page: the download asked for a login or its address is dead, fetch it again"
    return ""


def read_text(path: PathLike, what: str = "text file") -> str:
    """The text of a file in UTF-8 or UTF-16 (with its byte-order mark), gzipped or not.

    Args:
        path: the file.
        what: what the file is to the reader of a message, for example "class list".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text, in another encoding, damaged, or holds the markers of an unresolved git conflict; the file
            is named.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"the {what} {file} does not exist (looked for it from {Path.cwd()})")
    data = file.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"the {what} {file} is a damaged gzip file ({error}): fetch it again") from error
    reason = wrong_content(data[:64]) if data else ""
    if reason:
        raise ValueError(f"the {what} {file} cannot be read: {reason}")
    if data[:4] == b"PK\x03\x04":
        raise ValueError(f"the {what} {file} is a zip archive: unpack it and name the file inside")
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"the {what} {file} is not UTF-8 (byte 0x{data[error.start]:02x} in line {line}): save it anew as UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError(f"the {what} {file} is no text: it holds zero bytes, is it the right file?")
    for number, line_text in enumerate(text.splitlines(), start=1):
        if line_text.startswith(_CONFLICT_MARKERS):
            raise ValueError(f"the {what} {file} has an unresolved git conflict in line {number}: resolve it")
    return text


def read_lines(path: PathLike, what: str = "list", *, comments: bool = True) -> list[str]:
    """The lines of a text file without white space at their ends; empty lines do not count.

    Args:
        path: a file as :func:`read_text` takes it.
        what: what the file is to the reader of a message.
        comments: leave out lines that begin with ``#``. False where such a line can be an entry, in a list of files.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_text`; no line is left.
    """
    lines = [line.strip() for line in read_text(path, what).splitlines()]
    kept = [line for line in lines if line and not (comments and line.startswith("#"))]
    if not kept:
        raise ValueError(f"the {what} {os.fspath(path)} is empty: is it the right file?")
    return kept


def read_json(path: PathLike, what: str = "JSON file") -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_text`; it is not JSON or is cut off; the line is named.
    """
    text = read_text(path, what)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"the {what} {os.fspath(path)} is not JSON or is cut off: {error}; fetch or make it again"
        ) from error
