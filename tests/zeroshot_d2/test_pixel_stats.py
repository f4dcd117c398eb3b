"""Pixel statistics of weights against those of a config."""

import pytest

from zeroshot_d2 import load_config
from zeroshot_d2.pixel_stats import PixelStats, check_pixel_stats

ONE = PixelStats((120.0, 110.0, 100.0), (60.0, 61.0, 62.0))
OTHER = PixelStats((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))


def config(stats, channels="RGB"):
    return load_config(
        "demo/alignzeg.yaml",
        ["MODEL.PIXEL_MEAN", list(stats[0]), "MODEL.PIXEL_STD", list(stats[1]), "INPUT.FORMAT", channels],
    )


def test_any_of_those_that_the_weights_may_have_will_do():
    for stats in (ONE, OTHER):
        check_pixel_stats(config(stats), [ONE, OTHER], "w")
    check_pixel_stats(config(ONE), [], "w")  # nothing is known
    check_pixel_stats(config((ONE.mean, (60.02, 61.02, 61.98))), [ONE], "w")  # rounded
    check_pixel_stats(config(ONE), [OTHER], "w", also=[ONE])


def test_others_are_refused_with_what_to_set():
    with pytest.raises(
        ValueError,
        match=r"PIXEL_MEAN \[127.5, 127.5, 127.5\] and .* not what the weights x were trained with: .*INPUT.FORMAT RGB, "
        r'set MODEL.PIXEL_MEAN "\[120.0, 110.0, 100.0\]" MODEL.PIXEL_STD "\[60.0, 61.0, 62.0\]"',
    ):
        check_pixel_stats(config(OTHER), [ONE], "the weights x")
    with pytest.raises(ValueError, match="w were"):  # the mean alone is right
        check_pixel_stats(config((ONE.mean, OTHER.std)), [ONE], "w")


def test_channels_are_in_the_order_of_the_input():
    turned = PixelStats(ONE.mean[::-1], ONE.std[::-1])
    check_pixel_stats(config(turned, "BGR"), [ONE], "w")
    with pytest.raises(ValueError, match=r'INPUT.FORMAT BGR, set MODEL.PIXEL_MEAN "\[100.0, 110.0, 120.0\]"'):
        check_pixel_stats(config(ONE, "BGR"), [ONE], "w")


def test_what_is_not_certain_is_a_warning(caplog):
    check_pixel_stats(config(OTHER), [ONE], "the weights x", certain=False)
    assert "are not what the weights x were trained with" in caplog.text


def test_descriptions_count_from_0_to_1():
    stats = PixelStats.of_pretrained({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "size": 224})
    assert stats == OTHER and stats.is_close(OTHER) and not stats.is_close(ONE)
