"""Image-level labels as columns: sorted, mapped from a file, sent to other processes."""

import pickle

import numpy as np
import pytest

from zeroshot_d2.multilabel.columns import LabelColumns, MultiLabelDataset


def columns() -> LabelColumns:
    """Image 0: dog, not cat. Image 1: nothing. Image 2: sky, cat."""
    image, classes, signs = np.array([2, 0, 2, 0]), np.array([0, 2, 2, 1]), np.array([1, -1, 1, 1])
    return LabelColumns.build(["sky", "dog", "cat"], ["a\\1.jpg", "b/ü.jpg", "c.jpg"], image, classes, signs)


def test_columns_sort_rows_and_keep_paths():
    made = columns()
    assert len(made) == 3 and [made.path(i) for i in range(3)] == ["a/1.jpg", "b/ü.jpg", "c.jpg"]
    np.testing.assert_array_equal(made.row(0), ([1, 2], [1, -1]))
    assert made.row(1)[0].size == 0
    np.testing.assert_array_equal(made.row(2), ([0, 2], [1, 1]))


def test_of_contradicting_labels_present_wins():
    made = LabelColumns.build(["x"], ["a", "b"], np.array([0, 0, 1]), np.array([0, 0, 0]), np.array([-1, 1, -1]))
    np.testing.assert_array_equal(made.signs, [1, -1])


def test_saved_columns_are_mapped_and_equal(tmp_path):
    made = columns()
    made.save(tmp_path / "labels.npz")
    opened = LabelColumns.open(tmp_path / "labels.npz")
    assert opened.class_ids == made.class_ids and isinstance(opened.classes.base, np.memmap)
    for array in ("path_bytes", "path_ends", "row_ends", "classes", "signs"):
        np.testing.assert_array_equal(getattr(opened, array), getattr(made, array))
        np.testing.assert_array_equal(np.load(tmp_path / "labels.npz")[array], getattr(made, array))


def test_a_mapped_file_travels_as_its_name(tmp_path):
    large = LabelColumns.build(["x"], [f"{i}.jpg" for i in range(5000)], np.arange(5000), np.zeros(5000), np.ones(5000))
    large.save(tmp_path / "labels.npz")
    pickled = pickle.dumps(LabelColumns.open(tmp_path / "labels.npz"))
    assert len(pickled) < 500
    assert pickle.loads(pickled).path(4999) == "4999.jpg"
    assert pickle.loads(pickle.dumps(large)).path(4999) == "4999.jpg"


def test_no_labels_at_all(tmp_path):
    empty = LabelColumns.build(["x"], ["a", "b"], np.array([]), np.array([]), np.array([]))
    empty.save(tmp_path / "labels.npz")
    assert LabelColumns.open(tmp_path / "labels.npz").row(1)[0].size == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["x", "x"], ["a"], [0], [0], [1]), "more than once"),
        ((["x"], ["a"], [1], [0], [1]), r"image indices \[1, 1\]"),
        ((["x"], ["a"], [0], [1], [1]), r"class indices \[1, 1\]"),
        ((["x"], ["a"], [0], [0], [0]), "signs must be"),
    ],
)
def test_bad_columns_are_named(arguments, message):
    class_ids, paths, *labels = arguments
    with pytest.raises(ValueError, match=message):
        LabelColumns.build(class_ids, paths, *map(np.array, labels))


def test_bad_files_are_named(tmp_path):
    file = tmp_path / "labels.npz"
    with pytest.raises(FileNotFoundError, match=r"labels\.npz"):
        LabelColumns.open(file)
    columns().save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut off"):
        LabelColumns.open(file)
    np.savez(file, other=np.zeros(3))
    with pytest.raises(ValueError, match="lacks"):
        LabelColumns.open(file)
    np.savez_compressed(file, other=np.zeros(3))
    with pytest.raises(ValueError, match="compressed"):
        LabelColumns.open(file)


# ---- dataset dicts ----


def test_a_vocabulary_has_an_order_of_its_own_and_may_leave_classes_out():
    dataset = MultiLabelDataset("d", columns(), "photos", vocabulary_ids=["cat", "dog"])
    assert [record["positive_labels"].tolist() for record in dataset] == [[1], [], [0]]
    assert [record["negative_labels"].tolist() for record in dataset] == [[0], [], []]
    assert [counts.tolist() for counts in dataset.class_counts()] == [[1, 1], [1, 0]]
    assert dataset[-1]["image_id"] == "c.jpg" and dataset[2]["dataset_name"] == "d"
    for index in (3, -4):
        with pytest.raises(IndexError, match="of 3"):
            dataset[index]


def test_classes_that_are_missing_or_not_known():
    with pytest.raises(ValueError, match=r"1 of 2 classes, for example 'bat', are not in its labels \(given in memory\)"):
        MultiLabelDataset("d", columns(), "", vocabulary_ids=["cat", "bat"])
    with pytest.raises(ValueError, match=r"has labels \['dog'\] that are not classes of its split"):
        MultiLabelDataset("d", columns(), "", vocabulary_ids=["cat"], known_ids=["cat", "sky"])


def test_interrupted_writing_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "labels.npz"
    columns().save(file)
    before = file.read_bytes()
    monkeypatch.setattr(np, "savez", lambda stream, **arrays: stream.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        columns().save(file)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("classes", np.array([0, 1, 3], np.int32), r"of the classes \[3, 3\], of which it has 3"),
        ("classes", np.array([0, 1, -1], np.int32), r"of the classes \[-1, -1\]"),
        ("signs", np.array([1, -1, 0], np.int8), "has the sign 0"),
        ("row_ends", np.array([0, 5, 3]), "do not fit together at image 0"),
        ("row_ends", np.array([1, 2, 3]), "do not fit together"),
        ("path_ends", np.array([0, 9, 4]), "do not fit together at image 0"),
        ("path_ends", np.array([0, 4, 4]), "has no path for image 1"),
        ("path_bytes", np.full(4, 255, np.uint8), "a path for image 0 that is not UTF-8"),
    ],
)
def test_columns_that_contradict_one_another(tmp_path, column, values, message):
    arrays = {
        "class_ids": np.array(["a", "b", "c"]),
        "path_bytes": np.frombuffer(b"x.jy", np.uint8),
        "path_ends": np.array([0, 3, 4]),
        "row_ends": np.array([0, 2, 3]),
        "classes": np.array([0, 1, 2], np.int32),
        "signs": np.array([1, -1, 1], np.int8),
    }
    np.savez(tmp_path / "labels.npz", **{**arrays, column: values})
    with pytest.raises(ValueError, match=rf"labels\.npz.*{message}"):
        dataset = MultiLabelDataset("d", LabelColumns.open(tmp_path / "labels.npz"), "", vocabulary_ids=["a", "b", "c"])
        for index in range(len(dataset)):
            dataset[index]


def test_labels_are_checked_before_they_are_counted(tmp_path):
    image, classes, signs = np.array([0, 0]), np.array([0, 1]), np.array([1, -1])
    made = LabelColumns.build(["a", "b"], ["x.jpg"], image, classes, signs)
    odd = LabelColumns(made.class_ids, made.path_bytes, made.path_ends, made.row_ends, made.classes - 1, made.signs)
    with pytest.raises(ValueError, match=r"of the classes \[-1, 0\]"):
        MultiLabelDataset("d", odd, "", vocabulary_ids=["a", "b"]).class_counts()
