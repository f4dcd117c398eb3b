"""Fetching and unpacking, from a server on loopback that misbehaves as real ones do."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from loopback_server import Server, serving

from zeroshot_d2.datasets import download
from zeroshot_d2.datasets.download import Unavailable, fetch, is_done, kept_at, obtain, unpack
from zeroshot_d2.datasets.releases import RELEASES, RemoteFile

CONTENT = bytes(range(256)) * 4000  # a megabyte, more than libcurl hands over at once


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as started:
        yield started


def given(server: Server, content: bytes = CONTENT, **about: object) -> RemoteFile:
    return server.file("a.bin", content, **about)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def unfinished(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".unfinished-*")]


# ---- fetching ----


@pytest.mark.parametrize("known", ["size and checksum", "nothing"])
def test_a_whole_file_is_fetched_once(server, root, known):
    facts = {"size": len(CONTENT), "checksum": sha256(CONTENT)} if known != "nothing" else {}
    file = given(server, **facts)
    for _ in range(2):
        obtain(file, "tiny")
    assert (root / "there/a.bin").read_bytes() == CONTENT
    assert server.asked == [None] and unfinished(root) == []
    assert json.loads((root / "downloads/tiny/a.bin.done").read_text()) == {
        "url": file.url,
        "bytes": len(CONTENT),
        "files": 1,
    }


def test_a_cut_answer_is_resumed_where_it_stopped(server, root):
    server.cuts = [300_000, 200_000]
    fetch(given(server, size=len(CONTENT), checksum=sha256(CONTENT)), root / "a.bin")
    assert (root / "a.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=500000-"]


def test_an_interrupted_run_is_resumed_by_the_next(server, root):
    server.cuts, server.statuses = [300_000], []
    file = given(server, size=len(CONTENT), checksum=sha256(CONTENT))
    server.statuses = [200, *[503] * 5]
    with pytest.raises(Unavailable, match=r"does not answer: HTTP status 503. Repeat the command, .* byte 300000"):
        fetch(file, root / "a.bin")
    assert not (root / "a.bin").exists() and unfinished(root) == [".unfinished-a.bin"]
    fetch(file, root / "a.bin")
    assert (root / "a.bin").read_bytes() == CONTENT and server.asked[-1] == "bytes=300000-" and unfinished(root) == []


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_server_that_cannot_resume_sends_all_of_it_again(server, root, size):
    server.ranges, server.cuts = False, [300_000]
    fetch(given(server, size=size, checksum=sha256(CONTENT)), root / "a.bin")
    assert (root / "a.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", None]


def test_more_than_the_server_has_is_thrown_away(server, root):
    (root / ".unfinished-a.bin").write_bytes(CONTENT + b"and more")
    fetch(given(server, checksum=sha256(CONTENT)), root / "a.bin")
    assert (root / "a.bin").read_bytes() == CONTENT and server.asked[-1] is None


@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_dead_address_says_what_to_do(server, root, status):
    server.statuses = [status]
    file = given(server, otherwise="ask its owners")
    with pytest.raises(Unavailable) as raised:
        obtain(file, "tiny")
    assert str(raised.value) == (
        f"{file.url} is not there (HTTP status {status}). Ask its owners. Or put the file at {root / 'there/a.bin'} and "
        "repeat the command"
    )
    assert len(server.asked) == 1


def test_a_server_that_is_not_there(root):
    with pytest.raises(Unavailable, match="does not answer: "):
        fetch(RemoteFile("http://127.0.0.1:1/a.bin", "there"), root / "a.bin")


def test_a_server_that_recovers_is_asked_again(server, root):
    server.statuses = [500, 429, 503]
    fetch(given(server), root / "a.bin")
    assert len(server.asked) == 4


@pytest.mark.parametrize("resumed", [False, True])
def test_a_wrong_checksum_leaves_nothing(server, root, resumed):
    if resumed:  # what is there is of another file
        (root / ".unfinished-a.bin").write_bytes(bytes(1000))
    file = given(server, checksum=sha256(b"another"), checksum_from="its owners", size=len(CONTENT))
    if resumed:
        file = replace(file, checksum=sha256(CONTENT))
    with pytest.raises(
        ValueError, match=r"^a\.bin of http://.*: its sha256 is \w{64}, its owners publishes \w{64}: "
    ) as raised:
        fetch(file, root / "a.bin")
    assert not isinstance(raised.value, Unavailable)
    assert not (root / "a.bin").exists() and unfinished(root) == []


def test_another_size_ends_the_transfer_before_it_has_begun(server, root):
    file = given(server, size=10 * len(CONTENT), checksum_from="its owners")
    with pytest.raises(Unavailable, match=rf"announces {len(CONTENT)} bytes, its owners has {10 * len(CONTENT)}: "):
        fetch(file, root / "a.bin")
    assert (root / ".unfinished-a.bin").stat().st_size == 0


def test_another_size_that_nobody_announces_is_noticed_afterwards(server, root):
    server.chunked = True
    with pytest.raises(ValueError, match=r"it has 1024000 bytes, its owners has 1000: "):
        fetch(given(server, size=1000, checksum_from="its owners"), root / "a.bin")
    assert not (root / "a.bin").exists() and unfinished(root) == []


def test_a_web_page_in_place_of_a_file_is_refused(server, root):
    with pytest.raises(ValueError, match="it is a web page: the download asked for a login or its address is dead"):
        fetch(given(server, content=b"<!DOCTYPE html><html>log in</html>"), root / "a.bin")
    assert not (root / "a.bin").exists()


class FullDisk:
    """A stream whose disk is full after some bytes."""

    def __init__(self, stream, room):
        self.stream, self.room = stream, room

    def write(self, content):
        if self.stream.tell() + len(content) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.stream.write(content)

    def __getattr__(self, name):
        return getattr(self.stream, name)


def full(monkeypatch, room):
    transfer = download._transfer
    monkeypatch.setattr(download, "_transfer", lambda file, stream, target: transfer(file, FullDisk(stream, room), target))


def test_a_full_disk_is_named_and_the_file_goes_on_from_there(server, root, monkeypatch):
    file = given(server, size=len(CONTENT), checksum=sha256(CONTENT))
    full(monkeypatch, room=500_000)
    with pytest.raises(OSError, match=r"cannot write .*there/a\.bin: No space left on device; make room, ") as raised:
        obtain(file, "tiny")
    assert raised.value.errno == errno.ENOSPC
    there = (root / "there/.unfinished-a.bin").stat().st_size
    assert 0 < there <= 500_000
    monkeypatch.undo()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    obtain(file, "tiny")
    assert (root / "there/a.bin").read_bytes() == CONTENT and server.asked == [None, f"bytes={there}-"]


def test_ctrl_c_ends_the_transfer_and_keeps_what_is_there(server, root, monkeypatch):
    def interrupted(self, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(FullDisk, "write", interrupted)
    full(monkeypatch, room=0)
    with pytest.raises(KeyboardInterrupt):
        fetch(given(server), root / "a.bin")
    assert len(server.asked) == 1 and unfinished(root) == [".unfinished-a.bin"]


def test_two_processes_do_not_add_to_the_same_file(server, root):
    with open(root / ".unfinished-a.bin", "ab") as other:
        download.portalocker.lock(other, download.portalocker.LOCK_EX | download.portalocker.LOCK_NB)
        with pytest.raises(ValueError, match=r"another process is fetching .*a\.bin: wait for its end"):
            fetch(given(server), root / "a.bin")
    assert server.asked == []


def test_a_file_that_was_put_there_is_compared_and_not_fetched(server, root):
    file = given(server, checksum=sha256(CONTENT), checksum_from="its owners")
    target = kept_at(file, "tiny")
    target.parent.mkdir(parents=True)
    target.write_bytes(b"something else")
    with pytest.raises(ValueError, match="its owners publishes"):
        obtain(file, "tiny")
    assert target.read_bytes() == b"something else"  # it is the reader's
    target.write_bytes(CONTENT)
    obtain(file, "tiny")
    assert is_done(file, "tiny") and server.asked == []


def test_redirects_lead_to_the_web_only(server, root):
    (root / "secret").write_bytes(b"secret")
    file = replace(given(server), url=(root / "secret").as_uri())
    with pytest.raises(Unavailable):
        fetch(file, root / "a.bin")
    assert not (root / "a.bin").exists()


# ---- unpacking ----


def tar_of(members: dict[str, bytes], kind: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=kind) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


MEMBERS = {"top/a.txt": b"a", "top/deep/b.txt": b"bb", "top/c.jpg": b"ccc"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tar", tar_of(MEMBERS)),
        ("a.tar.gz", tar_of(MEMBERS, "w:gz")),
        ("a.tgz", tar_of(MEMBERS)),
        ("a.zip", zip_of(MEMBERS)),
    ],
    ids=["tar", "tar.gz", "tgz", "zip"],  # an archive holds the time, and all of xdist's workers must have the same names
)
def test_archives_are_unpacked_to_their_place(server, root, name, content):
    file = server.file(name, content, members=("*.txt",), strip=1)
    obtain(file, "tiny")
    assert {str(path.relative_to(root)) for path in root.rglob("*.*") if path.is_file()} == {
        "there/a.txt",
        "there/deep/b.txt",
        f"downloads/tiny/{name}",
        f"downloads/tiny/{name}.done",
    }
    assert (root / "there/deep/b.txt").read_bytes() == b"bb"


def test_an_archive_that_is_removed_is_not_fetched_again(server, root):
    file = server.file("a.zip", zip_of(MEMBERS))
    obtain(file, "tiny", keep_archive=False)
    obtain(file, "tiny", keep_archive=False)
    assert not kept_at(file, "tiny").exists() and len(server.asked) == 1 and (root / "there/top/c.jpg").is_file()


def test_an_interrupted_unpacking_goes_on(server, root):
    file = server.file("a.tar", tar_of(MEMBERS))
    (root / "there/top").mkdir(parents=True)
    (root / "there/top/a.txt").write_bytes(b"A")  # as large as it should be: is there
    (root / "there/top/c.jpg").write_bytes(b"c")  # half of it
    obtain(file, "tiny")
    assert (root / "there/top/a.txt").read_bytes() == b"A" and (root / "there/top/c.jpg").read_bytes() == b"ccc"


def hostile(kind: str) -> bytes:
    """An archive with something that must not be unpacked, after a harmless member."""
    stream = io.BytesIO()
    if kind.startswith("zip"):
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("good.txt", b"good")
            entry = zipfile.ZipInfo({"zip, outside": "../evil.txt", "zip, a drive": "C:/evil.txt"}.get(kind, "evil.txt"))
            if kind == "zip, a link":
                entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, b"/etc/passwd")
        return stream.getvalue()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("good.txt"))
        entry = tarfile.TarInfo({"outside": "a/../../evil.txt", "absolute": "/tmp/evil.txt"}.get(kind, "evil.txt"))
        entry.type = {"a link": tarfile.SYMTYPE, "a hard link": tarfile.LNKTYPE, "a device": tarfile.CHRTYPE}.get(
            kind, tarfile.REGTYPE
        )
        entry.linkname = "../outside" if entry.type != tarfile.REGTYPE else ""
        archive.addfile(entry)
    return stream.getvalue()


@pytest.mark.parametrize(
    "kind", ["outside", "absolute", "a link", "a hard link", "a device", "zip, outside", "zip, a drive", "zip, a link"]
)
def test_nothing_is_written_outside_and_no_link_is_made(root, kind):
    name = "archive.zip" if kind.startswith("zip") else "archive.tar"
    archive, place = root / name, root / "there" / "deep"
    archive.write_bytes(hostile(kind))
    with pytest.raises(ValueError, match=r"archive\.\w{3} (names|has) '.*evil\.txt', which "):
        unpack(archive, place, RemoteFile(f"http://x/{name}", "there"))
    assert {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()} == {
        name,
        "there/deep/good.txt",
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tar", tar_of({"a.txt": bytes(5000)})[:2000]),
        ("a.tar.gz", tar_of({"a.txt": os.urandom(5000)}, "w:gz")[:2000]),
        ("a.zip", zip_of({"a.txt": b"x" * 5000})[:2000]),
        ("a.zip", zip_of({"a.txt": b"x" * 5000}).replace(b"xxx", b"yyy", 1)),
        ("a.tar", b"nothing of the kind"),
    ],
    ids=["tar", "tar.gz", "zip", "zip, a byte", "nothing of the kind"],
)
def test_a_damaged_archive_is_named(root, name, content):
    (root / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged \(.*\): delete it and repeat the command"):
        unpack(root / name, root / "there", RemoteFile(f"http://x/{name}", "there"))
    assert not list((root / "there").rglob("*.txt"))


def test_an_archive_without_what_is_wanted(root):
    (root / "a.zip").write_bytes(zip_of(MEMBERS))
    with pytest.raises(ValueError, match=r"a\.zip has no cls/\*: it is not the release's"):
        unpack(root / "a.zip", root / "there", RemoteFile("http://x/a.zip", "there", members=("cls/*",)))


# ---- the table of releases ----

FILES = {file for release in RELEASES.values() for part in release.parts.values() for file in part.files}


def test_checksums_are_digests_and_have_a_source():
    digits = {"md5": 32, "sha1": 40, "sha256": 64}
    for file in FILES:
        if file.checksum:
            kind, _, value = file.checksum.partition(":")
            assert re.fullmatch(rf"[0-9a-f]{{{digits[kind]}}}", value), file.name
        assert bool(file.checksum_from) == bool(file.checksum or file.size), file.name
    assert len({file.checksum for file in FILES if file.checksum}) == len([file for file in FILES if file.checksum])


def test_the_readme_has_every_part_its_size_and_what_has_no_checksum():
    readme = (Path(__file__).parents[3] / "datasets/README.md").read_text(encoding="utf-8")
    rows = []
    for name, release in RELEASES.items():
        for i, (part_name, part) in enumerate(release.parts.items()):
            known = sum(file.size or file.about for file in part.files) / 1e9
            bare = ", ".join(f"`{file.name}`" for file in part.files if not file.checksum)
            cells = [f"`{name}`" if i == 0 else "", f"`{part_name}`", f"{known:.1f} GB" if known else "", bare]
            rows.append("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + ("|" if part.needs else "| |"))
    for row in rows:
        assert f"\n{row}" in readme, row


def test_addresses_and_places():
    for file in FILES:
        assert re.fullmatch(r"https?://[\w.-]+/\S+", file.url)
        assert not Path(file.place).is_absolute() and ".." not in file.place
    assert len({(file.place, file.name) for file in FILES}) == len(FILES)
