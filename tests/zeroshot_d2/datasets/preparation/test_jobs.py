"""What the preparations share: label images, lists, and work in several processes."""

import numpy as np
import pytest
from PIL import Image

from zeroshot_d2.datasets.preparation.jobs import map_jobs, run_jobs, save_label, write_lists


def test_labels_are_8_or_16_bit(tmp_path):
    for values, mode in (([[0, 255]], "L"), ([[0, 256]], "I;16")):
        save_label(tmp_path / "x.png", np.array(values))
        with Image.open(tmp_path / "x.png") as image:
            assert image.mode == mode
            np.testing.assert_array_equal(np.asarray(image), values)
    with pytest.raises(ValueError, match="65536"):
        save_label(tmp_path / "x.png", np.array([[65536]]))


def _fail_on_three(job: int) -> None:
    if job == 3:
        raise ValueError("job three is damaged")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_job_is_not_swallowed(workers):
    run_jobs(_fail_on_three, [1, 2], workers, "test")
    with pytest.raises(ValueError, match="job three"):
        run_jobs(_fail_on_three, list(range(20)), workers, "test")
    with pytest.raises(ValueError, match="got 0"):
        run_jobs(_fail_on_three, [1], 0, "test")


def _double(job: int) -> int:
    return 2 * job


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_gives_its_result(workers):
    assert sorted(map_jobs(_double, list(range(20)), workers, "test")) == list(range(0, 40, 2))
    assert list(map_jobs(_double, [], workers, "test")) == []


def test_lists_are_sorted_and_counted(tmp_path, capsys):
    write_lists(tmp_path / "new", {"train": ["b", "a"], "val": []})
    assert (tmp_path / "new/train.txt").read_text() == "a\nb\n" and (tmp_path / "new/val.txt").read_text() == ""
    assert capsys.readouterr().out == "train: 2 images\nval: 0 images\n"
