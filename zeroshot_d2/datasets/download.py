"""Fetching a release: files from their official addresses, compared with what is published about them, and unpacked.

A file is resumed where an interrupted run stopped. It gets its name only when it is whole, and stays below
``$DETECTRON2_DATASETS/downloads``; what has been unpacked is not fetched again. Archives are not trusted: a member that is
neither a file nor a folder, or that would lie outside, ends the unpacking and is not written.

libcurl, through pycurl, does the transfer: proxies, redirects, resumption, servers that stall.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import portalocker  # Detectron2's own need, through iopath
from tqdm import tqdm

from ..storage import UNFINISHED, check_inside, datasets_root, file_digest, whole_file, write_json, wrong_content
from .releases import RemoteFile

_TRIES = 5  # without a byte of progress
_STALLED = 60  # seconds below 1000 bytes a second
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


class Unavailable(ValueError):
    """A file that its address does not give."""


def kept_at(file: RemoteFile, release: str) -> Path:
    """Where a whole file lies: an archive with the downloads, another file where it belongs."""
    return (_downloads(release) if file.is_archive else _place(file)) / file.name


def is_done(file: RemoteFile, release: str) -> bool:
    """Whether a file is where it belongs, unpacked if it is an archive."""
    return _note(file, release).is_file() and (file.is_archive or kept_at(file, release).is_file())


def obtain(file: RemoteFile, release: str, *, keep_archive: bool = True) -> None:
    """Fetch a file, compare it with what is published about it, and unpack it; does what is left to do.

    Args:
        file: of a release.
        release: its name.
        keep_archive: False removes an archive when it is unpacked.

    Raises:
        Unavailable: the address does not give it; the message says what to do instead.
        ValueError: it is not what is published, or a damaged or hostile archive.
        OSError: it cannot be written, for example because the disk is full; a repetition goes on from there.
    """
    path = kept_at(file, release)
    if not is_done(file, release):
        if path.is_file():  # put there by hand, or by a run that was interrupted before it had unpacked it
            verify(file, path)
        else:
            fetch(file, path)
        members = unpack(path, _place(file), file) if file.is_archive else 1
        if hasattr(os, "sync"):
            os.sync()  # before the note says that it is there
        write_json(_note(file, release), {"url": file.url, "bytes": path.stat().st_size, "files": members})
    if file.is_archive and not keep_archive:
        path.unlink(missing_ok=True)


def _downloads(release: str) -> Path:
    return datasets_root() / "downloads" / release


def _place(file: RemoteFile) -> Path:
    return datasets_root() / file.place


def _note(file: RemoteFile, release: str) -> Path:
    """What says that a file was whole, and has been unpacked."""
    return _downloads(release) / f"{file.name}.done"


# -------------------------------------------------------------------------------------------------------- fetching
def fetch(file: RemoteFile, target: Path) -> None:
    """Fetch a file to ``target``, which is whole or absent; an unfinished one beside it is resumed.

    Raises:
        Unavailable, ValueError, OSError: as :func:`obtain`.
    """
    part = _part(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as stream, _locked(stream, target):
            _transfer(file, stream, target)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        if error.errno is None:
            raise
        what_to_do = "make room, then repeat the command: it goes on from there"
        raise OSError(error.errno, f"cannot write {target}: {error.strerror}; {what_to_do}") from error
    try:
        verify(file, part)
    except ValueError:
        part.unlink()
        raise
    os.replace(part, target)  # noqa: TID251  (whole_file's names do not last, this one is resumed)


def _part(target: Path) -> Path:
    """The name of a file until it is whole."""
    return target.with_name(f"{UNFINISHED}{target.name}")


def verify(file: RemoteFile, path: Path) -> None:
    """Raise ValueError where a file, whole or at its name until then, is not the one that is published."""
    target = path.with_name(path.name.removeprefix(UNFINISHED))
    source = file.checksum_from
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        reason = wrong_content(stream.read(64))
        stream.seek(0)
        if not reason and file.size is not None and size != file.size:
            reason = f"it has {size} bytes, {source} has {file.size}: it is not the published file, fetch it again"
        if not reason and file.checksum:
            kind, _, expected = file.checksum.partition(":")
            found = file_digest(path, kind)
            if found != expected:
                reason = f"its {kind} is {found}, {source} publishes {expected}: it was damaged or changed, fetch it again"
    if reason:
        raise ValueError(f"{target.name} of {file.url}: {reason}. {_instead(file, target)}")


def _instead(file: RemoteFile, target: Path) -> str:
    """What a person can do."""
    advice = f"{file.otherwise[:1].upper()}{file.otherwise[1:]}. " if file.otherwise else ""
    return f"{advice}Or put the file at {target} and repeat the command"


@contextlib.contextmanager
def _locked(stream: IO[bytes], target: Path) -> Iterator[None]:
    """Only one process at a time adds to a file; the lock goes with the open file."""
    try:
        portalocker.lock(stream, portalocker.LOCK_EX | portalocker.LOCK_NB)
    except portalocker.exceptions.LockException as error:
        raise ValueError(f"another process is fetching {target}: wait for its end") from error
    yield


def _transfer(file: RemoteFile, stream: IO[bytes], target: Path) -> None:
    """Append what is missing of a file to ``stream``; tries again while the server gives something."""
    tries = 0
    with tqdm(total=file.size, desc=file.name, unit="B", unit_scale=True, initial=stream.tell()) as bar:
        while file.size is None or stream.tell() < file.size:
            before = stream.tell()
            problem = _Request(file, stream, target, bar).send()
            if not problem:
                return
            tries = 0 if stream.tell() > before else tries + 1
            if tries >= _TRIES:
                raise Unavailable(
                    f"{file.url} does not answer: {problem}. Repeat the command, it goes on from byte {stream.tell()}. "
                    f"{_instead(file, target)}"
                )
            time.sleep(min(2**tries, 30) if tries else 0)


class _Request:
    """One request for what is missing of a file.

    Args:
        file: which.
        stream: where the bytes go, open for appending.
        target: the file's name when it is whole.
        bar: shows the progress.
    """

    def __init__(self, file: RemoteFile, stream: IO[bytes], target: Path, bar: Any) -> None:
        self.file, self.stream, self.target, self.bar = file, stream, target, bar
        self.start = stream.tell()
        self.raised: BaseException | None = None  # by the functions that libcurl calls, which would swallow it
        self.announced: int | None = None  # a size that is not the published one

    def send(self) -> str:
        """Ask the server once.

        Returns:
            "" where the answer is whole, else what went wrong and may pass.

        Raises:
            Unavailable: the address is dead, or gives something of another size.
            OSError: of the disk.
        """
        pycurl = _pycurl()
        request = self._request(pycurl)
        try:
            request.perform()
            code, text = pycurl.E_OK, ""
        except pycurl.error as error:
            code, text = error.args
        finally:
            status = request.getinfo(pycurl.RESPONSE_CODE)
            request.close()
        if self.raised is not None:
            raise self.raised
        if self.announced is not None:
            self._cut(self.start)
            raise Unavailable(
                f"{self.file.url} announces {self.announced} bytes, {self.file.checksum_from} has {self.file.size}: the "
                f"release has changed, or the address is dead. {_instead(self.file, self.target)}"
            )
        if code == pycurl.E_RANGE_ERROR or status == 416:  # it cannot resume, or has no more than is there: libcurl says OK
            self._cut(0)
            return text or f"HTTP status {status}"
        if code == pycurl.E_HTTP_RETURNED_ERROR:
            if 400 <= status < 500 and status not in (408, 429):
                raise Unavailable(f"{self.file.url} is not there (HTTP status {status}). {_instead(self.file, self.target)}")
            return f"HTTP status {status}"
        return text

    def _cut(self, size: int) -> None:
        """Keep only the first ``size`` bytes of what has been fetched."""
        self.stream.truncate(size)
        self.stream.seek(size)
        self.bar.reset(self.file.size)
        self.bar.update(size)

    def _request(self, pycurl: Any) -> Any:
        import certifi  # pycurl's wheels find no certificates of the system's

        request = pycurl.Curl()
        for option, value in (
            (pycurl.URL, self.file.url),
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.REDIR_PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.FOLLOWLOCATION, 1),
            (pycurl.MAXREDIRS, 10),
            (pycurl.FAILONERROR, 1),
            (pycurl.CAINFO, certifi.where()),
            (pycurl.CONNECTTIMEOUT, 30),
            (pycurl.LOW_SPEED_LIMIT, 1000),
            (pycurl.LOW_SPEED_TIME, _STALLED),
            (pycurl.RESUME_FROM_LARGE, self.start),
            (pycurl.WRITEFUNCTION, self._write),
            (pycurl.NOPROGRESS, 0),
            (pycurl.XFERINFOFUNCTION, self._compare),
        ):
            request.setopt(option, value)
        return request

    def _write(self, content: bytes) -> int:
        """What libcurl calls with the bytes that have come; another count than theirs ends the transfer."""
        try:
            self.stream.write(content)
            self.bar.update(len(content))
            return len(content)
        except BaseException as error:
            self.raised = error
            return -1

    def _compare(self, to_come: int, *unused: int) -> int:
        """What libcurl calls now and then, with the bytes that the answer has in all, if it says so; 1 ends the transfer."""
        try:
            size = self.file.size
            # A server that cannot resume announces all of it.
            if size is not None and to_come and to_come not in (size, size - self.start):
                self.announced = self.start + to_come
                return 1
            return 0
        except KeyboardInterrupt as error:  # which comes while Python runs, so here or above
            self.raised = error
            return 1


def _pycurl() -> Any:
    try:
        import pycurl
    except ImportError as error:
        raise ValueError(
            "downloads need pycurl: `pip install pycurl` installs it; datasets/README.md says how to do without"
        ) from error
    return pycurl


# ------------------------------------------------------------------------------------------------------- unpacking
def unpack(archive: Path, folder: Path, file: RemoteFile) -> int:
    """Write the wanted members of an archive into ``folder``; each is whole or absent, and one that is there is left.

    Returns:
        how many there are.

    Raises:
        ValueError: the archive is damaged, or has a link, a device or a path that leads outside.
    """
    members = _zip_members if archive.suffix == ".zip" else _tar_members
    count = 0
    try:
        for name, size, content in tqdm(members(archive), f"unpacking {archive.name}", unit=" files"):
            inside = PurePosixPath(check_inside(name, str(archive)))
            kept = inside.parts[file.strip :]
            if not kept or not any(fnmatch.fnmatchcase(str(inside), pattern) for pattern in file.members):
                continue
            count += 1
            target = folder.joinpath(*kept)
            if target.is_file() and target.stat().st_size == size:
                continue
            with whole_file(target, sync=False) as temporary, content() as source, open(temporary, "wb") as output:
                shutil.copyfileobj(source, output, 2**20)
                if output.tell() != size:
                    raise EOFError(f"{name} is cut off")
    except _DAMAGED as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise ValueError(f"{archive} is damaged ({reason}): delete it and repeat the command") from error
    if not count:
        wanted = " or ".join(file.members)
        raise ValueError(f"{archive} has no {wanted}: it is not the release's, delete it and fetch it again")
    return count


_Member = tuple[str, int, Callable[[], IO[bytes]]]  # name, size, and what opens it


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            if member.external_attr >> 28 not in (0, 4, 8):  # the type in Unix's st_mode: not said, a folder, a file
                raise _not_a_file(archive, member.filename)
            if not member.is_dir():
                yield member.filename, member.file_size, partial(opened.open, member)


def _tar_members(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive) as opened:
        for member in opened:
            if not member.isreg() and not member.isdir():
                raise _not_a_file(archive, member.name)
            if member.isreg():
                opening: Callable[[], Any] = partial(opened.extractfile, member)
                yield member.name, member.size, opening


def _not_a_file(archive: Path, name: str) -> ValueError:
    return ValueError(f"{archive} has {name!r}, which is neither a file nor a folder: such archives are not unpacked")
