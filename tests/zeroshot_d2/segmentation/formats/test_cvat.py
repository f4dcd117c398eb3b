"""CVAT's segmentation mask 1.1; datumaro reads it in tests/formats."""

import numpy as np
import pytest
from format_examples import NO_CLASS, VOCABULARY, make_writer, write
from PIL import Image

from zeroshot_d2 import ClassSplit
from zeroshot_d2.segmentation.formats.cvat import cvat_masks, label_colors, voc_color
from zeroshot_d2.segmentation.predictor import Segmentation


def test_the_folder(tmp_path):
    found = write(tmp_path, "--format", "cvat")
    folder = tmp_path / "out/cvat"
    assert (folder / "ImageSets/Segmentation/default.txt").read_text(encoding="utf-8") == "a b\ninside/ü\n"
    head, *lines = (folder / "labelmap.txt").read_text().splitlines()
    assert head == "# label:color_rgb:parts:actions"
    rows = [line.split(":") for line in lines]
    assert [row[0] for row in rows] == ["background", *VOCABULARY.names] and all(row[2:] == ["", ""] for row in rows)
    colors = {tuple(map(int, row[1].split(","))): row[0] for row in rows}
    assert colors[0, 0, 0] == "background" and len(colors) == len(rows)
    names = dict(enumerate(VOCABULARY.names)) | {NO_CLASS: "background"}
    for stem, result in zip(("a b", "inside/ü"), found, strict=True):
        classes = np.asarray(Image.open(folder / f"SegmentationClass/{stem}.png"))
        objects = np.asarray(Image.open(folder / f"SegmentationObject/{stem}.png"))
        for k in np.unique(result.labels):
            here = result.labels == k
            assert {colors[tuple(color)] for color in classes[here].tolist()} == {names[k]}
            assert len(np.unique(objects[here], axis=0)) == 1
        assert len(np.unique(objects.reshape(-1, 3), axis=0)) == len(np.unique(result.labels))


def test_colors_are_never_the_same():
    names = ["a", "b", "background", "c", "d"]
    colors = label_colors(names, [(0, 0, 0), (5, 5, 255), (7, 7, 7), (5, 5, 255), (255, 255, 255)])
    assert colors == [(0, 0, 1), (5, 5, 255), (0, 0, 0), (5, 6, 0), (255, 255, 255)]
    many = label_colors([str(k) for k in range(3000)], [(9, 9, 9)] * 3000)
    assert len(set(many)) == 3000 and (0, 0, 0) not in many
    # The first colours of PASCAL VOC, from its development kit.
    assert [voc_color(k) for k in (0, 1, 2, 8, 20)] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (64, 0, 0), (0, 64, 128)]
    assert len({voc_color(k) for k in range(256)}) == 256


def test_a_class_background_is_no_mask():
    vocabulary = ClassSplit(["background", "cat"])
    found = Segmentation(vocabulary, np.array([[0, 1]]), np.ones((1, 2), dtype=np.float32))
    classes, objects = cvat_masks(found, label_colors(vocabulary.names, [(1, 1, 1), (2, 2, 2)]))
    assert classes.tolist() == [[[0, 0, 0], [2, 2, 2]]] and objects.tolist() == [[[0, 0, 0], [128, 0, 0]]]


def test_what_the_format_cannot_hold(tmp_path, monkeypatch):
    many = ClassSplit([str(k) for k in range(300)])
    found = Segmentation(many, np.arange(300)[None], np.ones((1, 300), dtype=np.float32))
    with pytest.raises(ValueError, match="holds 255 masks per image, got 300 classes"):
        cvat_masks(found, label_colors(many.names, [(9, 9, 9)] * 300))
    monkeypatch.setattr("format_examples.VOCABULARY", ClassSplit(["a:b", "cat", "d", "e"]))
    with pytest.raises(ValueError, match="cannot hold the class 'a:b'"):
        make_writer(tmp_path, ["--format", "cvat"], [])


def test_images_that_differ_in_their_ending_alone(tmp_path):
    from zeroshot_d2.results import sources_of

    sources = sources_of([tmp_path / "a.png", tmp_path / "a.jpg"])
    make_writer(tmp_path, ["--format", "coco", "label-studio"], sources)
    for name in ("cvat", "coco-panoptic"):
        with pytest.raises(ValueError, match=rf"--format {name} .*a\.png and .*a\.jpg differ in nothing else"):
            make_writer(tmp_path, ["--format", name], sources)
