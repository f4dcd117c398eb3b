"""Windows, sizes and mirror images: what they cover, what weights add up to, and that nothing shifts by half a pixel."""

import pytest
import torch
import torch.nn.functional as F
from comparisons import assert_close

from zeroshot_d2.segmentation.looks import Axis, Look, Looks, regions


@pytest.mark.parametrize(
    ("side", "window", "stride", "starts", "length"),
    [
        (10, 10, 3, (0,), 10),
        (10, 20, 3, (0,), 10),
        (11, 10, 3, (0, 1), 10),
        (20, 10, 5, (0, 5, 10), 10),
        (23, 10, 5, (0, 5, 10, 13), 10),
        (21, 7, 7, (0, 7, 14), 7),
    ],
)
def test_windows_reach_the_end_and_none_leaves_the_image(side, window, stride, starts, length):
    axis = Axis.of_windows(side, window, stride)
    assert (axis.starts, axis.length) == (starts, length)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("output", [1, 7, 23, 24, 100])
@pytest.mark.parametrize(("side", "window", "stride"), [(23, 10, 5), (23, 10, 10), (23, 30, 5), (24, 8, 8), (5, 2, 1)])
def test_weights_add_up_to_one_and_vanish_outside_of_their_window(side, window, stride, output, mirrored):
    axis = Axis.of_windows(side, window, stride, mirrored=mirrored)
    pixels = torch.arange(output)
    total = torch.zeros(output, dtype=torch.float64)
    for index in range(len(axis.starts)):
        weights, span = axis.weights(index, pixels, output), axis.span(index, output)
        assert (weights >= 0).all() and (weights <= 1).all()
        outside = torch.cat([weights[: span.start], weights[span.stop :]])
        assert not outside.any()
        total += weights
    torch.testing.assert_close(total, torch.ones(output, dtype=torch.float64))


def test_weights_cross_over_in_a_straight_line():
    axis = Axis.of_windows(20, 12, 8)  # 0 to 12 and 8 to 20: they share 8 to 12
    first = axis.weights(0, torch.arange(20), 20)
    assert first[:8].eq(1).all() and first[12:].eq(0).all()
    torch.testing.assert_close(first[8:12], torch.tensor([0.875, 0.625, 0.375, 0.125], dtype=torch.float64))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("size", [(6, 9), (12, 18), (5, 7)])
def test_positions_sample_a_windows_grid_as_the_image_was_cut(size, mirrored):
    """An image whose pixels say where they are: read back through positions in each window, they are where they were."""
    image = torch.arange(18.0).view(1, 1, 18).expand(1, 12, 18)
    look = Look(Axis.of_windows(12, 5, 3), Axis.of_windows(18, 8, 5, mirrored=mirrored))
    looked_at = look.image(image)
    pixels = torch.arange(size[1])
    for place in look.places():
        window, across = place.cut(looked_at), place.across(size[1])
        columns = look.columns.positions(place.column, pixels[across], size[1], 8.0)
        lower = columns.clamp(0, 7).floor().long()
        weight = columns.clamp(0, 7) - lower
        row = window[0, 0].double()
        read = (1 - weight) * row[lower] + weight * row[(lower + 1).clamp(max=7)]
        expected = (pixels[across].double() + 0.5) * 18 / size[1] - 0.5
        inside = (columns >= 0) & (columns <= 7)
        assert inside.any()
        torch.testing.assert_close(read[inside], expected[inside])


@pytest.mark.parametrize("output_size", [(12, 18), (37, 50), (3, 4)])
def test_regions_cover_each_pixel_once_with_all_windows_that_see_it(output_size):
    looks = [
        Look(Axis.of_windows(12, 5, 3), Axis.of_windows(18, 8, 5, mirrored=True), 0.5),
        Look(Axis.of_windows(24, 10, 10), Axis.of_windows(36, 36, 1), 0.5),
    ]
    places = [place for look in looks for place in look.places()]
    count = torch.zeros(output_size)
    members_of = torch.zeros(len(places), *output_size)
    for rows, columns, members in regions(places, output_size):
        count[rows, columns] += 1
        members_of[members, rows, columns] = 1
    assert count.eq(1).all()
    for seen, place in zip(members_of, places, strict=True):
        expected = torch.zeros(output_size)
        expected[place.down(output_size[0]), place.across(output_size[1])] = 1
        assert torch.equal(seen, expected)


def test_regions_of_some_rows():
    places = Look(Axis.of_windows(12, 5, 3), Axis.of_windows(18, 8, 5)).places()
    covered = torch.zeros(24, 36)
    for rows, columns, _ in regions(places, (24, 36), slice(5, 9)):
        covered[rows, columns] += 1
    assert covered[5:9].eq(1).all() and not covered[:5].any() and not covered[9:].any()


def test_a_whole_image_is_alone():
    (place,) = Look.whole((5, 7)).places()
    assert place.is_alone and place.look.size == place.look.window == (5, 7)
    assert Looks().of_image((5, 7)) == [Look.whole((5, 7))]
    image = torch.rand(3, 5, 7)
    assert torch.equal(place.cut(place.look.image(image)), image)
    assert not any(place.is_alone for look in Looks(window=4, stride=4).of_image((5, 7)) for place in look.places())
    assert all(place.is_alone for look in Looks(window=9, stride=4).of_image((5, 7)) for place in look.places())


def test_sizes_are_those_of_detectron2():
    looks = Looks(min_sizes=(32, 64), max_size=100, mirrored=True).of_image((64, 128))
    assert [(look.size, look.columns.mirrored) for look in looks] == [
        ((32, 64), False),
        ((32, 64), True),
        ((50, 100), False),
        ((50, 100), True),
    ]
    assert sum(look.share for look in looks) == 1
    image = torch.rand(3, 64, 128)
    smaller = F.interpolate(image[None], size=(32, 64), mode="bilinear", align_corners=False, antialias=True)[0]
    assert_close(looks[0].image(image), smaller)
    assert_close(looks[1].image(image), smaller.flip(-1))


def test_keys(demo_cfg):
    assert Looks.of_config(demo_cfg()) == Looks()
    cfg = demo_cfg("TEST.SLIDE.ENABLED", True, "TEST.SLIDE.WINDOW", 64, "TEST.SLIDE.STRIDE", 32)
    assert Looks.of_config(cfg) == Looks(window=64, stride=32)
    cfg = demo_cfg("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64, 96))
    assert Looks.of_config(cfg) == Looks(min_sizes=(64, 96), mirrored=True)
    with pytest.raises(ValueError, match=r"TEST\.SLIDE\.STRIDE 65 exceeds TEST\.SLIDE\.WINDOW 64 and would leave gaps"):
        Looks.of_config(demo_cfg("TEST.SLIDE.ENABLED", True, "TEST.SLIDE.WINDOW", 64, "TEST.SLIDE.STRIDE", 65))
