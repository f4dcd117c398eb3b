"""Lookup tables from label values to a vocabulary, and label images read through them."""

import numpy as np
import pytest
from PIL import Image

from zeroshot_d2 import IGNORE_LABEL, ClassSplit, label_table, read_label
from zeroshot_d2.images import UnreadableImage
from zeroshot_d2.pictures.colors import class_colors

SPLIT = ClassSplit(["cat", "dog", "cow"], unseen=["dog"])


@pytest.mark.parametrize(
    ("vocabulary", "expected"),
    [
        ("all", [0, 1, 2, IGNORE_LABEL]),
        ("seen", [0, IGNORE_LABEL, 1, IGNORE_LABEL]),
        ("unseen", [IGNORE_LABEL, 0, IGNORE_LABEL, IGNORE_LABEL]),
    ],
)
def test_vocabularies_share_one_label_image(vocabulary, expected):
    mapped = label_table(SPLIT, vocabulary, [10, 300, 7]).apply(np.array([[10, 300, 7, 255]], dtype=np.int32))
    assert mapped.dtype == np.uint16
    np.testing.assert_array_equal(mapped, [expected])


def test_several_values_of_one_class_and_default_values():
    table = label_table(SPLIT, label_values={1: "cat", 2: "cat", 3: "dog", 4: "cow"}, ignore_values=(0,))
    np.testing.assert_array_equal(table.apply(np.array([[0, 1, 2, 3, 4]])), [[IGNORE_LABEL, 0, 0, 1, 2]])
    np.testing.assert_array_equal(label_table(SPLIT).apply(np.array([[2, 65535]])), [[2, IGNORE_LABEL]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_values": [1, 2]}, "2 label values for 3 classes"),
        ({"label_values": [1, 2, 2]}, r"\[2\] stand for more than one"),
        ({"label_values": [1, 2, 255]}, "both class 'cow' and an ignore value"),
        ({"label_values": [1, 2, -3]}, "-3 of class 'cow'"),
        ({"label_values": [1, 2, 65536]}, "65536"),
        ({"label_values": {1: "cat", 2: "dog"}}, r"no label value stands for class\(es\) \['cow'\]"),
        ({"label_values": {1: "cat", 2: "dog", 3: "cow", 4: "bat"}}, "'bat', which is not a class"),
        ({"ignore_values": [70000]}, "70000"),
        ({"vocabulary": "both"}, "'both'"),
    ],
)
def test_bad_tables_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        label_table(SPLIT, **arguments)


def test_an_unknown_value_is_named_with_its_file(tmp_path):
    Image.fromarray(np.array([[0, 7, 9]], dtype=np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.png: label value\(s\) 7, 9 .*classes: 0-2; ignored: 255"):
        read_label(tmp_path / "x.png", label_table(SPLIT))
    with pytest.raises(ValueError, match="16 bits"):
        label_table(SPLIT).apply(np.array([[-1]]))
    with pytest.raises(ValueError, match="float"):
        label_table(SPLIT).apply(np.zeros((2, 2)))


def test_file_formats(tmp_path):
    values = np.array([[0, 1, 2], [2, 2, 255]])
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "grey.png")
    palette = Image.fromarray(values.astype(np.uint8), mode=None).convert("L")
    palette = Image.frombytes("P", palette.size, palette.tobytes())
    palette.putpalette([v for color in class_colors(256) for v in color])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "grey16.png")
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "grey16.tif")
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "grey32.tif")
    for file in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(
            read_label(file, label_table(SPLIT)), [[0, 1, 2], [2, 2, IGNORE_LABEL]], err_msg=str(file)
        )
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_label(tmp_path / "bits.png", label_table(SPLIT)), [[1, 0]])


def test_bad_files_are_named(tmp_path):
    table = label_table(SPLIT)
    with pytest.raises(FileNotFoundError, match="gone.png"):
        read_label(tmp_path / "gone.png", table)
    Image.fromarray(np.random.default_rng(0).integers(0, 3, (64, 64)).astype(np.uint8)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableImage, match=r"cannot read the label image .*cut\.png: "):
        read_label(tmp_path / "cut.png", table)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(UnreadableImage, match=r"cannot read the label image .*text\.png: "):
        read_label(tmp_path / "text.png", table)
    Image.fromarray(np.zeros((2, 2, 3), dtype=np.uint8)).save(tmp_path / "rgb.png")
    with pytest.raises(UnreadableImage, match=r"rgb\.png has 3 channels"):
        read_label(tmp_path / "rgb.png", table)


def test_labels_lie_as_their_photo_does(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by a quarter, clockwise
    Image.new("RGB", (3, 2)).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(np.array([[0, 1, 2], [2, 2, 255]], dtype=np.uint8)).save(tmp_path / "a.png")
    found = read_label(tmp_path / "a.png", label_table(SPLIT), photo=tmp_path / "a.jpg")
    np.testing.assert_array_equal(found, [[2, 0], [2, 1], [IGNORE_LABEL, 2]])


def test_too_large_a_label_image_is_refused(tmp_path):
    Image.new("L", (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match=r"label image .*a\.png has 3 x 2 pixels, more than 5"):
        read_label(tmp_path / "a.png", label_table(SPLIT), max_pixels=5)
