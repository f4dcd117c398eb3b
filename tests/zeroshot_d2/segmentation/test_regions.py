"""The regions of a segmentation against OpenCV's components and pycocotools' masks."""

import cv2
import numpy as np
import pytest
from format_examples import NO_CLASS, VOCABULARY, example
from pycocotools import mask as coco_mask

from zeroshot_d2.segmentation.masks import decode_mask
from zeroshot_d2.segmentation.predictor import Segmentation
from zeroshot_d2.segmentation.regions import class_regions, connected_regions


def test_connected_regions_are_opencv_s():
    found = example()
    expected = set()
    for k in range(len(VOCABULARY)):
        count, parts, stats, _ = cv2.connectedComponentsWithStats((found.labels == k).astype(np.uint8), connectivity=8)
        for part in range(1, count):
            expected.add((k, tuple(stats[part, :4].tolist()), int(stats[part, 4]), (parts == part).tobytes()))
    regions = connected_regions(found)
    assert {(r.index, r.box, r.area, np.ascontiguousarray(r.mask()).tobytes()) for r in regions} == expected
    assert len(regions) == len(expected) > 10
    for region in regions:
        assert region.score == pytest.approx(float(found.confidence[region.mask()].mean()), rel=1e-5)


def test_small_regions_are_left_out():
    found = example()
    every, large = connected_regions(found), connected_regions(found, 4)
    assert [r.area for r in large] == [r.area for r in every if r.area >= 4] and len(large) < len(every)


def test_regions_of_classes_cover_what_has_a_class():
    found = example()
    regions = class_regions(found)
    assert [r.index for r in regions] == [0, 1, 2]
    painted = np.full(found.labels.shape, NO_CLASS)
    for region in regions:
        assert (painted[region.mask()] == NO_CLASS).all()
        painted[region.mask()] = region.index
    np.testing.assert_array_equal(painted, found.labels)


def test_run_lengths_are_pycocotools():
    for region in [*connected_regions(example()), *class_regions(example(3, (1, 7))), *class_regions(example(4, (300, 2)))]:
        encoded = coco_mask.encode(np.asfortranarray(region.mask().astype(np.uint8)))
        assert region.run_lengths() == {"size": encoded["size"], "counts": encoded["counts"].decode()}
        np.testing.assert_array_equal(decode_mask(region.run_lengths(), *encoded["size"]), region.mask())


def test_an_image_without_a_class_has_no_region():
    nothing = Segmentation(VOCABULARY, np.full((4, 5), NO_CLASS), np.ones((4, 5), dtype=np.float32))
    assert connected_regions(nothing) == class_regions(nothing) == []
