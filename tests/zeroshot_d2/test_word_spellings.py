"""How labels of any language find their words: scripts, cases, plurals, compounds; and vectors that are of no use."""

from __future__ import annotations

import gzip
import logging
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from zeroshot_d2.word_vectors import WordVectorEmbeddings, read_word_vectors


def write(path: Path, words: list[str], encoding: str = "utf-8") -> Path:
    """Each word is its own direction, so that the vectors say which words a label was made of."""
    table = np.eye(len(words))
    lines = [" ".join([word, *map(str, vector)]) for word, vector in zip(words, table, strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def found(label: str, path: Path, words: list[str]) -> list[str]:
    """The words whose mean stands for ``label``."""
    (vector,) = WordVectorEmbeddings(path)([label])
    return [words[k] for k in vector.nonzero()[:, 0].tolist()]


@pytest.mark.parametrize(
    ("label", "words", "expected"),
    [
        ("हिन्दी", ["हिन्दी", "हिन", "दी"], ["हिन्दी"]),
        ("हिन्दी किताब", ["हिन्दी", "किताब"], ["हिन्दी", "किताब"]),
        ("ΟΔΟΣ", ["οδος"], ["οδος"]),  # the last sigma has its own form
        ("οδός", ["οδός"], ["οδός"]),
        (unicodedata.normalize("NFD", "Café"), ["café"], ["café"]),
        ("café", [unicodedata.normalize("NFD", "café")], [unicodedata.normalize("NFD", "café")]),
        ("Straße", ["straße"], ["straße"]),
        ("straße", ["Straße", "strasse"], ["strasse"]),
        ("Hund Katze", ["Hund", "Katze"], ["Hund", "Katze"]),
        ("weißer hund", ["weißer", "hund"], ["weißer", "hund"]),
        ("whales", ["whale", "wha", "les"], ["whale"]),
        ("berries", ["berry", "ber", "ries"], ["berry"]),
        ("killer whales", ["killer", "whale"], ["killer", "whale"]),
        ("gas", ["gas", "ga"], ["gas"]),
        ("goldengate", ["golden", "gate", "go", "den"], ["golden", "gate"]),
        ("New York", ["new", "york", "New_York"], ["New_York"]),
        ("東京", ["東京"], ["東京"]),
    ],
)
def test_the_words_of_a_label(tmp_path: Path, label: str, words: list[str], expected: list[str]) -> None:
    assert found(label, write(tmp_path / "words.txt", words), words) == expected


@pytest.mark.parametrize(("label", "words"), [("whale", ["wh", "ale"]), ("किताब", ["कित", "ाब"]), ("abcab", ["abc", "ab"])])
def test_what_is_not_cut(tmp_path: Path, label: str, words: list[str]) -> None:
    """Into pieces of two letters, or between a letter and its mark."""
    with pytest.raises(ValueError, match="has no vector for 1 of 1 labels"):
        found(label, write(tmp_path / "words.txt", words), words)


def test_all_labels_that_were_put_together_are_named_also_from_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [f"word{k:02d}x" for k in range(30)]
    path = write(tmp_path / "words.txt", words)
    labels = [f"{first} {second}" for first, second in zip(words, words[1:], strict=False)]
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            WordVectorEmbeddings(path)(labels)
        assert "29 labels are not in" in caplog.text
        assert all(f"{label} = {label.replace(' ', ' + ')}" in caplog.text for label in labels)
        caplog.clear()


def test_a_part_that_no_word_stands_for_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "words.txt", ["hund"])
    with caplog.at_level(logging.WARNING):
        WordVectorEmbeddings(path)(["xyzzy hund"])
    assert "xyzzy hund = hund (without xyzzy)" in caplog.text


# ---- vectors that are of no use ----


@pytest.mark.parametrize(
    ("lines", "labels"),
    [
        ("cat 0 0 0\ndog 1 0 0\n", ["cat", "dog"]),
        ("black 1 0\nwhite -1 0\ndog 0 1\n", ["black white", "dog"]),
        ("cat 1 0\ntomcat -1 0\ndog 0 1\n", ["cat|tomcat", "dog"]),
    ],
)
def test_zero_vectors_are_an_error_at_once_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, labels: list[str]
) -> None:
    monkeypatch.setenv("ZEROSHOT_D2_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "words.txt"
    path.write_text(lines)
    with pytest.raises(ValueError, match=r"are zero, or cancel each other") as raised:
        WordVectorEmbeddings(path)(labels)
    assert repr(labels[0]) in str(raised.value) and "'dog'" not in str(raised.value)
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_vectors_that_are_not_finite(tmp_path: Path, value: str) -> None:
    path = tmp_path / "words.txt"
    path.write_text(f"cat 1 {value}\n")
    with pytest.raises(ValueError, match="the vector of 'cat' holds NaN or infinity"):
        WordVectorEmbeddings(path)(["cat"])


def test_vectors_as_the_file_has_them(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("cat 3 4\ndog 1 0\n")
    torch.testing.assert_close(WordVectorEmbeddings(path, unit_length=False)(["cat"]), torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(WordVectorEmbeddings(path)(["cat"]), torch.tensor([[0.6, 0.8]]))


# ---- files ----


def test_the_first_of_two_vectors_counts_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("cat 1 0\ncat 0 1\n")
    np.savez(tmp_path / "words.npz", names=np.array(["cat", "cat"]), vectors=np.eye(2))
    for name in ("words.txt", "words.npz"):
        assert read_word_vectors(tmp_path / name, {"cat"})["cat"].tolist() == [1.0, 0.0]


def test_encodings_and_compression(tmp_path: Path) -> None:
    words = ["café", "hund"]
    files = [write(tmp_path / f"{encoding}.txt", words, encoding) for encoding in ("utf-8", "utf-8-sig", "utf-16")]
    packed = tmp_path / "words.txt.gz"
    packed.write_bytes(gzip.compress(files[0].read_bytes()))
    for path in (*files, packed):
        assert found("café", path, words) == ["café"], path


def test_files_that_cannot_be_used_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    conflict = tmp_path / "conflict.txt"
    conflict.write_text("cat 1 0\n<<<<<<< HEAD\ndog 0 1\n")
    with pytest.raises(ValueError, match=r"conflict\.txt, line 2: an unresolved git conflict"):
        read_word_vectors(conflict, {"cat", "dog"})
    objects = tmp_path / "objects.npz"
    np.savez(objects, names=np.array(["cat", None], dtype=object), vectors=np.eye(2))
    with pytest.raises(ValueError, match=r"objects\.npz is damaged or holds Python objects"):
        read_word_vectors(objects, {"cat"})
    archive = tmp_path / "words.txt"
    archive.write_bytes(b"PK\x03\x04rest")
    with pytest.raises(ValueError, match=r"words\.txt is a zip archive: unpack it"):
        read_word_vectors(archive, {"cat"})
    cut = tmp_path / "cut.txt.gz"
    cut.write_bytes(gzip.compress(b"cat 1 0\n" * 1000)[:40])
    with pytest.raises(ValueError, match=r"cut\.txt\.gz is damaged"):
        read_word_vectors(cut, {"dog"})
    latin = tmp_path / "latin.txt"
    latin.write_bytes("café 1 0\nhund 0 1\n".encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        assert set(read_word_vectors(latin, {"café", "hund"})) == {"hund"}
    assert "1 lines are not UTF-8" in caplog.text
