"""Files of several parts."""

from zeroshot_d2.joined_file import JoinedFile


def test_what_is_between_entries_is_not_behind_the_last(tmp_path):
    file = JoinedFile(tmp_path / "a" / "x.json", distributed=False)
    for part in (b"1", b"2"):
        file.write(part + b",\n")
    file.join(b"[", b",\n", b"]")
    assert (tmp_path / "a" / "x.json").read_bytes() == b"[1,\n2]"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.json"]


def test_nothing_written_is_still_a_file(tmp_path):
    JoinedFile(tmp_path / "x.json", distributed=False).join(b"[", b",\n", b"]")
    assert (tmp_path / "x.json").read_bytes() == b"[]"


def test_a_discarded_part_leaves_nothing(tmp_path):
    file = JoinedFile(tmp_path / "x", distributed=False)
    file.write(b"old")
    file.discard()
    assert not list(tmp_path.iterdir())
    file.write(b"new")
    file.join()
    assert (tmp_path / "x").read_bytes() == b"new"
