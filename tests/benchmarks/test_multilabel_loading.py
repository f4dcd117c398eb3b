"""The benchmark of loading image-level labels, on a file of a few."""

import numpy as np
import pytest

from benchmarks import multilabel_loading
from zeroshot_d2.multilabel.columns import LabelColumns


@pytest.mark.skipif(not multilabel_loading.Path("/proc/self/smaps_rollup").is_file(), reason="reads Linux's /proc")
@pytest.mark.parametrize("case", ["columns", "list"])
def test_both_ways_read_every_record(tmp_path, monkeypatch, case):
    for name, value in {"READS": 50, "WORKERS": 1, "LIST_SHARE": 2}.items():
        monkeypatch.setattr(multilabel_loading, name, value)
    assert multilabel_loading.write_file(tmp_path / "labels.npz", images=40, labels=100) > 0
    numbers = multilabel_loading.measure(case, tmp_path / "labels.npz")
    assert all(np.isfinite(value) for value in numbers.values())
    assert {"load_s", "private_mb", "reads_per_s_0_workers", "reads_per_s_1_workers"} <= set(numbers)


def test_the_file_is_one_of_this_project(tmp_path):
    multilabel_loading.write_file(tmp_path / "labels.npz", images=40, labels=100)
    columns = LabelColumns.open(tmp_path / "labels.npz")
    assert len(columns) == 40 and len(columns.class_ids) == multilabel_loading.CLASSES
