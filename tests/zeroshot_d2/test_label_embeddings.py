"""Vectors of class names: computed once per vocabulary, kept in memory and on disk, safe from callers and threads."""

import copy
import logging
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from zeroshot_d2.label_embeddings import Embedded, LabelEmbeddings, cached_embeddings

ARGUMENTS = {"source": "clip 1", "prompts": ["a", "b"], "templates": ["{}"]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROSHOT_D2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ---- on disk ----


def test_cache_hit_does_not_compute(own_cache):
    calls = []

    def compute():
        calls.append(1)
        return Embedded(torch.arange(6.0).reshape(2, 3), "a note")

    first = cached_embeddings(compute, **ARGUMENTS)
    assert torch.equal(cached_embeddings(compute, **ARGUMENTS).vectors, first.vectors) and len(calls) == 1
    for changed in ({"source": "clip 2"}, {"prompts": ["b", "a"]}, {"templates": ["a {}"]}):
        cached_embeddings(compute, **{**ARGUMENTS, **changed})
    assert len(calls) == len(list(own_cache.iterdir())) == 4


def test_the_cache_does_not_decide_on_random_numbers():
    """A training with the same seed is the same whether or not its vocabulary has been used before."""
    drawn = []
    for _ in ("computed", "from the cache"):
        torch.manual_seed(0)
        cached_embeddings(lambda: Embedded(torch.randn(2, 2)), **ARGUMENTS)
        drawn.append(torch.randn(1).item())
    assert drawn[0] == drawn[1]


def test_an_entry_of_another_key_is_not_believed(own_cache):
    """Should two keys ever share a file name, the key inside decides."""
    cached_embeddings(lambda: Embedded(torch.zeros(2, 2)), **ARGUMENTS)
    (path,) = own_cache.glob("*.npz")
    np.savez(path, key=np.array("something else"), embeddings=np.ones((2, 2), dtype=np.float32))
    assert torch.equal(
        cached_embeddings(lambda: Embedded(torch.full((2, 2), 5.0)), **ARGUMENTS).vectors, torch.full((2, 2), 5.0)
    )


@pytest.mark.parametrize(
    "damage", ["empty", "text", "cut", "pickle", "objects", "other entries", "too few rows", "integers"]
)
def test_a_damaged_entry_is_computed_again(own_cache, damage, caplog):
    cached_embeddings(lambda: Embedded(torch.zeros(2, 2)), **ARGUMENTS)
    (path,) = own_cache.iterdir()
    with np.load(path) as stored:
        key = stored["key"]
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("no archive")
        case "cut":
            path.write_bytes(path.read_bytes()[:300])
        case "pickle":
            path.write_bytes(pickle.dumps({"key": str(key)}))
        case "objects":
            np.savez(path, key=key, embeddings=np.array([[None, None]] * 2))
        case "other entries":
            np.savez(path, key=key)
        case "too few rows":
            np.savez(path, key=key, embeddings=np.zeros((1, 2), dtype=np.float32))
        case "integers":
            np.savez(path, key=key, embeddings=np.zeros((2, 2), dtype=np.int64))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(cached_embeddings(lambda: Embedded(torch.ones(2, 2)), **ARGUMENTS).vectors, torch.ones(2, 2))
    assert f"{path} is damaged" in caplog.text
    assert torch.equal(
        cached_embeddings(lambda: Embedded(torch.zeros(2, 2)), **ARGUMENTS).vectors, torch.ones(2, 2)
    )  # and kept again


def test_without_a_folder_to_write_to_nothing_is_kept(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZEROSHOT_D2_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(cached_embeddings(lambda: Embedded(torch.ones(2, 2)), **ARGUMENTS).vectors, torch.ones(2, 2))
    assert "label embeddings are not kept" in caplog.text and "$ZEROSHOT_D2_CACHE names another folder" in caplog.text


# ---- in memory ----


class Lengths(LabelEmbeddings):
    """The length of each prompt, as a vector; counts how often it is asked."""

    def __init__(self, kept: int = 16) -> None:
        super().__init__(source="lengths", templates=(), kept=kept)
        self.computed: list[tuple[str, ...]] = []

    def compute(self, prompts: tuple[str, ...], **at_hand: object) -> Embedded:
        self.computed.append(prompts)
        return Embedded(torch.tensor([[float(len(prompt)), 0.0] for prompt in prompts]), f"{len(prompts)} labels measured")


def test_what_is_to_be_known_of_the_vectors_is_said_also_when_the_cache_answers(own_cache, caplog):
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            Lengths()(["a", "bb"])
        assert "2 labels measured" in caplog.text
        caplog.clear()


def test_a_caller_cannot_change_what_the_next_one_gets():
    embeddings = Lengths()
    embeddings(["a", "bb"]).zero_()
    assert embeddings(["a", "bb"])[:, 0].tolist() == [1.0, 2.0] and embeddings.computed == [("a", "bb")]


def test_vectors_that_were_first_needed_for_inference_can_be_trained_upon():
    embeddings = Lengths()
    with torch.inference_mode():
        embeddings(["a"])
    loss = (embeddings(["a"]) * torch.ones(2, requires_grad=True)).sum()
    loss.backward()


def test_the_vocabulary_that_was_not_used_for_longest_goes_first(own_cache):
    embeddings = Lengths(kept=2)
    for prompts in (["a"], ["b"], ["a"], ["c"]):
        embeddings(prompts)
    for path in own_cache.iterdir():
        path.unlink()
    embeddings.computed.clear()
    for prompts in (["a"], ["c"], ["b"]):
        embeddings(prompts)
    assert embeddings.computed == [("b",)]


def test_threads_share_one_computation():
    embeddings, found = Lengths(), []
    threads = [threading.Thread(target=lambda: found.append(embeddings(["a", "bb"]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(torch.equal(vectors, found[0]) for vectors in found)
    assert embeddings.computed == [("a", "bb")]


def test_threads_with_more_vocabularies_than_are_kept():
    embeddings = Lengths(kept=3)
    vocabularies = [["a" * length, "bb"] for length in range(1, 9)] * 20

    def lengths(prompts: list[str]) -> list[float]:
        return embeddings(prompts)[:, 0].tolist()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lengths, vocabularies))
    assert found == [[float(len(name)) for name in names] for names in vocabularies]
    assert len(embeddings._memory) == 3


def test_a_known_vocabulary_waits_for_no_new_one():
    began, go_on = threading.Event(), threading.Event()

    class Slow(Lengths):
        def compute(self, prompts: tuple[str, ...], **at_hand: object) -> Embedded:
            if prompts == ("new",):
                began.set()
                assert go_on.wait(60)
            return super().compute(prompts)

    embeddings = Slow()
    embeddings(["known"])
    with ThreadPoolExecutor(2) as pool:
        new = pool.submit(embeddings, ["new"])
        assert began.wait(60)
        assert pool.submit(embeddings, ["known"]).result(timeout=60)[0, 0] == 5
        assert not new.done()
        go_on.set()
        assert new.result(timeout=60)[0, 0] == 3


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_are_of_their_own(copied):
    embeddings = Lengths()
    embeddings(["a"])
    other = copied(embeddings)
    assert torch.equal(other(["a"]), embeddings(["a"]))
    other(["bb"])
    assert ("bb",) not in embeddings._memory and other(["bb"])[0, 0] == 2
