"""Open Images V4, from a tiny release in its official format."""

from pathlib import Path

import pytest
import tiny_releases
from detectron2.data import DatasetCatalog, MetadataCatalog

from zeroshot_d2.datasets.preparation.open_images_v4 import convert, main


def test_present_and_absent_labels(root, capsys):
    folder = tiny_releases.open_images_files(root)
    convert(folder, "test", expected_rows=9)
    printed = capsys.readouterr().out
    assert "5 labels, the whole release has 9" in printed and "1 of them of classes outside the 7586" in printed
    assert "1 of 3 images are missing" in printed
    split = MetadataCatalog.get("open_images_v4_test").class_split
    first, second = DatasetCatalog.get("open_images_v4_test")
    assert first["image_id"] == "000026e7ee790996.jpg" and Path(first["file_name"]).is_file()
    assert [split.names[k] for k in first["positive_labels"]] == [split.unseen[0]]
    assert first["negative_labels"].tolist() == [0] and second["positive_labels"].tolist() == [0]
    assert MetadataCatalog.get("open_images_v4_test").labels_complete is False


@pytest.mark.parametrize("stray", ["thumbnail_000001", "0x000026e7ee7909", "copy (1)", "000026E7EE790996"])
def test_a_stray_file_among_the_images_is_passed_over_and_said(stray, root, capsys):
    folder = tiny_releases.open_images_files(root)
    (folder / "test" / f"{stray}.jpg").write_bytes(b"")
    convert(folder, "test")
    assert f"1 files in {folder / 'test'} are no images of the release, such as {stray}.jpg" in capsys.readouterr().out
    assert len(DatasetCatalog.get("open_images_v4_test")) == 2


def test_downloads_that_are_wrong(root):
    with pytest.raises(FileNotFoundError, match="looked for .*imagelabels.csv and .*imagelabels.csv"):
        convert(root / "open_images_v4", "test")
    folder = tiny_releases.open_images_files(root)
    file = folder / "test-annotations-human-imagelabels.csv"
    whole = file.read_text()
    for text, message in (
        (whole.replace("ImageID", "image"), "the first line should be ImageID"),
        (whole.replace("00000000000000aa", "aa"), "line 6: .*16 hexadecimal digits"),
        (whole.rsplit(",", 1)[0], "line 6: cannot understand"),
        (whole.replace(",0\n", ",0.7\n").replace(",0\r\n", ",0.7\r\n"), "line 4: .*'0.7'"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            convert(folder, "test")
    file.write_text(whole)
    for image in (folder / "test").iterdir():
        image.unlink()
    with pytest.raises(FileNotFoundError, match="none of the 3 images"):
        convert(folder, "test")
    (folder / "test").rmdir()
    with pytest.raises(FileNotFoundError, match="--no-image-check"):
        convert(folder, "test")
    convert(folder, "test", check_images=False)
    assert len(DatasetCatalog.get("open_images_v4_test")) == 3


def test_a_part_that_is_there_is_left_as_it_is(root, capsys):
    folder = tiny_releases.open_images_files(root)
    words = ["--root", str(root), "--parts", "test"]
    main(words)
    assert "WARNING test: 5 labels, the whole release has 1667399" in capsys.readouterr().out
    (folder / "test-annotations-human-imagelabels.csv").unlink()
    main(words)
    assert capsys.readouterr().out == "test: is there already\n"
