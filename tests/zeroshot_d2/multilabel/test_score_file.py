"""Scores written image by image and read class by class."""

import numpy as np

from zeroshot_d2.multilabel.score_file import ScoreFile


def test_score_file_gives_columns_back(tmp_path, monkeypatch):
    monkeypatch.setattr("zeroshot_d2.multilabel.score_file._ROWS_PER_CHUNK", 4)
    scores = np.random.default_rng(0).random((11, 5), dtype=np.float32)
    file = ScoreFile(5, str(tmp_path))
    for rows in np.split(scores, [3, 4, 9]):
        file.add(rows)
    for start, stop in ((0, 5), (1, 3), (4, 5)):
        np.testing.assert_array_equal(file.columns(start, stop), scores[:, start:stop].T)
    file.add(scores[:2])
    np.testing.assert_array_equal(file.columns(2, 3)[0], [*scores[:, 2], *scores[:2, 2]])
    file.close()


def test_a_batch_larger_than_what_waits_is_written_in_pieces(monkeypatch):
    monkeypatch.setattr("zeroshot_d2.multilabel.score_file._ROWS_PER_CHUNK", 4)
    scores = np.random.default_rng(1).random((14, 3), dtype=np.float32)
    file = ScoreFile(3, None)
    for rows in (scores[:1], scores[1:]):
        file.add(rows)
    np.testing.assert_array_equal(file.columns(0, 3), scores.T)
    file.close()


def test_an_empty_file_has_columns_of_no_image():
    file = ScoreFile(5, None)
    assert file.columns(1, 4).shape == (3, 0)
    file.close()
