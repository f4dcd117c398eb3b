"""Dataset dicts to model inputs: augmentation of image and labels together, and files that cannot be read."""

import pickle
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image

from zeroshot_d2 import IGNORE_LABEL, ClassSplit, register_sem_seg
from zeroshot_d2.images import UnreadableImage
from zeroshot_d2.segmentation.mapper import SegmentationMapper, _from_planes, _to_planes

NAME = "test_mapper_dataset"
H, W = 24, 32


@pytest.fixture
def record(tmp_path):
    """An image whose red channel shows the label value of each pixel (times 50); label 3 is ignored, 1 is unseen."""
    rows = np.repeat(np.array([[0, 1], [2, 3]], dtype=np.uint8), H // 2, axis=0).repeat(W // 2, axis=1)
    Image.fromarray(np.stack([rows * 50, rows * 0 + 7, rows * 0 + 200], axis=-1)).save(tmp_path / "a.png")
    Image.fromarray(rows).save(tmp_path / "a_label.png")
    load = lambda: [  # noqa: E731
        {"file_name": str(tmp_path / "a.png"), "sem_seg_file_name": str(tmp_path / "a_label.png"), "image_id": 0}
    ]
    split = ClassSplit(["cat", "dog", "cow"], unseen=["dog"])
    register_sem_seg(NAME, split, load=load, vocabulary="seen", ignore_values=(3,))
    yield {**DatasetCatalog.get(NAME)[0], "dataset_name": NAME}
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def mapper(demo_cfg):
    def build(is_train=True, *options):
        return SegmentationMapper(demo_cfg("INPUT.MIN_SIZE_TRAIN", (H,), "INPUT.MIN_SIZE_TEST", H, *options), is_train)

    return build


def test_labels_are_in_the_vocabulary_and_unseen_pixels_ignored(record, mapper):
    out = mapper(True, "INPUT.RANDOM_FLIP", "none")(record)
    assert out["image"].dtype == torch.uint8 and out["image"].shape == (3, H, W)
    assert out["image"][:, 0, 0].tolist() == [0, 7, 200]  # RGB
    assert out["sem_seg"].dtype == torch.int64 and out["sem_seg"].shape == (H, W)
    assert out["sem_seg"][0, 0] == 0 and out["sem_seg"][-1, 0] == 1  # cat, cow
    assert (out["sem_seg"][:, W // 2 :] == IGNORE_LABEL).all()
    assert (out["height"], out["width"]) == (H, W)
    assert "image" not in record and "sem_seg" not in record


def test_bgr_when_the_config_says_so(record, mapper):
    assert mapper(False, "INPUT.FORMAT", "BGR")(record)["image"][:, 0, 0].tolist() == [200, 7, 0]


def test_testing_needs_no_labels(record, mapper):
    out = mapper(False)({"file_name": record["file_name"]})
    assert "sem_seg" not in out and (out["height"], out["width"]) == (H, W)
    enlarged = mapper(False, "INPUT.MIN_SIZE_TEST", 48)(record)
    assert enlarged["image"].shape == (3, 48, 64) and (enlarged["height"], enlarged["width"]) == (H, W)


def test_image_and_labels_are_augmented_together(record, mapper):
    flipping = mapper(True, "INPUT.MIN_SIZE_TRAIN", (36,))
    np.random.seed(0)  # noqa: NPY002 (the generator of Detectron2's augmentations)
    flipped = set()
    for _ in range(20):
        out = flipping(record)
        assert out["sem_seg"].shape == out["image"].shape[1:] == (36, 48)
        value = (out["image"][0].float() / 50).round().long()
        inner = (value - out["image"][0].float() / 50).abs() < 0.02  # borders are blends
        vocabulary = torch.tensor([0, IGNORE_LABEL, 1, IGNORE_LABEL])[value]
        wrong = (vocabulary != out["sem_seg"]) & inner
        assert wrong.float().mean() < 0.03
        assert set(out["sem_seg"].unique().tolist()) == {0, 1, IGNORE_LABEL}  # nearest neighbour makes no new labels
        flipped.add(out["sem_seg"][0, 0].item())
    assert flipped == {0, IGNORE_LABEL}


def test_small_images_are_padded_with_ignored_pixels_and_large_ones_cropped(record, mapper):
    crop = ("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.RANDOM_FLIP", "none")
    padded = mapper(True, *crop, "INPUT.CROP.SIZE", [40, 40])(record)
    assert padded["image"].shape == (3, 40, 40) and (padded["image"][:, H:] == 128).all()
    assert (padded["sem_seg"][H:] == IGNORE_LABEL).all() and (padded["sem_seg"][:, W:] == IGNORE_LABEL).all()
    assert (padded["sem_seg"][:H, : W // 2] != IGNORE_LABEL).all()
    cropped = mapper(True, *crop, "INPUT.CROP.SIZE", [10, 12])(record)
    assert cropped["image"].shape == (3, 10, 12) and cropped["sem_seg"].shape == (10, 12)


def test_colour_augmentation_changes_the_image_only(record, mapper):
    np.random.seed(0)  # noqa: NPY002 (the generator of Detectron2's augmentations)
    plain = mapper(True, "INPUT.RANDOM_FLIP", "none")(record)
    colourful = mapper(True, "INPUT.RANDOM_FLIP", "none", "INPUT.COLOR_AUG_SSD", True)
    outs = [colourful(record) for _ in range(10)]
    assert any(not torch.equal(out["image"], plain["image"]) for out in outs)
    assert all(torch.equal(out["sem_seg"], plain["sem_seg"]) for out in outs)


def truncate(path, keep=0.6):
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: int(len(data) * keep)])


def break_chunk(path):
    """Split the PNG's pixel data and put rubbish between the halves: it opens, and fails while the pixels are read."""
    data = Path(path).read_bytes()
    start = data.index(b"IDAT") - 4
    length = int.from_bytes(data[start : start + 4], "big")
    pixels = data[start + 8 : start + 8 + length]
    first = b"IDAT" + pixels[: length // 2]
    first = (length // 2).to_bytes(4, "big") + first + zlib.crc32(first).to_bytes(4, "big")
    Path(path).write_bytes(data[:start] + first + b"\0\0\0\4\0\0\0\0rubbish!" + data[start + 12 + length :])


def overwrite(path):
    Path(path).write_bytes(b"not an image")


@pytest.mark.parametrize("key", ["file_name", "sem_seg_file_name"])
@pytest.mark.parametrize("damage", [truncate, break_chunk, overwrite])
def test_broken_files_are_named_or_skipped(record, mapper, key, damage):
    damage(record[key])
    with pytest.raises(UnreadableImage, match=re.escape(record[key])):
        mapper()(record)
    assert mapper(True, "INPUT.SKIP_UNREADABLE", True)(record) is None


@pytest.mark.parametrize("key", ["file_name", "sem_seg_file_name"])
def test_missing_files_are_named_or_skipped(record, mapper, key):
    record[key] = "/nowhere/b.png"
    with pytest.raises(FileNotFoundError, match="/nowhere/b.png"):
        mapper()(record)
    assert mapper(True, "INPUT.SKIP_UNREADABLE", True)(record) is None


def test_evaluation_never_skips(record, mapper):
    truncate(record["file_name"])
    with pytest.raises(UnreadableImage, match=re.escape(record["file_name"])):
        mapper(False, "INPUT.SKIP_UNREADABLE", True)(record)


@pytest.mark.parametrize("is_train", [False, True])
def test_too_large_files_are_refused(record, mapper, is_train):
    assert mapper(is_train, "INPUT.MAX_PIXELS", H * W)(record) is not None
    with pytest.raises(UnreadableImage, match=r"a\.png has 32 x 24 pixels, more than 767: .*INPUT\.MAX_PIXELS"):
        mapper(is_train, "INPUT.MAX_PIXELS", H * W - 1)(record)
    assert mapper(True, "INPUT.MAX_PIXELS", H * W - 1, "INPUT.SKIP_UNREADABLE", True)(record) is None


def test_a_photo_and_its_labels_are_turned_upright_together(record, mapper, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(record["file_name"]) as image:
        image.save(tmp_path / "turned.png", exif=exif)
    out = mapper(True, "INPUT.RANDOM_FLIP", "none")({**record, "file_name": str(tmp_path / "turned.png")})
    assert out["image"].shape == (3, W, H) and out["sem_seg"].shape == (W, H) and (out["height"], out["width"]) == (W, H)
    value = torch.tensor([0, IGNORE_LABEL, 1, IGNORE_LABEL])[(out["image"][0].float() / 50).round().long()]
    assert torch.equal(value, out["sem_seg"]) and value[0, 0] == 1  # the lower left corner comes to the upper left


def test_workers_need_not_know_the_data_set(record, mapper):
    """A mapper for training brings the tables of its data sets, as to a worker that was started anew."""
    training = mapper(True, "DATASETS.TRAIN", (NAME,), "INPUT.RANDOM_FLIP", "none")
    expected = training(record)["sem_seg"]
    split = MetadataCatalog.get(NAME).class_split
    try:
        MetadataCatalog.remove(NAME)
        assert torch.equal(pickle.loads(pickle.dumps(training))(record)["sem_seg"], expected)
    finally:
        MetadataCatalog.get(NAME).set(class_split=split)


@pytest.mark.parametrize("skip", [False, True])
def test_a_label_value_outside_the_table_is_an_error_even_when_skipping(record, mapper, skip):
    Image.fromarray(np.full((H, W), 77, dtype=np.uint8)).save(record["sem_seg_file_name"])
    with pytest.raises(ValueError, match=r"a_label\.png: label value\(s\) 77"):
        mapper(True, "INPUT.SKIP_UNREADABLE", skip)(record)


def test_labels_of_another_size_are_refused(record, mapper):
    Image.fromarray(np.zeros((H, W + 1), dtype=np.uint8)).save(record["sem_seg_file_name"])
    with pytest.raises(ValueError, match="is 32x24 pixels, but its labels .* are 33x24"):
        mapper()(record)


def test_labels_are_resized_about_pixel_centres_whatever_their_value() -> None:
    label = np.random.default_rng(0).integers(0, 65536, size=(24, 32)).astype(np.uint16)
    assert np.array_equal(_from_planes(_to_planes(label)), label)
    resized = _from_planes(T.ResizeTransform(24, 32, 35, 47).apply_segmentation(_to_planes(label)))
    small = (label % 251).astype(np.uint8)
    assert np.array_equal(resized % 251, np.asarray(Image.fromarray(small).resize((47, 35), Image.Resampling.NEAREST)))
