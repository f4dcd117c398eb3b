"""The demo world: the same on every machine, and such that zero-shot transfer is possible and never given away."""

import colorsys
import hashlib
import itertools
import sys

import numpy as np
import pytest

from zeroshot_d2.demo_world import DEMO_NEAR, DEMO_WORLD, SPLIT, STUFF, WORLDS, render
from zeroshot_d2.demo_world.worlds import draw_colours

renderer = sys.modules[render.__module__]  # the package has the function under the module's name
THINGS = DEMO_WORLD.things
HASHES = {
    "demo_world": "9c92fb9a6eefeba5b6adcc4f007a8a7e57baf1fc8cc1b04442af9df0a607accd",
    "demo_near": "89f838b51da21b2d805826e870a5744d8a1e7cae09fc2ac9a68775b31ae6d07e",
}


@pytest.mark.parametrize("name", list(WORLDS))
def test_images_are_the_same_on_every_machine(name):
    """A changed hash means that published results of this world no longer hold."""
    digest = hashlib.sha256()
    for index in range(20):
        rendered = render(1, index, world=WORLDS[name])
        digest.update(rendered.image.tobytes() + rendered.label.tobytes())
    assert digest.hexdigest() == HASHES[name]


def test_seed_and_index_determine_an_image():
    first = render(3, 5).image
    render(3, 6)
    np.testing.assert_array_equal(render(3, 5).image, first)
    assert not np.array_equal(render(3, 6).image, first) and not np.array_equal(render(4, 5).image, first)


def test_every_attribute_of_an_unseen_class_of_the_demo_world_occurs_among_the_seen():
    words = {word for name in SPLIT.seen for word in name.split()}
    for name in DEMO_WORLD.unseen:
        assert set(name.split()) <= words, name
    assert set(DEMO_WORLD.unseen) & set(THINGS) and set(DEMO_WORLD.unseen) & set(STUFF)
    assert len(SPLIT) == 38 and len(SPLIT.seen) == 31


def test_each_unseen_class_of_the_near_world_has_its_family_for_seen_neighbours():
    """The draw is written down: the tiles of one colour of each family."""
    families = DEMO_NEAR.families
    drawn = draw_colours(families, 2026)
    assert {name.split()[1] for name in DEMO_NEAR.unseen} == set(drawn) and len(drawn) == 4
    seen_words = {word for name in DEMO_NEAR.split.seen for word in name.split()}
    for name in DEMO_NEAR.unseen:
        texture, colour, _ = name.split()
        neighbours = {f"{texture} {other} tile" for other in families[DEMO_NEAR.family_of(colour)] if other != colour}
        assert len(neighbours) == 2 and neighbours <= set(DEMO_NEAR.split.seen)
        assert texture in seen_words and colour not in seen_words
    assert {DEMO_NEAR.family_of(name.split()[1]) for name in DEMO_NEAR.unseen} == set(families)
    assert len(DEMO_NEAR.unseen) == 12 and len(DEMO_NEAR.split.seen) == 32
    with pytest.raises(KeyError):
        DEMO_NEAR.family_of("red")


@pytest.mark.parametrize("world", WORLDS.values(), ids=list(WORLDS))
def test_names_are_unique(world):
    assert len(set(world.split.names)) == len(world.split) == len(world.things) + len(STUFF)


def test_colours_of_a_family_are_near_and_families_far():
    """In degrees of hue, of the colours as they are drawn."""
    hues = {name: 360 * colorsys.rgb_to_hsv(*(x / 255 for x in rgb))[0] for name, rgb in DEMO_NEAR.colours.items()}

    def apart(a, b):
        return min((hues[a] - hues[b]) % 360, (hues[b] - hues[a]) % 360)

    for a, b in itertools.combinations(hues, 2):
        same = DEMO_NEAR.family_of(a) == DEMO_NEAR.family_of(b)
        assert 20 < apart(a, b) < 46 if same else apart(a, b) > 44


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
    real_mask, real_paint = renderer._shape_mask, renderer._paint_tile
    last = []
    monkeypatch.setattr(renderer, "_shape_mask", lambda *args: last.append(real_mask(*args)) or last[-1])
    monkeypatch.setattr(renderer, "_paint_tile", lambda *args: masks.append(last[-1]) or real_paint(*args))
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
                colours = {name: np.array(rgb) for name, rgb in DEMO_WORLD.colours.items()}
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


def test_unknown_parts_are_refused():
    zeros = np.zeros((4, 4))
    with pytest.raises(ValueError, match="unknown shape 'hexagon'"):
        renderer._shape_mask("hexagon", zeros, zeros, 1.0, 0.0)
    with pytest.raises(ValueError, match="unknown texture 'woolly'"):
        renderer._texture("woolly", 32, np.random.default_rng(0))


def test_one_ground_alone():
    ground = SPLIT.names.index("dark sand")
    for index in range(4):
        assert set(render(0, index, classes=[7, ground]).classes) == {7, ground}
