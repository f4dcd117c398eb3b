"""What is written for annotation tools, read by their own libraries; and what those write, read by ours.

These libraries bring another OpenCV: ``make test-formats`` has an environment for them. Elsewhere the file is skipped.
"""

import json

import numpy as np
import pytest
from format_examples import NO_CLASS, VOCABULARY, example, make_writer, write
from PIL import Image

from zeroshot_d2.datasets.annotations import READERS, convert
from zeroshot_d2.segmentation.formats.detections import to_supervision
from zeroshot_d2.segmentation.predictor import Segmentation

sv = pytest.importorskip("supervision", reason="make test-formats has it")
datumaro = pytest.importorskip("datumaro", reason="make test-formats has it")
interfaces = pytest.importorskip("label_studio_sdk.label_interface", reason="make test-formats has it")
brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="make test-formats has it")
labelme_shapes = pytest.importorskip("labelme.utils.shape", reason="make test-formats has it")

STEMS = ("a b", "inside/ü")


def masks_of(dataset, stem):
    """{class name: mask} of an image of a datumaro data set, and how many masks of it there are."""
    (item,) = [item for item in dataset if item.id == stem]
    names = [label.name for label in dataset.categories()[datumaro.AnnotationType.label].items]
    masks: dict[str, np.ndarray] = {}
    count = 0
    for annotation in item.annotations:
        if annotation.type in (datumaro.AnnotationType.mask, datumaro.AnnotationType.polygon):
            masks[names[annotation.label]] = masks.get(names[annotation.label], 0) + annotation.image.astype(int)
            count += 1
    return masks, count


def check_masks(masks, result):
    assert masks.keys() == {VOCABULARY.names[k] for k in np.unique(result.labels) if k != NO_CLASS}
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, result.labels == VOCABULARY.names.index(name))


# ---- out ----


def test_cvat_as_datumaro_reads_it(tmp_path):
    """CVAT imports and exports its "Segmentation mask 1.1" with a fork of datumaro's reader of VOC."""
    found = write(tmp_path, "--format", "cvat")
    dataset = datumaro.Dataset.import_from(str(tmp_path / "out/cvat"), "voc_segmentation")
    for stem, result in zip(STEMS, found, strict=True):
        masks, count = masks_of(dataset, stem)
        check_masks(masks, result)
        assert count == len(masks)  # one mask per class


def test_coco_as_datumaro_reads_it(tmp_path):
    found = write(tmp_path, "--format", "coco")
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "out/coco/annotations.json").rename(tmp_path / "coco/annotations/instances_all.json")
    (tmp_path / "photos").rename(tmp_path / "coco/images")
    dataset = datumaro.Dataset.import_from(str(tmp_path / "coco"), "coco_instances")
    for stem, result in zip(STEMS, found, strict=True):
        check_masks(masks_of(dataset, stem)[0], result)


def test_coco_panoptic_as_datumaro_reads_it(tmp_path):
    found = write(tmp_path, "--format", "coco-panoptic")
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "out/coco_panoptic/panoptic.json").rename(tmp_path / "coco/annotations/panoptic_all.json")
    (tmp_path / "out/coco_panoptic/panoptic").rename(tmp_path / "coco/annotations/panoptic_all")
    (tmp_path / "photos").rename(tmp_path / "coco/images")
    dataset = datumaro.Dataset.import_from(str(tmp_path / "coco"), "coco_panoptic")
    for stem, result in zip(STEMS, found, strict=True):
        check_masks(masks_of(dataset, stem)[0], result)


def test_label_studio_s_own_validation_and_decoder(tmp_path):
    found = write(tmp_path, "--format", "label-studio")
    folder = tmp_path / "out/label_studio"
    interface = interfaces.LabelInterface((folder / "config.xml").read_text(encoding="utf-8"))
    interface.validate()
    for task, result in zip(json.loads((folder / "tasks.json").read_text(encoding="utf-8")), found, strict=True):
        assert interface.validate_task({"data": task["data"]})  # it cannot take predictions along
        (prediction,) = task["predictions"]
        assert interface.validate_prediction(prediction, return_errors=True) == []
        masks = {}
        for region in prediction["result"]:
            shape = (region["original_height"], region["original_width"], 4)
            (name,) = region["value"]["brushlabels"]
            masks[name] = brush.decode_rle(region["value"]["rle"]).reshape(shape)[..., 3] > 0
        check_masks(masks, result)


def test_label_studio_s_choices(tmp_path):
    from types import SimpleNamespace

    from zeroshot_d2.multilabel.predictor import Tags
    from zeroshot_d2.multilabel.writer import TagWriter
    from zeroshot_d2.pictures.colors import class_colors
    from zeroshot_d2.results import sources_of

    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    sources = sources_of([tmp_path / "a.png"])
    args = SimpleNamespace(
        output=tmp_path / "out", threshold=None, pictures=False, top_k=2, image_prefix=None, format=["label-studio"]
    )
    cfg = SimpleNamespace(MODEL=SimpleNamespace(META_ARCHITECTURE="Toy"))
    predictor = SimpleNamespace(vocabulary=VOCABULARY, colors=class_colors(len(VOCABULARY)), cfg=cfg)
    with TagWriter(predictor, args, sources, "run") as writer:
        scores = np.array([0.1, 0.9, 0.4, 0.2], dtype=np.float32)
        writer.photo(sources[0], np.zeros((2, 3, 3), dtype=np.uint8), Tags(VOCABULARY, scores))
        writer.collect()
    interface = interfaces.LabelInterface((tmp_path / "out/label_studio/config.xml").read_text())
    (task,) = json.loads((tmp_path / "out/label_studio/tasks.json").read_text())
    assert interface.validate_task({"data": task["data"]})  # it cannot take predictions along
    (prediction,) = task["predictions"]
    assert interface.validate_prediction(prediction, return_errors=True) == []
    assert prediction["result"][0]["value"]["choices"] == [VOCABULARY.names[1], VOCABULARY.names[2]]


def test_supervision():
    found = example()
    for connected in (True, False):
        detections = to_supervision(found, connected=connected)
        assert len(detections) == (len(np.unique(found.labels)) - 1 if not connected else len(detections.mask))
        painted = np.full(found.labels.shape, NO_CLASS)
        for mask, index, name, confidence in zip(
            detections.mask, detections.class_id, detections["class_name"], detections.confidence, strict=True
        ):
            assert (painted[mask] == NO_CLASS).all() and name == VOCABULARY.names[index]
            assert confidence == pytest.approx(float(found.confidence[mask].mean()), rel=1e-5)
            painted[mask] = index
        np.testing.assert_array_equal(painted, found.labels)
        np.testing.assert_array_equal(detections.xyxy, sv.mask_to_xyxy(detections.mask))
    large = to_supervision(found, 20)
    assert 0 < len(large) < len(to_supervision(found)) and large.mask.sum(axis=(1, 2)).min() >= 20
    assert len(detections[detections.confidence > 0.5].mask) <= len(detections)
    photo = np.zeros((*found.labels.shape, 3), dtype=np.uint8)
    assert sv.MaskAnnotator().annotate(photo.copy(), detections).any()
    nothing = Segmentation(VOCABULARY, np.full((4, 5), NO_CLASS), np.ones((4, 5), dtype=np.float32))
    assert len(to_supervision(nothing)) == 0
    assert make_writer  # the writer needs none of it


# ---- in ----


def drawn(tmp_path):
    """A datumaro data set of masks without overlaps, and their label image."""
    label = np.full((20, 30), 255)
    label[2:9, 3:14] = 0
    label[5:7, 5:8] = 1
    label[12:18, 20:29] = 1
    annotations = [datumaro.Mask(np.asarray(label == k), label=k, group=k + 1, id=k + 1) for k in (0, 1)]
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    media = datumaro.Image.from_file(path=str(tmp_path / "a.png"), size=(20, 30))
    item = datumaro.DatasetItem(id="a", media=media, annotations=annotations)
    return datumaro.Dataset.from_iterable([item], categories=["cat", "tree"]), label


@pytest.mark.parametrize(
    ("exported", "tool", "path"),
    [("coco_instances", "coco", "annotations/instances_default.json"), ("voc_segmentation", "cvat-masks", "")],
)
def test_what_datumaro_exports(tmp_path, exported, tool, path):
    dataset, label = drawn(tmp_path)
    color_of = {"background": [(0, 0, 0), [], []], "cat": [(9, 0, 200), [], []], "tree": [(0, 100, 7), [], []]}
    dataset.export(str(tmp_path / "in"), exported, save_media=True, **({"label_map": color_of} if "voc" in exported else {}))
    done = convert(READERS[tool](tmp_path / "in" / path), tmp_path / "out", ["cat", "tree"])
    assert done.written == 1 and not done.other_classes
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/labels/a.png")), label)


def test_cvat_for_images_as_datumaro_exports_it(tmp_path):
    dataset, label = drawn(tmp_path)
    dataset.export(str(tmp_path / "in"), "cvat", save_media=False)
    (file,) = (tmp_path / "in").rglob("*.xml")
    done = convert(READERS["cvat-images"](file), tmp_path / "out")
    assert done.names == ["cat", "tree"]
    found = np.asarray(Image.open(tmp_path / "out/labels/a.png"))
    np.testing.assert_array_equal(found, label)


def test_labelme_s_own_masks_of_shapes(tmp_path):
    """But for the outline, which LabelMe's pen draws wider."""
    shapes = [
        {"label": "cat", "points": [[2.5, 3], [40, 8], [30, 35], [6, 30]], "shape_type": "polygon"},
        {"label": "cat", "points": [[50, 5], [70, 30]], "shape_type": "rectangle"},
        {"label": "cat", "points": [[30, 50], [30, 62]], "shape_type": "circle"},
    ]
    for shape in shapes:
        content = {"shapes": [shape], "imageHeight": 70, "imageWidth": 80, "imagePath": "a.jpg"}
        (tmp_path / "a.json").write_text(json.dumps(content))
        (image,) = READERS["labelme"](tmp_path / "a.json").images
        ours = image.shapes[0].draw(70, 80)
        theirs = labelme_shapes.shape_to_mask((70, 80), shape["points"], shape["shape_type"])
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.9
        assert (ours & ~theirs).sum() < 0.02 * theirs.sum()
