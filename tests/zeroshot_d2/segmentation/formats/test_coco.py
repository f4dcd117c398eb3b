"""COCO instances, read by pycocotools and by Detectron2."""

import json

import numpy as np
from detectron2.data.datasets import load_coco_json
from format_examples import VOCABULARY, write
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def test_read_by_pycocotools(tmp_path, capsys):
    found = write(tmp_path, "--format", "coco")
    assert not (tmp_path / "out/a b.json").exists()  # which the format "labels" would have written
    coco = COCO(str(tmp_path / "out/coco/annotations.json"))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["a b.jpg", "inside/ü.png"]
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(VOCABULARY.names)
    for image, result in zip(coco.loadImgs(coco.getImgIds()), found, strict=True):
        assert (image["height"], image["width"]) == result.labels.shape
        for k in range(len(VOCABULARY)):
            painted = np.zeros(result.labels.shape, dtype=int)
            for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"], catIds=k + 1)):
                mask = coco.annToMask(annotation)
                assert mask.sum() == annotation["area"] and 0 <= annotation["score"] <= 1
                painted += mask
            np.testing.assert_array_equal(painted, result.labels == k)


def test_the_predictions_as_ground_truth_find_themselves(tmp_path, capsys):
    """Scores are there: the annotations are valid results of COCO's evaluation too."""
    write(tmp_path, "--format", "coco")
    coco = COCO(str(tmp_path / "out/coco/annotations.json"))
    evaluation = COCOeval(coco, coco.loadRes(coco.dataset["annotations"]), "segm")
    evaluation.params.maxDets = [1000]
    evaluation.evaluate()
    assert any(image is not None for image in evaluation.evalImgs)
    for image in filter(None, evaluation.evalImgs):
        if image["aRng"] == [0, 1e10]:
            assert (image["dtMatches"][0] > 0).all()


def test_read_by_detectron2(tmp_path):
    write(tmp_path, "--format", "coco")
    records = load_coco_json(str(tmp_path / "out/coco/annotations.json"), str(tmp_path / "photos"))
    content = json.loads((tmp_path / "out/coco/annotations.json").read_text())
    assert sum(len(record["annotations"]) for record in records) == len(content["annotations"])
    assert len({annotation["id"] for annotation in content["annotations"]}) == len(content["annotations"])


def test_the_least_area(tmp_path):
    write(tmp_path, "--format", "coco", "--min-area", "5")
    areas = [a["area"] for a in json.loads((tmp_path / "out/coco/annotations.json").read_text())["annotations"]]
    assert areas and min(areas) >= 5
