"""Names in Detectron2's catalogues: the same registration again, another one, and one in place of the first."""

import functools
import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from zeroshot_d2.registration import register_dataset, warn_about_count

NAME = "test_registration"


@pytest.fixture(autouse=True)
def forget():
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(NAME, None)


def register(value=None, *, replace=False, load=list):
    register_dataset(NAME, load, {"value": value}, {"value": value}, replace=replace)


def test_the_name_is_in_both_catalogues():
    register(3, load=lambda: [{"image_id": 7}])
    assert DatasetCatalog.get(NAME) == [{"image_id": 7}] and MetadataCatalog.get(NAME).value == 3


def test_metadata_that_was_there_without_a_data_set_goes():
    MetadataCatalog.get(NAME).old = 1
    register(3)
    assert not hasattr(MetadataCatalog.get(NAME), "old")


@pytest.mark.parametrize("catalog", [DatasetCatalog, MetadataCatalog])
def test_a_name_that_was_removed_from_one_catalogue_is_in_both_again(catalog):
    register(1, load=lambda: ["first"])
    catalog.remove(NAME)
    register(1, load=lambda: ["second"])
    assert DatasetCatalog.get(NAME) in (["first"], ["second"]) and MetadataCatalog.get(NAME).value == 1
    DatasetCatalog.remove(NAME)  # with the metadata of the first left behind, another may take the name
    register(2, load=lambda: ["third"])
    assert DatasetCatalog.get(NAME) == ["third"] and MetadataCatalog.get(NAME).value == 2


@pytest.mark.parametrize("value", [{"a": [1, (2,)]}, np.array([1, 2]), {"a": np.array([1, 2])}, None, "text"])
def test_the_same_again_keeps_the_first(value):
    register(value, load=lambda: ["first"])
    register(value, load=lambda: ["second"])
    assert DatasetCatalog.get(NAME) == ["first"]


def test_another_is_refused_and_leaves_the_first():
    register(1, load=lambda: ["first"])
    with pytest.raises(
        ValueError, match=f"a data set '{NAME}' is already registered, .*: take another name, or pass replace"
    ):
        register(2)
    assert DatasetCatalog.get(NAME) == ["first"] and MetadataCatalog.get(NAME).value == 1


def test_a_data_set_that_was_registered_elsewhere_is_not_taken_for_the_same():
    DatasetCatalog.register(NAME, lambda: ["elsewhere"])
    with pytest.raises(ValueError, match="already registered"):
        register(1)
    register(1, replace=True, load=lambda: ["ours"])
    assert DatasetCatalog.get(NAME) == ["ours"]


def test_replacing():
    register(1)
    register(2, replace=True, load=lambda: ["second"])
    assert DatasetCatalog.get(NAME) == ["second"] and MetadataCatalog.get(NAME).value == 2
    register(2)  # now that one is the first
    register(2, replace=True, load=lambda: ["third"])
    assert DatasetCatalog.get(NAME) == ["third"]


# ---- functions ----


def cell(source: str, name: str = "load"):
    """A function as a notebook's cell defines it, anew at every run."""
    names: dict = {}
    exec(source, {"__name__": "__main__"}, names)
    return names[name]


def test_a_function_that_a_cell_defines_again_is_the_same():
    source = "def load(part='train', *, limit=3):\n    return [{'image_id': i} for i in range(limit)]"
    register(cell(source))
    register(cell(source))
    register(functools.partial(cell(source), "val"), replace=True)
    register(functools.partial(cell(source), "val"))


@pytest.mark.parametrize(
    "other",
    [
        "def load(part='train'):\n    return read(part, 2)",
        "def load(part='train'):\n    return write(part, 1)",
        "def load(part='val'):\n    return read(part, 1)",
        "def other(part='train'):\n    return read(part, 1)",
    ],
)
def test_a_function_of_other_code_is_another(other):
    register(cell("def load(part='train'):\n    return read(part, 1)"))
    with pytest.raises(ValueError, match="already registered"):
        register(cell(other, "other" if "other" in other else "load"))


def test_a_function_that_closes_over_other_values_is_another():
    def of(folder):
        return lambda: folder

    register(of("a"))
    register(of("a"))
    with pytest.raises(ValueError, match="already registered"):
        register(of("b"))
    with pytest.raises(ValueError, match="already registered"):
        register(functools.partial(of("a"), 1))


def test_a_method_of_another_object_is_another():
    class Release:
        def load(self):
            return []

    release = Release()
    register(release.load)
    register(release.load)
    with pytest.raises(ValueError, match="already registered"):
        register(Release().load)


# ---- counts ----


def test_an_incomplete_data_set_is_logged_with_both_counts(caplog):
    with caplog.at_level(logging.WARNING):
        warn_about_count(NAME, 5, 5)
        warn_about_count(NAME, 5, None)
        assert not caplog.records
        warn_about_count(NAME, 4, 5)
    assert f"{NAME}: found 4 images, the whole release has 5" in caplog.text
