"""Word vectors in text and .npz files."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zeroshot_d2.word_vectors import WordVectorEmbeddings

from .case import Case, damaged, not_a_file, write

KIND = "word_vectors"
GOOD = "cat 1 0 0\ndog 0 1 0\nsky 0 0 1\n"


def _embed(path: Path, *labels: str) -> np.ndarray:
    return WordVectorEmbeddings(path).compute(labels or ("cat", "dog")).vectors.numpy()


def _identity(vectors: np.ndarray) -> bool:
    return np.allclose(vectors, np.eye(3, dtype=np.float32)[: len(vectors)])


def _case(
    name: str,
    content: str | bytes | Callable[[Path], Any],
    words: tuple[str, ...] | None,
    reads: Callable[[np.ndarray], bool] | None = None,
    *,
    file: str = "vectors.txt",
    labels: tuple[str, ...] = (),
) -> Case:
    def run(folder: Path) -> np.ndarray:
        content(folder / file) if callable(content) else write(folder / file, content)
        return _embed(folder / file, *labels)

    return Case(KIND, name, run, None if words is None else (file, *words), reads)


def _npz(name: str, words: tuple[str, ...] | None, reads: Callable[[np.ndarray], bool] | None = None, **arrays: Any) -> Case:
    return _case(name, lambda path: np.savez(path, **arrays), words, reads, file="vectors.npz")


def cases(rng: random.Random) -> list[Case]:
    names, vectors = np.array(["cat", "dog", "sky"]), np.eye(3, dtype=np.float32)
    found = [_case(f"{what} as .txt", content, ()) for what, content in not_a_file().items()]
    found += [_case(f"{what} as .npz", content, (), file="vectors.npz") for what, content in not_a_file().items()]

    def broken(path: Path, number: int) -> None:
        np.savez(path, names=names, vectors=vectors)
        write(path, list(damaged(path.read_bytes(), random.Random(number), 2, 2))[number % 4][1])

    found += [
        _case(
            f"a damaged .npz, {number}", lambda path, number=number: broken(path, number), (), _identity, file="vectors.npz"
        )
        for number in range(8)
    ]
    found += [
        _case("GloVe's form", GOOD, None, _identity),
        _case("fastText's form", "3 3\n" + GOOD, None, _identity),
        _case("gzip", gzip.compress(GOOD.encode()), None, _identity),
        _case("gzip cut off", gzip.compress(GOOD.encode() * 99)[:-20], ()),
        _case("UTF-16", GOOD.encode("utf-16"), None, _identity),
        _case("a byte-order mark", "\ufeff" + GOOD, None, _identity),
        _case("CR LF", GOOD.replace("\n", "\r\n"), None, _identity),
        _case("tabs", GOOD.replace(" ", "\t"), (), _identity),
        _case("commas", GOOD.replace(" ", ","), ()),
        _case("decimal commas", "cat 1,0 0,5\ndog 0,5 1,0\n", ("line 1",)),
        _case("a missing number", "sky 0 0 1\ncat 1 0\ndog 0 1 0\n", ("line 2",)),
        _case("a number too many", "sky 0 0 1\ncat 1 0 0 0\ndog 0 1 0\n", ("line 2",)),
        _case("a word as number", "sky 0 0 1\ncat 1 zero 0\ndog 0 1 0\n", ("line 2",)),
        _case("no numbers", "cat\ndog\n", ()),
        _case("NaN", "cat 1 nan 0\ndog 0 1 0\n", ("'cat'",)),
        _case("infinity", "cat 1 inf 0\ndog 0 1 0\n", ("'cat'",)),
        _case("numbers that overflow", "cat 1e39 1 0\ndog 0 1 0\n", ("'cat'",)),
        _case("zeros", "cat 0 0 0\ndog 0 1 0\n", ("'cat'",)),
        _case("words that cancel", "hot 1 0 0\ndog -1 0 0\nsky 0 0 1\n", ("hot dog",), labels=("hot dog", "sky")),
        _case("a word twice, of which the first counts", GOOD + "cat 0 0 1\n", None, _identity),
        _case("a conflict of git", "cat 1 0 0\n<<<<<<< HEAD\ndog 0 1 0\n=======\n", ("conflict",)),
        _case("a label that it does not have", GOOD, ("'unicorn'",), labels=("cat", "unicorn")),
        _case("a header that promises another width", "3 5\n" + GOOD, ("line 2",)),
        _case("Latin-1", "k\xe4fer 1 0 0\ncat 1 0 0\ndog 0 1 0\n".encode("latin-1"), None, _identity),
        _case("a folder", Path.mkdir, ()),
        _case("absent", lambda path: None, ()),
        _npz("names and vectors", None, _identity, names=names, vectors=vectors),
        _npz("names as objects", (), names=names.astype(object), vectors=vectors),
        _npz("vectors as objects", (), names=names, vectors=vectors.astype(object)),
        _npz("other arrays", ("names",), words_=names, table=vectors),
        _npz("too few names", ("2 names",), names=names[:2], vectors=vectors),
        _npz("one vector for all", ("(3,)",), names=names, vectors=vectors[0]),
        _npz("names as bytes", (), _identity, names=names.astype("S"), vectors=vectors),
        _npz("names as numbers", ("names",), names=np.arange(3), vectors=vectors),
        _npz("complex vectors", ("complex",), names=names, vectors=vectors.astype(complex)),
        _npz("vectors as texts", ("vectors",), names=names, vectors=vectors.astype(str)),
        _npz(
            "a name twice, of which the first counts",
            None,
            _identity,
            names=np.array(["cat", "dog", "cat"]),
            vectors=vectors,
        ),
        _npz("NaN in .npz", ("'cat'",), names=names, vectors=np.full((3, 3), np.nan, np.float32)),
        _npz("no vectors", (), names=names[:0], vectors=vectors[:0]),
        _npz("vectors of no width", (), names=names, vectors=vectors[:, :0]),
    ]
    return found
