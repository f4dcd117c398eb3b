"""The demo world: the same on every machine, and such that zero-shot transfer is possible and never given away."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from zeroshot_d2 import IGNORE_LABEL, demo_world, read_label
from zeroshot_d2.demo_world import SPLIT, STUFF, THINGS, UNSEEN, register_demo_world, render, render_files

HASH = "9c92fb9a6eefeba5b6adcc4f007a8a7e57baf1fc8cc1b04442af9df0a607accd"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROSHOT_D2_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def name():
    yield "test_world"
    if "test_world" in DatasetCatalog.list():
        DatasetCatalog.remove("test_world")
        MetadataCatalog.remove("test_world")


def test_images_are_the_same_on_every_machine():
    """A changed hash means that published results of the demo world no longer hold."""
    digest = hashlib.sha256()
    for index in range(20):
        rendered = render(1, index)
        digest.update(rendered.image.tobytes() + rendered.label.tobytes())
    assert digest.hexdigest() == HASH


def test_seed_and_index_determine_an_image():
    first = render(3, 5).image
    render(3, 6)
    np.testing.assert_array_equal(render(3, 5).image, first)
    assert not np.array_equal(render(3, 6).image, first) and not np.array_equal(render(4, 5).image, first)


def test_every_attribute_of_an_unseen_class_occurs_among_the_seen():
    words = {word for name in SPLIT.seen for word in name.split()}
    for name in UNSEEN:
        assert set(name.split()) <= words, name
    assert set(UNSEEN) & set(THINGS) and set(UNSEEN) & set(STUFF)
    assert len(SPLIT) == 38 and len(SPLIT.seen) == 31


def test_labels_and_classes_say_what_is_visible():
    for index in range(50):
        rendered = render(0, index)
        assert rendered.image.shape == (64, 64, 3) and rendered.image.dtype == np.uint8
        assert rendered.label.shape == (64, 64) and rendered.label.dtype == np.uint8
        assert rendered.classes == tuple(np.unique(rendered.label)) and max(rendered.classes) < len(SPLIT)
        things = [c for c in rendered.classes if c < len(THINGS)]
        grounds = [c for c in rendered.classes if c >= len(THINGS)]
        assert 1 <= len(things) <= 3 and 1 <= len(grounds) <= 2


def test_every_class_occurs_in_a_small_set():
    seen = {c for index in range(150) for c in render(2, index).classes}
    assert seen == set(range(len(SPLIT)))


def test_no_tile_hides_more_than_a_third_of_another(monkeypatch):
    masks = []
    real_mask, real_paint = demo_world._shape_mask, demo_world._paint_tile
    last = []
    monkeypatch.setattr(demo_world, "_shape_mask", lambda *args: last.append(real_mask(*args)) or last[-1])
    monkeypatch.setattr(demo_world, "_paint_tile", lambda *args: masks.append(last[-1]) or real_paint(*args))
    hidden = 0
    for index in range(60):
        masks.clear()
        rendered = render(0, index, num_objects=(4, 5))
        for i, mask in enumerate(masks):
            visible = mask & ~np.any([np.zeros_like(mask), *masks[i + 1 :]], axis=0)
            assert visible.sum() >= mask.sum() * 2 / 3
            hidden += visible.sum() < mask.sum()
            assert len(np.unique(rendered.label[visible])) == 1
    assert hidden > 10  # occlusion does happen


def test_colours_of_the_tiles_are_in_the_image():
    for index in range(30):
        rendered = render(5, index, num_objects=(1, 1))
        for c in rendered.classes:
            if c < len(THINGS) and THINGS[c].startswith("plain"):
                mean = rendered.image[rendered.label == c].mean(axis=0)
                colours = {name: np.array(rgb) for name, rgb in demo_world.COLOURS.items()}
                assert min(colours, key=lambda name: np.abs(colours[name] - mean).sum()) == THINGS[c].split()[1]


def test_options():
    assert render(0, 0, size=96).image.shape == (96, 96, 3)
    for index in range(10):
        assert all(c >= len(THINGS) for c in render(0, index, num_objects=(0, 0)).classes)
        assert {c for c in render(0, index, classes=[7]).classes if c < len(THINGS)} == {7}
    with pytest.raises(ValueError, match="size=16"):
        render(0, 0, size=16)
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        render(0, 0, num_objects=(3, 2))
    with pytest.raises(ValueError, match="num_images=0"):
        render_files(0, 0)


def test_unknown_parts_are_refused():
    zeros = np.zeros((4, 4))
    with pytest.raises(ValueError, match="unknown shape 'hexagon'"):
        demo_world._shape_mask("hexagon", zeros, zeros, 1.0, 0.0)
    with pytest.raises(ValueError, match="unknown texture 'woolly'"):
        demo_world._texture("woolly", 32, np.random.default_rng(0))


def test_files_hold_the_rendered_images_and_are_rendered_once():
    records = render_files(9, 3)
    for record in records:
        rendered = render(9, record["image_id"])
        np.testing.assert_array_equal(np.asarray(Image.open(record["file_name"])), rendered.image)
        np.testing.assert_array_equal(np.asarray(Image.open(record["sem_seg_file_name"])), rendered.label)
        assert (record["height"], record["width"]) == (64, 64)
    first = Path(records[0]["file_name"])
    stamp = first.stat().st_mtime_ns
    Path(records[1]["file_name"]).unlink()
    again = render_files(9, 4)
    assert first.stat().st_mtime_ns == stamp and Path(records[1]["file_name"]).is_file()
    assert again[:3] == records and not list(first.parent.glob("*.tmp"))


def test_worlds_do_not_share_a_folder():
    worlds = [((1, 1), {}), ((2, 1), {}), ((1, 1), {"size": 96}), ((1, 1), {"num_objects": (4, 5)})]
    folders = {Path(render_files(*args, **options)[0]["file_name"]).parent for args, options in worlds}
    assert len(folders) == 4


@pytest.mark.parametrize(
    ("name", "vocabulary", "protocol", "count"),
    [
        ("demo_world_train_seen", SPLIT.seen, "supervised", demo_world.NUM_TRAIN),
        ("demo_world_train_all", SPLIT.names, None, demo_world.NUM_TRAIN),
        ("demo_world_val", SPLIT.names, "GZS3", demo_world.NUM_VAL),
        ("demo_world_val_unseen", UNSEEN, "ZS3", demo_world.NUM_VAL),
        ("demo_world_held_out", SPLIT.names, "GZS3", demo_world.NUM_VAL),
    ],
)
def test_registered_sets(name, vocabulary, protocol, count, monkeypatch):
    import alignzeg_d2  # noqa: F401  (registers them)

    metadata = MetadataCatalog.get(name)
    assert set(metadata.class_split.names) == set(vocabulary)
    assert protocol is None or metadata.protocol == protocol
    assert metadata.ignore_label == IGNORE_LABEL
    asked = []
    monkeypatch.setattr(demo_world, "render_files", lambda seed, n, **_: asked.append((seed, n)) or render_files(seed, 2))
    records = DatasetCatalog.get(name)
    assert len(records) == 2 and [n for _, n in asked] == [count]


def test_seeds_of_training_and_evaluation_differ():
    assert len({demo_world.TRAIN_SEED, demo_world.VAL_SEED, demo_world.HELD_OUT_SEED}) == 3


def test_training_ignores_unseen_pixels_and_zs3_ignores_seen_ones(name):
    records = render_files(1, 12)
    for vocabulary, kept_names in (("seen", SPLIT.seen), ("unseen", UNSEEN), ("all", SPLIT.names)):
        register_demo_world(name, 1, 12, vocabulary=vocabulary)
        metadata = MetadataCatalog.get(name)
        ignored = 0
        for record in records:
            raw = np.asarray(Image.open(record["sem_seg_file_name"]))
            mapped = read_label(record["sem_seg_file_name"], metadata.label_table)
            names = np.array([*metadata.class_split.names, "ignored"])
            shown = names[np.minimum(mapped, len(names) - 1)]
            original = np.array(SPLIT.names)[raw]
            kept = np.isin(original, kept_names)
            np.testing.assert_array_equal(shown[kept], original[kept])
            assert (mapped[~kept] == IGNORE_LABEL).all()
            ignored += (~kept).sum()
        assert (ignored > 0) == (vocabulary != "all")
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_registering_again_changes_nothing():
    before = DatasetCatalog.list()
    demo_world.register_builtin()
    demo_world.register_builtin()
    assert set(before) <= set(DatasetCatalog.list())
