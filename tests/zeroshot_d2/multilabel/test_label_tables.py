"""Labels from CSV and JSON: the same labels in every form, and what does not fit is named."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from zeroshot_d2 import ClassSplit, register_multilabel
from zeroshot_d2.multilabel.label_tables import label_names, read_label_table

EXPECTED = {"a.jpg": {"cat": 1, "tree": 1}, "b,1.jpg": {"cat": 1}, "c.jpg": {}}
FORMS = {
    "wide.csv": 'image,labels\na.jpg,cat|tree\n"b,1.jpg",cat\nc.jpg,\n',
    "spaces.csv": ' Image , Labels \r\n a.jpg , cat | tree \r\n"b,1.jpg",cat\r\n\r\nc.jpg,\r\n',
    "semicolons.csv": "image;labels\na.jpg;cat|tree\nb,1.jpg;cat\nc.jpg;\n",
    "columns.csv": 'taken,labels,image\n2020,cat|tree,a.jpg\n2021,cat,"b,1.jpg"\n2022,,c.jpg\n',
    "long.csv": 'image,label\na.jpg,cat\n"b,1.jpg",cat\na.jpg,tree\na.jpg,tree\nc.jpg,\n',
    "signs.csv": 'image,label,sign\na.jpg,cat,1\na.jpg,tree,+1\n"b,1.jpg",cat,1\nc.jpg,,\n',
    "lists.json": json.dumps({"a.jpg": ["cat", "tree"], "b,1.jpg": ["cat"], "c.jpg": []}),
    "objects.json": json.dumps({"a.jpg": {"cat": 1, "tree": 1}, "b,1.jpg": ["cat"], "c.jpg": {}}),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_has_the_same_labels(tmp_path, name):
    (tmp_path / name).write_bytes(FORMS[name].encode("utf-8-sig"))
    table = read_label_table(tmp_path / name)
    assert table == EXPECTED
    assert label_names(table) == ["cat", "tree"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.csv", "image,label,sign\na.jpg,cat,1\na.jpg,dog,-1\n"), ("a.json", '{"a.jpg": {"cat": 1, "dog": -1}}')],
)
def test_signs(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_label_table(tmp_path / name) == {"a.jpg": {"cat": 1, "dog": -1}}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "a.jpg,cat\n", r"a\.csv: line 1: its first line must name the columns .*, got 'a\.jpg,cat'"),
        ("a.csv", "image,label,labels\n", r"line 1: its first line must name"),
        ("a.csv", "image,labels,labels\n", r"line 1: its first line must name"),
        ("a.csv", "", r"line 0: its first line must name .*, got ''"),
        ("a.csv", "image,labels\n", r"a\.csv names no image"),
        ("a.csv", "image,labels\na.jpg,cat,dog\n", r"line 2: 3 cells for 2 columns: put a cell that holds a comma"),
        ("a.csv", "image,labels\n,cat\n", r"line 2: the image is missing"),
        ("a.csv", "image,labels\na.jpg,cat\na.jpg,dog\n", r"line 3: a\.jpg has a row already"),
        ("a.csv", "image,label,sign\na.jpg,cat,0\n", r"line 2: a sign must be 1 \(present\) or -1 .*, got '0'"),
        (
            "a.csv",
            "image,label,sign\na.jpg,cat,1\na.jpg,cat,-1\n",
            r"line 3: a\.jpg is said to have 'cat' and not to",
        ),
        ("a.csv", 'image,labels\n"a.jpg,cat\n', r"line 2: unexpected end of data"),
        ("a.json", "[1, 2]", r"a\.json: it must be an object of images"),
        ("a.json", '{"a.jpg": "cat"}', r'the labels of a\.jpg must be \[labels\], .*, got "cat"'),
        ("a.json", '{"a.jpg": [1]}', r"the labels of a\.jpg must be"),
        ("a.json", '{"a.jpg": {"cat": 0}}', r"the labels of a\.jpg must be"),
        ("a.json", '{"a.jpg": {"cat": true}}', r"the labels of a\.jpg must be"),
        ("a.json", '{"a.jpg": [], "a.jpg": ["cat"]}', r"'a\.jpg' is there twice"),
        ("a.json", '{"a.jpg": ', r"the label table .*a\.json: Expecting value"),
        ("a.json", "{}", r"a\.json names no image"),
        ("a.txt", "image,labels\n", r"a\.txt must end in \.csv or \.json"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_label_table(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="label table"):
        read_label_table(tmp_path / "nowhere.csv")


def test_a_table_is_registered_by_its_path_and_read_when_it_is_loaded(tmp_path):
    split = ClassSplit(["cat", "dog", "tree"], unseen=["tree"])
    name, table = "test_label_tables", tmp_path / "labels.CSV"
    for _ in range(2):  # the same again, as a notebook's cell does
        register_multilabel(name, split, tmp_path, table, complete=False)
    try:
        table.write_text("image,label,sign\na.jpg,cat,1\na.jpg,dog,-1\nb.jpg,tree,1\n")
        dataset = DatasetCatalog.get(name)
        assert [record["image_id"] for record in dataset] == ["a.jpg", "b.jpg"]
        assert dataset[0]["positive_labels"].tolist() == [0] and dataset[0]["negative_labels"].tolist() == [1]
        assert dataset[1]["positive_labels"].tolist() == [2]
        table.write_text("image,labels\na.jpg,cow\n")
        with pytest.raises(ValueError, match=r"label 'cow' of a\.jpg is not a class of its split"):
            DatasetCatalog.get(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
