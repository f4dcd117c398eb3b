"""Segmentations as files: bits of label images, frames that video codecs take."""

import numpy as np
import pytest
from PIL import Image

from zeroshot_d2 import ClassSplit
from zeroshot_d2.segmentation.predictor import Segmentation
from zeroshot_d2.segmentation.writer import draw_frame, write_labels


@pytest.mark.parametrize(("num_classes", "mode"), [(256, "L"), (257, "I;16")])
def test_label_images_have_8_or_16_bits(tmp_path, num_classes, mode):
    labels = np.array([[0, num_classes - 1, 7]])
    write_labels(tmp_path / "labels.png", labels, num_classes)
    with Image.open(tmp_path / "labels.png") as image:
        assert image.mode == mode
        assert np.array_equal(np.asarray(image), labels)


@pytest.mark.parametrize(("size", "expected"), [((64, 64), (512, 512)), ((481, 641), (480, 640)), ((50, 101), (500, 1010))])
def test_frames_have_even_sides_and_names_that_can_be_read(size, expected):
    bgr = np.full((*size, 3), (250, 100, 0), dtype=np.uint8)
    ignored = Segmentation(ClassSplit(["cat"]), np.full(size, 9), np.ones(size, dtype=np.float32))
    frame = draw_frame(bgr, ignored, [(0, 255, 0)])
    assert frame.shape == (*expected, 3) and frame.dtype == np.uint8
    assert (np.abs(frame.astype(int) - [250, 100, 0]) <= 1).all()  # BGR as before
    found = Segmentation(ClassSplit(["cat"]), np.zeros(size, dtype=np.int64), np.ones(size, dtype=np.float32))
    corner = draw_frame(bgr, found, [(0, 255, 0)])[5, 5]
    assert corner[1] > corner[0] > corner[2]  # green is laid over
