"""Config files: what they may hold, what they build upon, and what is never run or fetched."""

import pytest

from zeroshot_d2.config_file import read_config, read_yaml


def write(path, text):
    path.write_text(text)
    return path


def test_a_config_lies_over_its_bases(tmp_path):
    write(tmp_path / "a.yaml", "A: {X: 1, Y: 2}\nB: 3\n")
    write(tmp_path / "b.yaml", "_BASE_: a.yaml\nA: {Y: 4}\n")
    write(tmp_path / "c.yaml", "C: 5\n")
    path = write(tmp_path / "run.yaml", "_BASE_: [b.yaml, c.yaml]\nB: 6\n")
    assert read_config(path) == {"A": {"X": 1, "Y": 4}, "B": 6, "C": 5}
    assert read_config(write(tmp_path / "abs.yaml", f"_BASE_: {tmp_path}/c.yaml\n")) == {"C": 5}
    assert read_config(write(tmp_path / "empty.yaml", "")) == {}


def test_the_same_file_twice_is_no_circle(tmp_path):
    write(tmp_path / "a.yaml", "A: 1\n")
    write(tmp_path / "b.yaml", "_BASE_: a.yaml\n")
    assert read_config(write(tmp_path / "run.yaml", "_BASE_: [a.yaml, b.yaml]\n")) == {"A": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: run.yaml\n", "its _BASE_ leads back to it by 'run.yaml'"),
        ("_BASE_: absent.yaml\n", r"its _BASE_ .*absent\.yaml does not exist"),
        ("_BASE_: http://127.0.0.1:9/a.yaml\n", "has _BASE_ 'http://127.0.0.1:9/a.yaml': give the path of a file"),
        ("_BASE_: 3\n", "has _BASE_ 3"),
        ("_BASE_: a.yaml\nA: 3\n", "A is a section, got 3"),
        ("A: 1\nA: 2\n", "in line 2: the key A stands there twice"),
        ("A: {B: 1, B: 2}\n", "the key B stands there twice"),
        ("3: 4\n", "'3' is no key"),
        ("[a, b]: 4\n", "is no key"),
        ("A: !!python/name:os.system\n", "in line 1; tags that run Python code are refused"),
        ("A: !mine 3\n", "tags that run Python code are refused"),
        ("A: {\n", "is no plain YAML in line"),
        ("A: 1\n---\nA: 2\n", "is no plain YAML"),
        ("A: 2024-02-30\n", "is no plain YAML"),
        ("- a\n", "holds list values, not KEY: value lines"),
        ("A: &a [*a]\n", "stands for more than"),
        ("A: " + "[" * 5000 + "]" * 5000, "is no plain YAML"),
    ],
)
def test_faulty_files_are_named(tmp_path, text, message):
    write(tmp_path / "a.yaml", "A: {B: 1}\n")
    with pytest.raises(ValueError, match=rf"the config .*run\.yaml.*{message}"):
        read_config(write(tmp_path / "run.yaml", text))


def test_aliases_that_stand_for_gigabytes_are_refused_at_once(tmp_path):
    text = "A: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True):
        text += f"{new.upper()}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    with pytest.raises(ValueError, match="stands for more than 100,000 values"):
        read_yaml(write(tmp_path / "run.yaml", text))
    assert read_yaml(write(tmp_path / "run.yaml", "A: &a [1]\nB: *a\n")) == {"A": [1], "B": [1]}


def test_it_is_text_in_utf_8_or_16(tmp_path):
    (tmp_path / "run.yaml").write_bytes("A: ü\n".encode("utf-16"))
    assert read_yaml(tmp_path / "run.yaml") == {"A": "ü"}
    (tmp_path / "run.yaml").write_bytes("A: ü\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"run\.yaml is not UTF-8"):
        read_yaml(tmp_path / "run.yaml")
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        read_yaml(tmp_path / "absent.yaml")
