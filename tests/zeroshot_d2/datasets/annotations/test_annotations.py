"""Annotation files to label images: what they mean, what is refused, and the verb ``convert``."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from zeroshot_d2.__main__ import main as program
from zeroshot_d2.commands.convert import main
from zeroshot_d2.datasets.annotations import READERS, convert

NONE = 255


def label(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def expected(height: int, width: int, **windows: tuple[int, tuple[slice, slice]]) -> np.ndarray:
    """An image without a class but in some windows."""
    values = np.full((height, width), NONE)
    for value, window in windows.values():
        values[window] = value
    return values


def labelme(path: Path, shapes: list[dict], height: int = 20, width: int = 30, **more: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": "5", "imagePath": "../x.jpg", "imageData": None, "shapes": shapes, **more}
    path.write_text(json.dumps({"imageHeight": height, "imageWidth": width, **content}))


def square(name: str, x: float, y: float, side: float, **more: object) -> dict:
    points = [[x, y], [x + side, y], [x + side, y + side], [x, y + side]]
    return {"label": name, "points": points, "shape_type": "polygon", **more}


# ---- LabelMe ----


def test_labelme(tmp_path):
    png = io.BytesIO()
    Image.fromarray(np.array([[True, False], [True, True]])).save(png, "PNG")
    packed = base64.b64encode(png.getvalue()).decode()
    shapes = [
        square("tree", 0, 0, 10),
        square("cat", 5, 5, 10),  # above
        {"label": "dog", "points": [[29, 5], [25, 1]], "shape_type": "rectangle"},
        {"label": "cat", "points": [[20, 15], [20, 17]], "shape_type": "circle"},
        {"label": "tree", "points": [[27, 17], [28, 18]], "shape_type": "mask", "mask": packed},
        {"label": "tree", "points": [[0, 0], [9, 19]], "shape_type": "line"},
    ]
    labelme(tmp_path / "in/sub/a.json", shapes)
    labelme(tmp_path / "in/b.json", [])
    assert main(["labelme", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert (tmp_path / "out/classes.txt").read_text() == "cat\ndog\ntree\n"
    assert (label(tmp_path / "out/labels/b.png") == NONE).all()
    found = label(tmp_path / "out/labels/sub/a.png")
    circle = (slice(13, 17), slice(18, 22))
    assert (found[circle] == 0).sum() == 12  # 2 pixels about the centre, without the corners of their square
    values = expected(
        *(20, 30),
        tree=(2, np.s_[:10, :10]),
        cat=(0, np.s_[5:15, 5:15]),
        dog=(1, np.s_[1:5, 25:29]),
        mask=(2, np.s_[17:19, 27:29]),
    )
    values[17, 28] = NONE
    values[circle] = found[circle]
    np.testing.assert_array_equal(found, values)


# ---- COCO ----


def coco(path: Path, shapes: list[dict], **more: object) -> None:
    content = {
        "images": [{"id": "x", "file_name": "sub/a.jpg", "height": 20, "width": 30}],
        "categories": [{"id": 7, "name": "tree"}, {"id": 3, "name": "cat"}],
        "annotations": shapes,
        **more,
    }
    path.write_text(json.dumps(content))


def test_coco(tmp_path):
    """Polygons, run lengths as numbers and as text; the smaller shape lies above whatever the order."""
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[2:4, 20:29] = 1
    packed = coco_mask.encode(mask)
    text = {"size": packed["size"], "counts": packed["counts"].decode()}
    runs = {"size": [20, 30], "counts": [0, 20, 580]}
    annotations = [
        {"image_id": "x", "category_id": 3, "segmentation": [[2, 2, 5, 2, 5, 5, 2, 5]], "iscrowd": 0},
        {"image_id": "x", "category_id": 7, "segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]]},
        {"image_id": "x", "category_id": 3, "segmentation": text},
        {"image_id": "x", "category_id": 7, "segmentation": runs, "iscrowd": 1},
    ]
    coco(tmp_path / "a.json", annotations)
    assert main(["coco", str(tmp_path / "a.json"), "--output", str(tmp_path / "out"), "--background", "floor"]) == 0
    assert (tmp_path / "out/classes.txt").read_text() == "cat\ntree\nfloor\n"
    values = np.full((20, 30), 2)
    values[:, :1] = 1
    values[:10, :10] = 1
    values[2:5, 2:5] = 0
    values[2:4, 20:29] = 0
    np.testing.assert_array_equal(label(tmp_path / "out/labels/sub/a.png"), values)


# ---- CVAT ----


IMAGES = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><name>not a class</name><labels><label><name>tree &amp; bush</name><attributes></attributes></label>
<label><name>cat</name></label></labels></task></meta>
<image id="0" name="sub/a.jpg" width="30" height="20">
  <polygon label="cat" points="2,2;5,2;5,5;2,5" z_order="1"></polygon>
  <polygon label="tree &amp; bush" points="0.00,0.00;10.00,0.00;10.00,10.00;0.00,10.00" z_order="0"/>
  <box label="cat" xtl="20" ytl="1" xbr="24" ybr="3" occluded="0"><attribute name="n">9</attribute></box>
  <box label="cat" xtl="20" ytl="10" xbr="24" ybr="12" rotation="90"/>
  <mask label="tree &amp; bush" rle="1, 3, 2" left="27" top="17" width="3" height="2"/>
  <ellipse label="cat" cx="5" cy="15" rx="3" ry="1"/>
  <polyline label="cat" points="0,0;9,9"/>
</image>
</annotations>
"""


def test_cvat_for_images(tmp_path):
    (tmp_path / "annotations.xml").write_text(IMAGES)
    assert main(["cvat-images", str(tmp_path), "--output", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert (tmp_path / "out/classes.txt").read_text() == "tree & bush\ncat\n"
    found = label(tmp_path / "out/labels/sub/a.png")
    ellipse = np.s_[13:17, 1:9]
    assert 6 <= (found[ellipse] == 1).sum() <= 12
    values = expected(*(20, 30), tree=(0, np.s_[:10, :10]), cat=(1, np.s_[2:5, 2:5]), box=(1, np.s_[1:3, 20:24]))
    values[9:13, 21:23] = 1  # the turned box
    values[17, 28:30] = values[18, 27] = 0
    values[ellipse] = found[ellipse]
    np.testing.assert_array_equal(found, values)


def write_masks(folder: Path) -> None:
    (folder / "SegmentationClass/sub").mkdir(parents=True)
    (folder / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:255,0,7::\ntree:0,0,9::\n"
    )
    pixels = np.array([[[0, 0, 0], [255, 0, 7]], [[0, 0, 9], [255, 0, 7]]], dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "SegmentationClass/sub/a.png")


def test_cvat_masks(tmp_path):
    write_masks(tmp_path / "in")
    assert main(["cvat-masks", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert (tmp_path / "out/classes.txt").read_text() == "cat\ntree\n"
    assert label(tmp_path / "out/labels/sub/a.png").tolist() == [[NONE, 0], [1, 0]]


def test_what_prediction_writes_for_cvat_comes_back(tmp_path):
    from format_examples import NO_CLASS, VOCABULARY, write

    found = write(tmp_path, "--format", "cvat", "coco")
    for tool, path in (("cvat-masks", "out/cvat"), ("coco", "out/coco/annotations.json")):
        done = convert(READERS[tool](tmp_path / path), tmp_path / tool)
        assert done.names == list(VOCABULARY.names) and done.written == 2
        for stem, result in zip(("a b", "inside/ü"), found, strict=True):
            values = np.where(result.labels == NO_CLASS, NONE, result.labels)
            np.testing.assert_array_equal(label(tmp_path / tool / f"labels/{stem}.png"), values)


# ---- the label images ----


def test_classes_in_an_order_of_ones_own(tmp_path, capsys):
    labelme(tmp_path / "in/a.json", [square("tree", 0, 0, 5), square("cat", 10, 10, 5), square("pole", 20, 0, 5)])
    (tmp_path / "order.txt").write_text("tree\ncat\nnever there\n")
    words = ["labelme", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--classes", str(tmp_path / "order.txt")]
    assert main(words) == 0
    assert "1 shapes are of other classes and are left out: 1 'pole'" in capsys.readouterr().out
    values = expected(*(20, 30), tree=(0, np.s_[:5, :5]), cat=(1, np.s_[10:15, 10:15]))
    np.testing.assert_array_equal(label(tmp_path / "out/labels/a.png"), values)


def test_finished_label_images_are_kept(tmp_path, capsys):
    labelme(tmp_path / "in/a.json", [square("cat", 0, 0, 5)])
    words = ["labelme", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--workers", "1"]
    main(words)
    before = (tmp_path / "out/labels/a.png").stat().st_mtime_ns
    labelme(tmp_path / "in/b.json", [square("cat", 0, 0, 5)])
    capsys.readouterr()
    main(words)
    assert "1 label images written, 1 were there" in capsys.readouterr().out
    assert (tmp_path / "out/labels/a.png").stat().st_mtime_ns == before
    labelme(tmp_path / "in/c.json", [square("ant", 0, 0, 5)])  # which would make "cat" the second class
    with pytest.raises(ValueError, match="label images of different classes do not mix"):
        main(words)
    assert not (tmp_path / "out/labels/c.png").exists()


def test_more_than_255_classes_take_16_bits(tmp_path):
    labelme(tmp_path / "in/a.json", [square(f"class {k:03}", k % 30, k // 30, 1) for k in range(300)])
    convert(READERS["labelme"](tmp_path / "in"), tmp_path / "out", workers=2)
    found = label(tmp_path / "out/labels/a.png")
    np.testing.assert_array_equal(found[:10].ravel(), np.arange(300))
    assert (found[10:] == 65535).all()


def test_a_data_set_of_them(tmp_path, capsys):
    labelme(tmp_path / "photos/a.json", [square("cat", 0, 0, 5), square("tree", 10, 5, 8)])
    Image.new("RGB", (30, 20)).save(tmp_path / "photos/a.jpg")
    main(["labelme", str(tmp_path / "photos"), "--output", str(tmp_path / "mine")])
    photos, mine = str(tmp_path / "photos"), str(tmp_path / "mine")
    (tmp_path / "mine.py").write_text(
        "from zeroshot_d2 import ClassSplit, register_sem_seg\n"
        f"names = open({mine!r} + '/classes.txt').read().split()\n"
        f"register_sem_seg('converted', ClassSplit(names), {photos!r}, {mine!r} + '/labels')\n"
    )
    words = ["check", "converted", "--import", str(tmp_path / "mine.py"), "--workers", "1"]
    try:
        assert program([*words, "--output", str(tmp_path / "check")]) == 0
    finally:
        from detectron2.data import DatasetCatalog, MetadataCatalog

        DatasetCatalog.remove("converted")
        MetadataCatalog.remove("converted")


# ---- what is refused, in one sentence that names the file ----


def refused(tmp_path: Path, tool: str, path: Path, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program(["convert", tool, str(path), "--output", str(tmp_path / "out"), "--workers", "1"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed and str(path.name) in printed and message in printed
    assert not list((tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (square("cat", 0, 0, float("nan")), "must be two numbers"),
        (square("cat", 0, 0, 10**9), "must lie in the image"),
        ({"label": "cat", "points": [[0, 0], [1, 1]], "shape_type": "polygon"}, "at least three points"),
        ({"label": "cat", "points": [[0, 0]], "shape_type": "circle"}, "with 1 points"),
        ({"label": "cat", "points": [[3, 3], [3, 3]], "shape_type": "circle"}, "radii above 0"),
        ({"label": "cat", "points": [[0, 0], [1, 1]], "shape_type": "blob"}, "'blob'"),
        ({"label": 3, "points": []}, "'label' must be str"),
        ({"points": []}, "without 'label'"),
        ("cat", "must be an object"),
        ({"label": "cat", "points": [[0, 0], [1, 1]], "shape_type": "mask", "mask": "%%"}, "no base64"),
        ({"label": "cat", "points": [[0, 0], [1, 1]], "shape_type": "mask", "mask": "aaaa"}, "cannot read the image"),
        ({"label": "cat", "points": [[0, 0], [99, 1]], "shape_type": "mask", "mask": "aaaa"}, "does not lie in the image"),
        ({"label": "a\nb", "points": [[0, 0], [1, 1]], "shape_type": "rectangle"}, "does not fit into a line"),
    ],
)
def test_faulty_labelme(tmp_path, shape, message, capsys):
    labelme(tmp_path / "in/a.json", [shape])
    if "a line" in message:
        pytest.raises(ValueError, main, ["labelme", str(tmp_path / "in"), "--output", str(tmp_path / "out")]).match(message)
    else:
        refused(tmp_path, "labelme", tmp_path / "in/a.json", message, capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imageHeight": None}, "'imageHeight' must be int"),
        ({"imageHeight": 10**7, "imageWidth": 10**7}, "at most"),
        ({"shapes": {}}, "'shapes' must be list"),
    ],
)
def test_faulty_labelme_files(tmp_path, change, message, capsys):
    labelme(tmp_path / "in/a.json", **{"shapes": [square("cat", 0, 0, 5)], **change})
    refused(tmp_path, "labelme", tmp_path / "in/a.json", message, capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": [{"id": "x", "file_name": "../../a.jpg", "height": 20, "width": 30}]},
            "outside of the data set",
        ),
        ({"images": [{"id": [1], "file_name": "a.jpg", "height": 20, "width": 30}]}, "must be a whole number or a text"),
        ({"images": [{"id": "x", "file_name": "a.jpg", "height": 0, "width": 30}]}, "must be from 1"),
        ({"images": [{"id": "x", "file_name": "a.jpg", "height": 20, "width": 30}] * 2}, "lists image 'x' twice"),
        ({"images": []}, "annotation of image 'x', which it does not list"),
        ({"categories": []}, "annotation of category 3, which it does not list"),
        ({"annotations": [{"image_id": "x", "category_id": 3, "segmentation": [[0, 0]]}]}, "at least three points"),
        ({"annotations": 5}, "no array ['annotations']"),
    ],
)
def test_faulty_coco(tmp_path, change, message, capsys):
    coco(tmp_path / "a.json", [{"image_id": "x", "category_id": 3, "segmentation": [[2, 2, 5, 2, 5, 5]]}], **change)
    refused(tmp_path, "coco", tmp_path / "a.json", message, capsys)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<annotations>", '<!DOCTYPE a [<!ENTITY b "c">]><annotations>', "declares a document type"),
        ("annotations>", "html>", "begins with <html>"),
        ("</annotations>", "", "is no XML or is cut off"),
        ('name="sub/a.jpg"', 'name="../a.jpg"', "outside of the data set"),
        ('name="sub/a.jpg"', "", "without 'name'"),
        ('height="20"', 'height="much"', "'height' must be numbers, got 'much'"),
        ("2,2;5,2;5,5;2,5", "2,2;nan,2;5,5;2,5", "'points' must be numbers, got 'nan'"),
        ('left="27"', 'left="28"', "leaves the image"),
        ("1, 3, 2", "1, 3, 99999999", "add up to"),
        ("<ellipse", "<spline", "has <spline> in an image"),
        ("<image ", '<track id="0"/><image ', 'is of the format "CVAT for video"'),
    ],
)
def test_faulty_cvat_for_images(tmp_path, old, new, message, capsys):
    assert old in IMAGES
    (tmp_path / "annotations.xml").write_text(IMAGES.replace(old, new))
    refused(tmp_path, "cvat-images", tmp_path / "annotations.xml", message, capsys)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("cat:255,0,7::\n", "1 colours are not in labelmap.txt, such as 0,0,9"),
        ("cat 255 0 7\n", "has the line 'cat 255 0 7'"),
        ("cat:255,0,700::\n", "has the line 'cat:255,0,700::'"),
        ("cat:255,0,7::\ntree:255,0,7::\n", "twice"),
        ("", "labelmap.txt is empty"),
    ],
)
def test_faulty_cvat_masks(tmp_path, lines, message, capsys):
    write_masks(tmp_path / "in")
    (tmp_path / "in/labelmap.txt").write_text(lines)
    assert program(["convert", "cvat-masks", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--workers", "1"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("tool", list(READERS))
def test_what_is_missing_is_named(tmp_path, tool, capsys):
    missing = tmp_path / "missing.json"
    assert program(["convert", tool, str(missing), "--output", str(tmp_path / "out"), "--workers", "1"]) == 2
    assert "missing.json" in capsys.readouterr().err


def test_two_images_with_one_label_image(tmp_path):
    more = '<image name="sub/A.png" width="3" height="2"/></annotations>'
    (tmp_path / "annotations.xml").write_text(IMAGES.replace("</annotations>", more))
    with pytest.raises(ValueError, match=r"1 images would have one label image, such as sub/a\.png"):
        main(["cvat-images", str(tmp_path), "--output", str(tmp_path / "out")])
