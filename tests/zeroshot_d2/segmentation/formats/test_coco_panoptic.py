"""COCO panoptic: what panopticapi checks before it evaluates, and Detectron2's reader."""

import json

import numpy as np
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json
from format_examples import NO_CLASS, VOCABULARY, write
from PIL import Image


def test_segments_are_what_the_png_holds(tmp_path):
    found = write(tmp_path, "--format", "coco-panoptic")
    content = json.loads((tmp_path / "out/coco_panoptic/panoptic.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a b.jpg", "inside/ü.png"]
    assert [(c["name"], c["isthing"]) for c in content["categories"]] == [(name, 0) for name in VOCABULARY.names]
    categories = {category["id"] for category in content["categories"]}
    for annotation, image, result in zip(content["annotations"], content["images"], found, strict=True):
        assert annotation["image_id"] == image["id"]
        with Image.open(tmp_path / "out/coco_panoptic/panoptic" / annotation["file_name"]) as png:
            assert png.mode == "RGB" and png.size == (image["width"], image["height"])
            colors = np.asarray(png).astype(np.uint32)
        ids = colors[..., 0] + 256 * colors[..., 1] + 256**2 * colors[..., 2]
        segments = {segment["id"]: segment for segment in annotation["segments_info"]}
        assert set(segments) == set(np.unique(ids)) - {0}
        assert {segment["category_id"] for segment in segments.values()} <= categories
        for number, segment in segments.items():
            assert segment["area"] == (ids == number).sum()
            left, top, width, height = segment["bbox"]
            rows, columns = np.nonzero(ids == number)
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
        of_id = {number: segment["category_id"] - 1 for number, segment in segments.items()} | {0: NO_CLASS}
        np.testing.assert_array_equal(np.vectorize(of_id.get)(ids), result.labels)


def test_read_by_detectron2(tmp_path):
    write(tmp_path, "--format", "coco-panoptic")
    folder = tmp_path / "out/coco_panoptic"
    meta = {"thing_dataset_id_to_contiguous_id": {}, "stuff_dataset_id_to_contiguous_id": {k + 1: k for k in range(4)}}
    records = load_coco_panoptic_json(
        str(folder / "panoptic.json"), str(tmp_path / "photos"), str(folder / "panoptic"), meta
    )
    assert [r["pan_seg_file_name"] for r in records] == [str(folder / "panoptic" / n) for n in ("a b.png", "inside/ü.png")]
    assert [segment["category_id"] for segment in records[0]["segments_info"]] == [0, 1, 2]
