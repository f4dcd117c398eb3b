"""The benchmark of loading runs the mappers of training, and its stages add up."""

import pytest

from benchmarks import loading


def test_stages_of_every_case(tmp_path):
    measured = loading.measure(tmp_path, images=2, rounds=1)
    names = ["COCO-Stuff, 640 x 480", "Epsilon, 500 x 375", "Epsilon, 1024 x 768"]
    assert [name for name in measured if not name.endswith(", whole")] == names
    assert {f"{name}, whole" for name in names[1:]} < set(measured)
    for name, [stages] in measured.items():
        assert tuple(stages) == loading.STAGES
        is_segmentation = name.startswith("COCO")
        assert stages[loading.DECODE] > 0 and stages[loading.RESIZE] > 0
        assert (stages[loading.LABELS] > 0) == (stages[loading.COLOUR] > 0) == is_segmentation


def test_whole_is_the_same_mapper_without_the_reduced_scale(tmp_path):
    reduced, whole = loading.multilabel_cases(tmp_path, 1, 768, 1024)
    file = reduced.records[0]["file_name"]
    [read] = [function for _, name, _, function in reduced.patched if name == "read_image"]
    [read_whole] = [function for _, name, _, function in whole.patched if name == "read_image"]
    assert read(file, max_pixels=10**6, at_least=(300, 400)).shape == (384, 512, 3)
    assert read_whole(file, max_pixels=10**6, at_least=(300, 400)).shape == (768, 1024, 3)


def test_table_has_medians_and_ratios():
    rest = dict.fromkeys(loading.STAGES, 0.0)
    ours = [{**rest, loading.DECODE: ms} for ms in (4.0, 2.0, 1.0)]
    whole = [{**rest, loading.DECODE: ms} for ms in (4.0, 4.0, 4.0)]
    lines = loading.table({"a": ours, "a, whole": whole}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells[0][0] == "a" and cells[0][-3:] == ["2.00 (1.00 to 4.00)", "500", "2.00 (1.00 to 4.00)"]
    assert cells[1][-2:] == ["250", ""]


def test_a_stopwatch_counts_what_fails():
    watch = loading.Stopwatch()
    with pytest.raises(ZeroDivisionError):
        watch.timed(loading.DECODE, lambda: sum(range(10000)) / 0)()
    assert watch.seconds[loading.DECODE] > 0
