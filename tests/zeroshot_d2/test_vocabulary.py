"""Which vocabulary an input is recognised with."""

import pytest
from detectron2.data import MetadataCatalog

from zeroshot_d2 import ClassSplit
from zeroshot_d2.vocabulary import split_of_dataset, training_vocabulary, vocabulary_from_names, vocabulary_of

SPLIT = ClassSplit(["cat", "dog"])


@pytest.fixture(autouse=True)
def dataset():
    MetadataCatalog.get("vocabulary_test").set(class_split=SPLIT)
    yield
    MetadataCatalog.remove("vocabulary_test")


def test_own_names_win_over_the_data_set_and_that_over_the_default():
    own = {"vocabulary": ["tree|bush"], "dataset_name": "vocabulary_test"}
    assert vocabulary_of(own, None) == ClassSplit(["tree"], prompts=["tree|bush"])
    assert vocabulary_of({"vocabulary": SPLIT}, None) is SPLIT
    assert vocabulary_of({"dataset_name": "vocabulary_test"}, "other") is SPLIT
    assert vocabulary_of({}, "vocabulary_test") is SPLIT
    with pytest.raises(ValueError, match='neither a "vocabulary" nor a "dataset_name"'):
        vocabulary_of({}, None)


def test_a_data_set_without_a_split():
    MetadataCatalog.get("vocabulary_test_plain")
    with pytest.raises(ValueError, match="'vocabulary_test_plain' has no class split"):
        split_of_dataset("vocabulary_test_plain")
    MetadataCatalog.remove("vocabulary_test_plain")


def test_bad_vocabularies():
    with pytest.raises(ValueError, match="empty"):
        vocabulary_from_names([])
    with pytest.raises(ValueError, match="more than once"):
        vocabulary_from_names(["cat", "cat|kitten"])


def test_a_training_batch_has_one_vocabulary():
    batch = [{"dataset_name": "vocabulary_test"}, {"vocabulary": SPLIT}]
    assert training_vocabulary(batch, None) == SPLIT
    with pytest.raises(ValueError, match="mixes data sets of different vocabularies"):
        training_vocabulary([*batch, {"vocabulary": ["tree"]}], None)
