"""Files of the project: whole or absent, with the permissions of the umask; texts as people save them."""

import gzip
import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zeroshot_d2.storage import (
    cache_directory,
    datasets_root,
    read_json,
    read_lines,
    read_text,
    whole_file,
    write_json,
    write_text,
)


class Interrupted(BaseException):
    """As Ctrl+C: not an Exception."""


# ---- writing ----


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_gets_its_name_when_it_is_whole(tmp_path, sync):
    target = tmp_path / "new" / "folder" / "x.txt"
    with whole_file(target, sync=sync) as temporary:
        assert temporary.parent == target.parent and temporary.suffix == ".txt" and temporary.name.startswith(".")
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole" and list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit, Interrupted])
@pytest.mark.parametrize("there", [True, False])
def test_after_an_error_there_is_the_old_file_or_none(tmp_path, there, error):
    target = tmp_path / "x.txt"
    if there:
        target.write_text("old")
    with pytest.raises(error), whole_file(target) as temporary:
        temporary.write_text("half")
        raise error
    assert [path.read_text() for path in tmp_path.iterdir()] == (["old"] if there else [])


def test_a_temporary_file_that_was_taken_away_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "x.txt") as temporary:
        temporary.unlink()
    assert not list(tmp_path.iterdir())


def test_a_killed_program_leaves_no_file_of_the_final_name(tmp_path):
    program = (
        "import os, sys\n"
        "from zeroshot_d2.storage import whole_file\n"
        "with whole_file(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os._exit(9)\n"
    )
    root = Path(__file__).parents[2]
    # The module alone: the package imports detectron2, which takes seconds.
    program = program.replace("from zeroshot_d2.storage", f"sys.path.insert(0, {str(root / 'zeroshot_d2')!r})\nfrom storage")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "x.txt")], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    assert not (tmp_path / "x.txt").exists()
    write_text(tmp_path / "x.txt", "whole")  # what the other left is in nobody's way
    assert (tmp_path / "x.txt").read_text() == "whole"


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
@pytest.mark.parametrize("there", [True, False])
def test_permissions_are_those_of_the_umask(tmp_path, umask, mode, there):
    target = tmp_path / "x.json"
    if there:
        target.write_text("{}")
        target.chmod(0o600)
    before = os.umask(umask)
    try:
        write_json(target, {"a": 1})
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == mode


def test_writers_that_choose_the_format_by_the_ending_work(tmp_path):
    with whole_file(tmp_path / "a.png") as temporary:
        Image.new("L", (2, 2)).save(temporary)
    with whole_file(tmp_path / "a.npz") as temporary:
        np.savez(temporary, x=np.ones(2))
    assert np.load(tmp_path / "a.npz")["x"].sum() == 2 and Image.open(tmp_path / "a.png").format == "PNG"
    assert len(list(tmp_path.iterdir())) == 2


def test_long_and_odd_names(tmp_path):
    names = ("x" * 240 + ".txt", "x." + "y" * 240, "写" * 80 + ".txt", "ü ★.txt", ".hidden", "no ending")
    for name in names:
        write_text(tmp_path / name, name)
        assert (tmp_path / name).read_text(encoding="utf-8") == name
    assert len(list(tmp_path.iterdir())) == len(names)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_text(tmp_path / "file" / "x.txt", "text")


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError):
        write_text(tmp_path / "x", "text")
    assert (tmp_path / "x").is_dir() and [path.name for path in tmp_path.iterdir()] == ["x"]


def test_text_is_utf_8_and_its_lines_end_as_asked(tmp_path):
    write_text(tmp_path / "x.txt", "ä★\n", newline="\r\n")
    assert (tmp_path / "x.txt").read_bytes() == "ä★\r\n".encode()


def test_json_has_null_for_nan_at_any_depth(tmp_path):
    write_json(tmp_path / "x.json", {"a": math.nan, "b": [1.5, (math.nan, np.float64(math.nan))], "c": {"d": "★"}})
    assert "★" in (tmp_path / "x.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "x.json") == {"a": None, "b": [1.5, [None, None]], "c": {"d": "★"}}


@pytest.mark.parametrize("content", [{"a": math.inf}, {"a": object()}])
def test_what_json_does_not_have_leaves_no_file(tmp_path, content):
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "x.json", content)
    assert not list(tmp_path.iterdir())


# ---- folders ----


def test_folders_from_the_environment(monkeypatch):
    monkeypatch.setenv("ZEROSHOT_D2_CACHE", "~/cache")
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert cache_directory() == Path.home() / "cache" and datasets_root() == Path.home() / "data"
    monkeypatch.delenv("ZEROSHOT_D2_CACHE")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert cache_directory() == Path.home() / ".cache/zeroshot_d2" and datasets_root() == Path("datasets")


# ---- reading ----

TEXT = "cat\n\n  traffic light  \n# a comment\nÄpfel|★\n"
LINES = ["cat", "traffic light", "Äpfel|★"]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le with mark", "utf-16-be with mark"])
@pytest.mark.parametrize("zipped", [False, True])
def test_lists_as_people_save_them(tmp_path, zipped, encoding, ending):
    text = TEXT.replace("\n", ending)
    if encoding.endswith(" with mark"):
        data = ("\ufeff" + text).encode(encoding.removesuffix(" with mark"))
    else:
        data = text.encode(encoding)
    (tmp_path / "list.txt").write_bytes(gzip.compress(data) if zipped else data)
    assert read_lines(tmp_path / "list.txt") == LINES
    assert read_lines(str(tmp_path / "list.txt"), comments=False) == [*LINES[:2], "# a comment", LINES[2]]
    assert read_text(tmp_path / "list.txt") == text


def test_a_last_line_without_an_end_counts(tmp_path):
    (tmp_path / "list.txt").write_text("a\nb")
    assert read_lines(tmp_path / "list.txt") == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9\n", r"is not UTF-8 \(byte 0xe9 in line 1\): save it anew"),
        (b"a\nb\n\xff\xfe\n", r"is not UTF-8 \(byte 0xff in line 3\)"),
        (b"\xff\xfea", "is not UTF-8"),  # UTF-16 cut in the middle of a character
        (b"cat\0dog", "is no text: it holds zero bytes"),
        (gzip.compress(b"cat\ndog\n" * 100, mtime=0)[:-20], "is a damaged gzip file"),
        (gzip.compress(b"cat\n", mtime=0)[:-4] + b"abcd", "is a damaged gzip file"),
        (gzip.compress(b"cat\n", mtime=0)[:10] + bytes(range(200, 230)), "is a damaged gzip file"),
        (b"PK\x03\x04and so on", "is a zip archive: unpack it"),
        (b"cat\n<<<<<<< HEAD\ndog\n=======\ncow\n>>>>>>> branch\n", "has an unresolved git conflict in line 2: resolve it"),
        (b"cat\n>>>>>>> branch\n", "has an unresolved git conflict in line 2"),
        (b"", "is empty"),
        (b"\n \n# only a comment\n", "is empty"),
    ],
)
def test_files_that_are_no_lists(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"the class list .*list\.txt {message}"):
        read_lines(tmp_path / "list.txt", "class list")


def test_signs_that_only_look_like_a_conflict(tmp_path):
    (tmp_path / "list.txt").write_text("=======\n<<<<<<<\na <<<<<<< b\n")
    assert read_lines(tmp_path / "list.txt") == ["=======", "<<<<<<<", "a <<<<<<< b"]


@pytest.mark.parametrize("read", [read_text, read_lines, read_json])
def test_files_that_are_not_there(tmp_path, monkeypatch, read):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"the results a\.json does not exist \(looked for it from {tmp_path}\)"):
        read("a.json", "results")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read(tmp_path, "results")  # a folder


def test_json(tmp_path):
    (tmp_path / "a.json").write_bytes('\ufeff{"a": [1, null, "ä"]}'.encode())
    assert read_json(tmp_path / "a.json") == {"a": [1, None, "ä"]}
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps([1]).encode()))
    assert read_json(tmp_path / "a.json.gz") == [1]


@pytest.mark.parametrize("text", ['{"a": [1,', "", "no JSON", '{"a": 1}\n{"b": 2}'])
def test_json_that_is_cut_off(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"the results .*a\.json is not JSON or is cut off: .*line \d"):
        read_json(tmp_path / "a.json", "results")
