"""Masks of strangers: equal to pycocotools where they are masks, and a sentence where they are none."""

import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from zeroshot_d2.segmentation.masks import check_size, decode_mask

HEIGHT, WIDTH = 7, 11


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_are_decoded_as_coco_does(seed):
    mask = np.random.default_rng(seed).random((HEIGHT, WIDTH)) > 0.6
    mask[:, 4] = True
    compressed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    flat = np.concatenate([[0], mask.T.ravel().astype(int), [2]])
    starts = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], starts])).tolist()  # runs of zeros and ones in turn, zeros first
    for form in (compressed, counts):
        np.testing.assert_array_equal(decode_mask({"size": [HEIGHT, WIDTH], "counts": form}, HEIGHT, WIDTH), mask)


def test_long_runs_of_text(tmp_path):
    mask = np.zeros((300, 400), np.uint8, order="F")
    mask[5:290, 3:399] = 1
    mask[40:60, 100:200] = 0
    counts = coco_mask.encode(mask)["counts"].decode()
    np.testing.assert_array_equal(decode_mask({"size": [300, 400], "counts": counts}, 300, 400), mask)


def test_polygons_are_coco_s():
    polygons = [[0.0, 0, 5, 0, 5, 7, 0, 7], [8, 1, 10, 1, 10, 3]]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, HEIGHT, WIDTH)))
    np.testing.assert_array_equal(decode_mask(polygons, HEIGHT, WIDTH), expected)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[0, 0, math.nan, 0, 4, 6]], "finite numbers, got nan"),
        ([[0, 0, math.inf, 0, 4, 6]], "finite numbers, got inf"),
        ([[0, 0, 1e300, 0, 4, 6]], "must lie in the image"),
        ([[0, 0, "a", 0, 4, 6]], "finite numbers, got 'a'"),
        ([[0, 0, 1, 1]], "at least three points"),
        ([[0, 0, 1, 1, 2, 2, 3]], "at least three points"),
        ([], "without a polygon"),
        ([3], "at least three points"),
        (None, "a list of polygons or"),
        ({"counts": [0, 77]}, "a list of polygons or"),
        ({"size": [3, 3], "counts": [0, 9]}, r"a mask of \[3, 3\] in an image of \(7, 11\)"),
        ({"size": [HEIGHT, WIDTH], "counts": [0, 5]}, "add up to 7 x 11"),
        ({"size": [HEIGHT, WIDTH], "counts": [-1, 78]}, "whole numbers from 0"),
        ({"size": [HEIGHT, WIDTH], "counts": [0.5, 76.5]}, "whole numbers from 0"),
        ({"size": [HEIGHT, WIDTH], "counts": "oooo1000000000"}, "whole numbers from 0"),
        ({"size": [HEIGHT, WIDTH], "counts": "\u00ff"}, "which must not be there"),
        ({"size": [HEIGHT, WIDTH], "counts": None}, "whole numbers from 0"),
    ],
)
def test_what_is_no_mask(segmentation, message):
    with pytest.raises(ValueError, match=message):
        decode_mask(segmentation, HEIGHT, WIDTH)


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (10**6, 10**6)])
def test_sizes_that_no_image_has(size):
    check_size(5, 5, 100)
    with pytest.raises(ValueError, match="must be from 1"):
        check_size(*size, 10**6)
