"""Label vectors from files of word vectors: both formats, spellings, compounds, and what is wrong with a file."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from zeroshot_d2.word_vectors import WordVectorEmbeddings, centred, read_word_vectors

VECTORS = {
    "tree": [1.0, 0.0, 0.0],
    "potted": [0.0, 2.0, 0.0],
    "plant": [0.0, 0.0, 2.0],
    "golden": [3.0, 0.0, 0.0],
    "gate": [0.0, 4.0, 0.0],
    "go": [0.0, 0.0, 1.0],
    "new_york": [1.0, 1.0, 1.0],
    "bush": [0.0, 1.0, 0.0],
}


@pytest.fixture(params=["glove.txt", "fasttext.txt", "vectors.npz"])
def file(request, tmp_path):
    path = tmp_path / request.param
    if path.suffix == ".npz":
        np.savez(path, names=np.array(list(VECTORS)), vectors=np.array(list(VECTORS.values())))
        return path
    lines = [" ".join([word, *map(str, vector)]) for word, vector in VECTORS.items()]
    lines.insert(1, "tree of life 9 9 9")  # GloVe 840B has words with spaces
    if request.param == "fasttext.txt":
        lines.insert(0, f"{len(lines)} 3")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def unit(*vectors):
    return F.normalize(torch.tensor(vectors).mean(0), dim=-1)


def test_labels_are_found_by_name_and_in_the_order_asked_for(file):
    embeddings = WordVectorEmbeddings(file)
    torch.testing.assert_close(embeddings(["bush", "tree"]), torch.tensor([[0.0, 1, 0], [1.0, 0, 0]]))
    torch.testing.assert_close(embeddings(["tree", "bush"]), torch.tensor([[1.0, 0, 0], [0.0, 1, 0]]))


def test_spellings_synonyms_and_parts(file, caplog):
    with caplog.at_level(logging.WARNING):
        vectors = WordVectorEmbeddings(file)(["Tree", "New York", "potted plant", "goldengate", "tree|bush"])
    torch.testing.assert_close(vectors[0], unit([1.0, 0, 0]))
    torch.testing.assert_close(vectors[1], unit([1.0, 1, 1]))
    torch.testing.assert_close(vectors[2], unit([0.0, 2, 0], [0.0, 0, 2]))
    torch.testing.assert_close(vectors[3], unit([3.0, 0, 0], [0.0, 4, 0]))
    torch.testing.assert_close(vectors[4], unit([1.0, 0, 0], [0.0, 1, 0]))
    assert "2 labels are not in" in caplog.text and "goldengate = golden + gate" in caplog.text


def test_synonyms_with_weights(file):
    (vector, without) = WordVectorEmbeddings(file)(["tree *3|bush", "tree *3|xyzzy *9"])
    torch.testing.assert_close(vector, unit([3.0, 0, 0], [0.0, 1, 0]))
    torch.testing.assert_close(without, unit([1.0, 0, 0]))


def test_a_part_that_is_unknown_is_left_out_of_the_mean(file):
    torch.testing.assert_close(WordVectorEmbeddings(file)(["xyzzy tree"])[0], unit([1.0, 0, 0]))


def test_wholly_unknown_labels_are_named(file):
    with pytest.raises(ValueError, match=r"no vector for 2 of 3 labels.*\['zzz', 'qqq www'\]"):
        WordVectorEmbeddings(file)(["zzz", "tree", "qqq www"])


def test_files_are_looked_for_in_the_data_folder(tmp_path, monkeypatch):
    np.savez(tmp_path / "words.npz", names=np.array(["tree"]), vectors=np.ones((1, 2)))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert WordVectorEmbeddings("words.npz")(["tree"]).shape == (1, 2)
    with pytest.raises(FileNotFoundError, match=r"glove\.txt not found.*Download GloVe"):
        WordVectorEmbeddings("glove.txt")


def test_another_file_at_the_same_place_is_not_taken_for_the_first(tmp_path):
    path = tmp_path / "words.npz"
    for value in (1.0, -1.0):
        np.savez(path, names=np.array(["tree"]), vectors=np.array([[value, 0.0]]))
        assert WordVectorEmbeddings(path)(["tree"]).tolist() == [[value, 0.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [("tree 1 2 3\nbush 1 2\n", "line 2: 2 numbers where the first line has 3"), ("tree 1 x 3\n", "line 1: no word")],
)
def test_malformed_text(tmp_path, text, message):
    path = tmp_path / "words.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_word_vectors(path, {"tree", "bush"})


def test_malformed_npz(tmp_path):
    path = tmp_path / "words.npz"
    np.savez(path, vectors=np.ones((2, 3)))
    with pytest.raises(ValueError, match='must hold "names" and "vectors"'):
        read_word_vectors(path, {"tree"})
    np.savez(path, names=np.array(["a"]), vectors=np.ones((2, 3)))
    with pytest.raises(ValueError, match="1 names for vectors of shape"):
        read_word_vectors(path, {"a"})


def test_centred_vectors_are_unit_and_free_of_the_mean():
    vectors = F.normalize(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) + 3, dim=-1)
    result = centred(vectors, vectors.mean(0))
    torch.testing.assert_close(result.norm(dim=-1), torch.ones(50))
    assert result.mean(0).norm() < 0.5 * vectors.mean(0).norm()
    torch.testing.assert_close(centred(vectors, torch.zeros(4)), vectors)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"names": np.array(["cat"]), "vectors": np.ones((1, 2), complex)},
            '"vectors" one of numbers, got <U3 and complex128',
        ),
        ({"names": np.array(["cat"]), "vectors": np.array([["1", "2"]])}, '"vectors" one of numbers'),
        ({"names": np.array([1]), "vectors": np.ones((1, 2))}, '"names" must be an array of texts'),
        ({"names": np.array([b"cat"]), "vectors": np.ones((1, 2))}, '"names" must be an array of texts'),
        ({"names": np.array(["cat"]), "vectors": np.ones((1, 0))}, "there must be a row for each name"),
        ({"names": np.array([["cat"]]), "vectors": np.ones((1, 2))}, "there must be a row for each name"),
    ],
)
def test_arrays_that_are_no_word_vectors(tmp_path, arrays, message):
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(ValueError, match=rf"w\.npz.*{message}"):
        read_word_vectors(tmp_path / "w.npz", {"cat"})


def test_a_damaged_archive_is_named(tmp_path):
    np.savez(tmp_path / "w.npz", names=np.array(["cat"]), vectors=np.ones((1, 2)))
    whole = (tmp_path / "w.npz").read_bytes()
    for content in (whole[:-40], whole[:60], b"", b"<html>"):
        (tmp_path / "w.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"w\.npz"):
            read_word_vectors(tmp_path / "w.npz", {"cat"})


def test_a_number_too_many_is_named_with_its_line(tmp_path):
    (tmp_path / "w.txt").write_text("sky 0 1\ncat 1 0 5\n")
    with pytest.raises(ValueError, match=r"w\.txt, line 2: 3 numbers where the first line has 2"):
        read_word_vectors(tmp_path / "w.txt", {"cat"})
