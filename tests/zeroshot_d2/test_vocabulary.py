"""Which vocabulary an input is recognised with, and how one is typed or read from a file."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from zeroshot_d2 import ClassSplit
from zeroshot_d2.vocabulary import (
    as_vocabulary,
    is_registered,
    parse_names,
    read_names,
    split_of_dataset,
    training_vocabulary,
    vocabulary_from_names,
    vocabulary_of,
)

SPLIT = ClassSplit(["cat", "dog"])
NAME, PLAIN = "vocabulary_test", "vocabulary_test_plain"


@pytest.fixture(autouse=True)
def datasets():
    """A data set with a class split, and one without."""
    for name in (NAME, PLAIN):
        DatasetCatalog.register(name, list)
    MetadataCatalog.get(NAME).set(class_split=SPLIT)
    yield
    for name in (NAME, PLAIN):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


# ---- of an input ----


def test_own_names_win_over_the_data_set_and_that_over_the_default():
    own = {"vocabulary": ["tree|bush"], "dataset_name": NAME}
    assert vocabulary_of(own, None) == ClassSplit(["tree"], prompts=["tree|bush"])
    assert vocabulary_of({"vocabulary": SPLIT}, None) is SPLIT
    assert vocabulary_of({"dataset_name": NAME}, ClassSplit(["other"])) is SPLIT
    assert vocabulary_of({}, SPLIT) is SPLIT
    with pytest.raises(ValueError, match='neither a "vocabulary" nor a "dataset_name"'):
        vocabulary_of({}, None)


def test_a_training_batch_has_one_vocabulary():
    batch = [{"dataset_name": NAME}, {"vocabulary": SPLIT}]
    assert training_vocabulary(batch, None) == SPLIT
    with pytest.raises(ValueError, match="mixes data sets of different vocabularies"):
        training_vocabulary([*batch, {"vocabulary": ["tree"]}], None)


# ---- of a data set ----


def test_data_sets_without_a_split_or_a_name():
    assert [is_registered(name) for name in (NAME, PLAIN, "vocabulary_test_absent")] == [True, False, False]
    assert split_of_dataset(NAME) is SPLIT
    with pytest.raises(ValueError, match=f"'{PLAIN}' has no class split: register it with"):
        split_of_dataset(PLAIN)
    with pytest.raises(ValueError, match="no data set 'vocabulary_test_absent' is registered: `--import FILE`"):
        split_of_dataset("vocabulary_test_absent")


def test_metadata_alone_is_no_data_set():
    MetadataCatalog.get("vocabulary_test_absent").set(class_split=SPLIT)
    assert not is_registered("vocabulary_test_absent")
    MetadataCatalog.remove("vocabulary_test_absent")


# ---- from names ----


@pytest.mark.parametrize("names", [["cat", "tree | bush"], ("cat", "tree | bush"), iter(["cat", "tree | bush"])])
def test_the_first_synonym_is_displayed(names):
    assert as_vocabulary(names) == ClassSplit(["cat", "tree"], prompts=["cat", "tree | bush"])


def test_a_split_stays_as_it_is():
    assert as_vocabulary(SPLIT) is SPLIT


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "empty"),
        (["cat", "cat|kitten"], "more than once"),
        ("cat, dog", "must be a list of names, got the text 'cat, dog'"),
        (["cat", 3], "non-empty strings, got 3"),
        (["cat", None], "non-empty strings, got None"),
        (["cat", " "], "non-empty strings"),
        (["|bush"], "non-empty strings"),
        (np.array([1, 2]), "non-empty strings"),
    ],
)
def test_bad_vocabularies(names, message):
    with pytest.raises(ValueError, match=message):
        vocabulary_from_names(names)


# ---- as typed ----


def test_names_are_separated_by_commas_and_lines():
    assert parse_names(" cat, tree|bush ,\n\nroad,, sky,") == ["cat", "tree|bush", "road", "sky"]
    assert parse_names("") == []


def test_a_long_list_is_not_taken_for_a_file():
    names = [f"class {k}" for k in range(1000)]
    assert read_names(", ".join(names)) == names


@pytest.mark.parametrize("name", ["classes.txt", "classes", "CLASSES.TXT"])
def test_a_file_has_a_name_per_line(tmp_path, name):
    (tmp_path / name).write_text("\ufeff# mine\ndark grass, wet\n\nzebra|striped horse\n", encoding="utf-8")
    assert read_names(str(tmp_path / name)) == ["dark grass, wet", "zebra|striped horse"]


def test_a_file_of_one_line_may_have_commas(tmp_path):
    (tmp_path / "classes.txt").write_text("cat, dog\n")
    assert read_names(str(tmp_path / "classes.txt")) == ["cat", "dog"]


def test_files_that_do_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the class list missing\.txt does not exist"):
        read_names("missing.txt")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match=r"empty\.txt is empty"):
        read_names(str(tmp_path / "empty.txt"))
    (tmp_path / "table.txt").write_text("1\tcat\n2\tdog\n")
    with pytest.raises(ValueError, match=r"table\.txt has a tab in '1\\tcat': write one class a line"):
        read_names(str(tmp_path / "table.txt"))


# ---- what people take for a list ----


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "Cat"], "lists 'cat' and 'Cat', which are the same to a model"),
        (["traffic light", "traffic_light"], "which are the same to a model"),
        (["caf\u00e9", "cafe\u0301"], "which are the same to a model"),
        (["???"], "neither letter nor digit"),
        (["c\u200bat"], r"the invisible sign U\+200B"),
        (["cat\ndog"], r"the invisible sign U\+000A"),
        (["\udc80"], r"the invisible sign U\+DC80"),
        (["c" * 1001], "has 1,001 characters: give it at most 1,000"),
        (None, "must be a list of names, got None"),
        (3, "must be a list of names, got 3"),
    ],
)
def test_names_that_are_none(names, message):
    with pytest.raises(ValueError, match=message):
        vocabulary_from_names(names)


def test_signs_that_belong_to_names():
    names = ["\u0645\u06cc\u200c\u0631\u0648\u062f", "\U0001f469\u200d\U0001f33e", "St. Bernard", "TV/monitor", "C++", "$x$"]
    assert vocabulary_from_names(names).names == tuple(names)


@pytest.mark.parametrize("text", ["cat; dog", "['cat', 'dog']", '["cat"]', '"cat", "dog"', "{cat, dog}", "<cat>"])
def test_another_notation_is_no_list(text):
    with pytest.raises(ValueError, match="write names without brackets, quotes and dashes"):
        read_names(text)


@pytest.mark.parametrize("text", ["v.txt", "V.CSV", "v.json", "v.yaml", "./v", "~/v", "/nowhere/v"])
def test_a_file_that_is_not_there_is_no_class(text):
    with pytest.raises(FileNotFoundError, match=r"the class list .* does not exist"):
        read_names(text)


def test_paths_that_are_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat").mkdir()
    assert read_names("cat") == ["cat"] and read_names("TV/monitor") == ["TV/monitor"]
    with pytest.raises(ValueError, match="is a folder: name the file in it"):
        read_names("./cat")
    with pytest.raises(ValueError, match="is an address: download the file"):
        read_names("https://example.org/classes.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["cat", "dog"]', "is JSON: write one class a line"),
        ('{\n"names": ["cat"]\n}', "is JSON"),
        ("<!DOCTYPE html>\n<html>", "it is a web page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS"),
        ("1: cat\n2: dog\n", "a number in front of each class, as in '1: cat': remove the numbers"),
        ("0,cat\n1,dog\n", "a number in front of each class"),
        ("- cat\n- dog\n", "write names without"),
        ("names:\n  - cat\n", "write names without"),
        ("cat,\ndog,\n", "write names without"),
        ("cat;1\ndog;2\n", "write names without"),
        ("cat\ndog\nCat\n", r"v\.txt: the vocabulary lists 'cat' and 'Cat'"),
        ("cat\ncat\n", r"v\.txt: .*'cat'.* more than once"),
    ],
)
def test_files_of_another_notation(tmp_path, content, message):
    (tmp_path / "v.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_names(str(tmp_path / "v.txt"))


def test_a_csv_of_columns(tmp_path):
    (tmp_path / "v.csv").write_text("id,name\n7,cat\n")
    with pytest.raises(ValueError, match="has columns in 'id,name': write one class a line"):
        read_names(str(tmp_path / "v.csv"))
    (tmp_path / "v.csv").write_text("cat\ndog\n")
    assert read_names(str(tmp_path / "v.csv")) == ["cat", "dog"]
