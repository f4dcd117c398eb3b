"""Where pictures go, which data sets fit, and which images come first."""

import argparse
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from zeroshot_d2 import demo_world
from zeroshot_d2.figures import add_picture_arguments
from zeroshot_d2.pictures.command import check_dataset, first_wanted, picture_path


def prepared(*arguments: str) -> Path:
    parser = argparse.ArgumentParser()
    add_picture_arguments(parser)
    return picture_path(parser.parse_args(arguments), "tsne")


def test_a_picture_or_a_folder(tmp_path):
    for ending in ("png", "pdf", "svg", "PNG"):
        assert prepared("--output", str(tmp_path / "new" / f"a.{ending}")) == tmp_path / "new" / f"a.{ending}"
    assert prepared("--output", str(tmp_path / "folder")) == tmp_path / "folder" / "tsne.png"
    (tmp_path / "v1.0").mkdir()
    assert prepared("--output", str(tmp_path / "v1.0")) == tmp_path / "v1.0" / "tsne.png"
    assert (tmp_path / "folder").is_dir()
    with pytest.raises(ValueError, match=r"a\.jpg must end in \.png, \.pdf, \.svg"):
        prepared("--output", str(tmp_path / "a.jpg"))


def test_a_script_registers_data_sets_first(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "from zeroshot_d2.demo_world import register_demo_world\n"
        "register_demo_world('figures_imported', seed=1, num_images=2)\n"
    )
    with pytest.raises(ValueError, match=r"'figures_imported' is not registered; choose one of .*demo_world_val.* --import"):
        check_dataset("figures_imported", "alignzeg_sem_seg")
    prepared("--output", str(tmp_path / "a.png"), "--import", str(script))
    check_dataset("figures_imported", "alignzeg_sem_seg")
    DatasetCatalog.remove("figures_imported")
    MetadataCatalog.remove("figures_imported")
    with pytest.raises(FileNotFoundError, match=r"absent\.py"):
        prepared("--output", str(tmp_path / "a.png"), "--import", str(tmp_path / "absent.py"))


def test_a_data_set_with_other_labels_is_refused():
    demo_world.register_builtin()
    check_dataset("demo_world_multilabel_test", "epsilon_multilabel")
    with pytest.raises(ValueError, match="has labels of another kind; choose one of .*demo_world_val") as error:
        check_dataset("demo_world_multilabel_test", "alignzeg_sem_seg")
    assert "multilabel_held_out" not in str(error.value)


def test_wanted_items_come_first():
    def is_even(x: int) -> bool:
        return x % 2 == 0

    assert first_wanted([1, 2, 3, 4, 6], 2, is_even) == [2, 4]
    assert first_wanted([1, 2, 3, 5], 3, is_even) == [2, 1, 3]
    assert first_wanted([1], 3, is_even) == [1]
    assert first_wanted(iter(range(10**12)), 2, is_even) == [0, 2]  # no more are looked at than needed
    with pytest.raises(ValueError, match="positive, got 0"):
        first_wanted([1], 0, is_even)
