"""ClassSplit: validation, masks, subsets, and what counts as trained on a foreign data set."""

import dataclasses
import json

import numpy as np
import pytest

from zeroshot_d2 import ClassSplit
from zeroshot_d2.class_split import first_text, weighted_texts


def split() -> ClassSplit:
    return ClassSplit(
        names=["cat", "tvmonitor", "sheep"], unseen=["tvmonitor"], prompts=["cat", "tv monitor|television", "sheep"]
    )


def test_lists_become_tuples_and_masks_follow_the_order():
    s = split()
    assert s.names == ("cat", "tvmonitor", "sheep") and s.unseen == ("tvmonitor",) and len(s) == 3
    assert s.seen == ("cat", "sheep")
    np.testing.assert_array_equal(s.seen_mask, [True, False, True])
    np.testing.assert_array_equal(s.unseen_indices, [1])
    np.testing.assert_array_equal(s.seen_indices, [0, 2])
    assert s.synonyms == (("cat",), ("tv monitor", "television"), ("sheep",))
    assert hash(s) == hash(split()) and s == split()
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.names = ()


def test_subsets_keep_order_and_prompts():
    s = split()
    assert s.only_seen() == ClassSplit(("cat", "sheep"))
    assert s.only_unseen() == ClassSplit(("tvmonitor",), ("tvmonitor",), ("tv monitor|television",))


def test_released_names_stand_beside_prompts():
    s = ClassSplit(["road", "cat"], unseen=["cat"], prompts=["road|route", "cat"], released=["road, route", "cat"])
    assert s.prompts_for("released") == ("road, route", "cat") and s.prompts_for("reworded") == ("road|route", "cat")
    assert s.only_unseen().prompts_for("released") == ("cat",)
    assert ClassSplit(["a"], prompts=["x"]).prompts_for("released") == ("x",)  # where there is no other text
    with pytest.raises(ValueError, match=r"one of \('released', 'reworded'\), got 'plain'"):
        s.prompts_for("plain")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 released for 2 names"):
        ClassSplit(["a", "b"], released=["a"])


def test_prompts_default_to_names():
    assert ClassSplit(["a", "b"]).prompts == ("a", "b")


def test_trained_by_name_by_synonym_and_never_by_substring():
    s = ClassSplit(["Cat", "tvmonitor", "sheep", "car"], prompts=["cat", "tv monitor|television", "sheep", "car"])
    np.testing.assert_array_equal(s.trained_mask(["cat", "Television", "carrot"]), [True, True, False, False])
    np.testing.assert_array_equal(s.trained_mask(["tv_monitor"]), [False, True, False, False])
    assert not s.trained_mask([]).any()


def test_aliases_count_as_trained_but_are_no_prompts():
    s = ClassSplit(["sofa", "cat"], unseen=["sofa"], aliases=["couch|settee", ""])
    assert s.prompts == ("sofa", "cat")
    np.testing.assert_array_equal(s.trained_mask(["Couch"]), [True, False])
    assert not s.trained_mask([""]).any()
    assert s.only_unseen().aliases == ("couch|settee",) and ClassSplit(["a"]).aliases == ("",)
    with pytest.raises(ValueError, match="1 aliases for 2 names"):
        ClassSplit(["sofa", "cat"], aliases=["couch"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": []}, "empty"),
        ({"names": "cat"}, "sequence of strings"),
        ({"names": ["cat", " "]}, "non-empty"),
        ({"names": ["cat", "dog", "cat"]}, r"\['cat'\] more than once"),
        ({"names": ["cat"], "unseen": ["dog"]}, r"\['dog'\] are not among"),
        ({"names": ["cat", "dog"], "unseen": ["dog", "dog"]}, "more than once"),
        ({"names": ["cat", "dog"], "prompts": ["cat"]}, "1 prompts for 2 names"),
        ({"names": ["cat"], "prompts": ["|"]}, "no text besides"),
    ],
)
def test_bad_splits_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassSplit(**arguments)


def test_empty_subsets_and_a_string_of_trained_names_are_errors():
    with pytest.raises(ValueError, match="no class is unseen"):
        ClassSplit(["cat"]).only_unseen()
    with pytest.raises(ValueError, match="no seen class"):
        ClassSplit(["cat"], ["cat"]).only_seen()
    with pytest.raises(ValueError, match="collection"):
        split().trained_mask("cat")


def test_parts_of_a_vocabulary():
    s = split()
    assert s.restricted_to("all") is s
    assert s.restricted_to("seen") == s.only_seen() and s.restricted_to("unseen") == s.only_unseen()
    with pytest.raises(ValueError, match=r"vocabulary must be one of \('all', 'seen', 'unseen'\), got 'both'"):
        s.restricted_to("both")


def test_what_a_model_that_is_trained_on_it_knows():
    assert split().texts == {"cat", "tvmonitor", "tv monitor", "television", "sheep"}


def test_unseen_are_those_that_were_not_trained_and_those_that_are_called_so():
    s = split()
    assert s.with_unseen({"cat", "Television"}).unseen == ("tvmonitor", "sheep")  # the split's own stay unseen
    assert ClassSplit(s.names).with_unseen({"cat", "sheep"}).unseen == ("tvmonitor",)
    assert ClassSplit(s.names).with_unseen({"cat", "sheep"}, also=["cat"]).unseen == ("cat", "tvmonitor")
    assert s.with_unseen(set()).names == s.names and s.with_unseen(set()).prompts == s.prompts
    with pytest.raises(ValueError, match=r"unseen classes \['dog'\] are not in the vocabulary: cat, tvmonitor, sheep"):
        s.with_unseen({"cat"}, also=["dog"])


def test_a_split_goes_through_json():
    s = ClassSplit(["sofa", "cat"], ["sofa"], ["sofa|divan", "cat"], ["couch", ""])
    assert ClassSplit.from_dict(json.loads(json.dumps(s.to_dict()))) == s
    content = s.to_dict()
    del content["aliases"]
    with pytest.raises(
        ValueError, match=r"a stored vocabulary lacks \['aliases'\]; it has \['names', 'prompts', 'released', 'unseen'\]"
    ):
        ClassSplit.from_dict(content)
    with pytest.raises(ValueError, match="more than once"):
        ClassSplit.from_dict({**s.to_dict(), "names": ["cat", "cat"]})


# ---- weights of synonyms ----


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("tree", [("tree", 1)]),
        ("tree|bush", [("tree", 1), ("bush", 1)]),
        (" tree *2 | bush * 0.5|", [("tree", 2), ("bush", 0.5)]),
        ("M*A*S*H", [("M*A*S*H", 1)]),
        ("5*", [("5*", 1)]),
        ("a * b", [("a * b", 1)]),
        ("*2", [("*2", 1)]),
        ("", []),
    ],
)
def test_texts_of_a_prompt_and_their_weights(prompt, texts):
    assert weighted_texts(prompt) == texts
    assert first_text(prompt) == (texts[0][0] if texts else "")


def test_a_weight_of_zero_is_none():
    with pytest.raises(ValueError, match="gives 'bush' the weight 0: leave it out"):
        weighted_texts("tree|bush *0.0")


def test_prompts_of_several_texts_are_told_apart():
    split = ClassSplit(["tree", "sky", "road"], prompts=["tree *2|bush", "sky", "road *3"])
    assert split.synonyms == (("tree", "bush"), ("sky",), ("road",))
    assert split.composed_prompts("reworded") == {"tree": "tree *2|bush", "road": "road *3"}
    assert ClassSplit.from_dict(split.to_dict()) == split
