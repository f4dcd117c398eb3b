"""NUS-WIDE, from a tiny release in its official format."""

import logging
from pathlib import Path

import pytest
import tiny_releases
from detectron2.data import DatasetCatalog, MetadataCatalog

from zeroshot_d2.datasets.builtin import load_class_list
from zeroshot_d2.datasets.preparation.nus_wide import convert, find


def parse_names(dataset: str, index: int) -> list[str]:
    split = MetadataCatalog.get(dataset).class_split
    return [split.names[k] for k in DatasetCatalog.get(dataset)[index]["positive_labels"]]


def test_training_and_test_labels(root, capsys, caplog):
    nus = tiny_releases.nus_wide_files(root)
    with pytest.raises(FileNotFoundError, match=r"nus_wide_train\.npz.*datasets prepare nus_wide`"):
        DatasetCatalog.get("nus_wide_train")
    convert(nus)
    printed = capsys.readouterr().out
    assert "925 seen + 81 unseen classes; 75 tags are concepts" in printed
    assert "test: 1 of 2 images are missing" in printed
    split = load_class_list("nus_wide").split
    with caplog.at_level(logging.WARNING):
        train, test = DatasetCatalog.get("nus_wide_train"), DatasetCatalog.get("nus_wide_test")
    assert "found 2 images, the whole release has 161789" in caplog.text
    assert [record["image_id"] for record in train] == ["actor/0001_1.jpg", "actor/0003_3.jpg"]
    assert all(Path(record["file_name"]).is_file() for record in train)
    assert [record["image_id"] for record in test] == ["zoo/0002_2.jpg"]
    assert parse_names("nus_wide_train", 0) == [split.seen[0]]  # neither the concept nor the tag that is one
    assert parse_names("nus_wide_train", 1) == [split.seen[924]]
    assert parse_names("nus_wide_test", 0) == [split.seen[3], "zebra"]
    assert parse_names("nus_wide_81_train", 0) == ["airport"] and parse_names("nus_wide_81_test", 0) == ["zebra"]
    assert MetadataCatalog.get("nus_wide_81_test").class_split.unseen == ()


@pytest.mark.parametrize(
    ("name", "added", "message"),
    [
        (
            "Imagelist.txt",
            "zoo\\0002_2.jpg",
            r"Imagelist\.txt: 1 of its entries occur more than once, such as zoo/0002_2\.jpg",
        ),
        ("TrainImagelist.txt", "actor/0001_1.jpg", r"TrainImagelist\.txt: 1 of its entries occur .* actor/0001_1\.jpg"),
        (
            "TestImagelist.txt",
            "actor\\0003_3.jpg",
            r"1 images of TrainImagelist.txt are in TestImagelist.txt .* actor/0003_3\.jpg",
        ),
    ],
)
def test_an_image_twice_is_named(name, added, message, root):
    nus = tiny_releases.nus_wide_files(root)
    file = find(nus, name)
    file.write_text(file.read_text().rstrip() + f"\n{added}\n")
    with pytest.raises(ValueError, match=message):
        convert(nus)


def test_downloads_that_are_wrong(root):
    nus = tiny_releases.nus_wide_files(root)
    tags = nus / "NUS_WID_Tags/AllTags1k.txt"
    whole = tags.read_text()
    tags.write_text("\n".join(whole.splitlines()[:3]))
    with pytest.raises(ValueError, match="has 3 lines for the 4 images"):
        convert(nus)
    tags.write_text(whole.replace("1\t", "", 1))
    with pytest.raises(ValueError, match="line 1: 999 values for 1000 tags"):
        convert(nus)
    tags.write_text(whole.replace("1\t", "2\t", 1))
    with pytest.raises(ValueError, match="expected only 0 and 1, found b'2'"):
        convert(nus)
    tags.write_text(whole)
    (nus / "Groundtruth/AllLabels/Labels_cat.txt").write_text("0\n")
    with pytest.raises(ValueError, match=r"Labels_cat\.txt has 1 labels for the 4 images"):
        convert(nus)
    (nus / "Groundtruth/AllLabels/Labels_cat.txt").unlink()
    with pytest.raises(FileNotFoundError, match="concept 'cat' are missing"):
        convert(nus)
    (nus / "Groundtruth/AllLabels/Labels_cat.txt").write_text("0\n0\n0\n0\n")
    (nus / "ImageList/TrainImagelist.txt").write_text("elsewhere\\1.jpg\n")
    with pytest.raises(ValueError, match="1 images of TrainImagelist.txt are not in Imagelist.txt"):
        convert(nus)
    (nus / "copy").mkdir()
    (nus / "copy/TagList1k.txt").write_bytes((nus / "TagList1k.txt").read_bytes())
    assert find(nus, "TagList1k.txt").is_file()  # a second copy does no harm
    (nus / "copy/Imagelist.txt").write_text("")
    with pytest.raises(FileNotFoundError, match="more than once"):
        convert(nus)
    with pytest.raises(FileNotFoundError, match=r"Imagelist\.txt not found"):
        convert(root / "elsewhere")
    assert not list(nus.glob("*.npz"))


def test_without_images(root):
    nus = tiny_releases.nus_wide_files(root)
    (nus / "Flickr").rename(nus / "photos")
    with pytest.raises(FileNotFoundError, match="looked for the folder .*Flickr"):
        convert(nus)
    convert(nus, check_images=False)
    assert len(DatasetCatalog.get("nus_wide_test")) == 2
