"""The mapper: squares, augmentation, sparse labels, and files that cannot be read."""

import pickle

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from zeroshot_d2 import ClassSplit
from zeroshot_d2.images import UnreadableImage, read_image
from zeroshot_d2.multilabel import mapper as mapper_module
from zeroshot_d2.multilabel.mapper import MultiLabelMapper
from zeroshot_d2.multilabel.registration import register_multilabel


@pytest.fixture
def record(tmp_path):
    pixels = np.zeros((40, 90, 3), dtype=np.uint8)
    pixels[:, :45, 0] = 250  # the left half is red
    Image.fromarray(pixels).save(tmp_path / "a.png")
    register_multilabel("mapper_test", ClassSplit(["cat", "dog"]), tmp_path, {"a.png": {"cat": 1, "dog": -1}})
    yield DatasetCatalog.get("mapper_test")[0]
    DatasetCatalog.remove("mapper_test")
    MetadataCatalog.remove("mapper_test")


def test_testing_squeezes_the_whole_image(epsilon_cfg, record):
    sample = MultiLabelMapper(epsilon_cfg(), is_train=False)(record)
    image = sample["image"]
    assert image.shape == (3, 64, 64) and image.dtype == torch.uint8
    assert image[0, :, :30].min() > 240 and image[0, :, 34:].max() < 10 and image[1:].max() == 0
    assert sample["positive_labels"].tolist() == [0] and sample["negative_labels"].tolist() == [1]
    assert "image" not in record


def test_training_crops_and_flips(epsilon_cfg, record):
    mapper = MultiLabelMapper(epsilon_cfg("INPUT.CROP_SCALE", (0.3, 0.5)), is_train=True)
    torch.manual_seed(0)
    images = [mapper(record)["image"] for _ in range(20)]
    assert all(image.shape == (3, 64, 64) for image in images)
    red_on_the_left = [bool(image[0, :, :5].float().mean() > image[0, :, -5:].float().mean()) for image in images]
    assert len(set(red_on_the_left)) == 2
    assert len({int(image[0].sum()) for image in images}) > 5
    torch.manual_seed(0)
    assert torch.equal(mapper(record)["image"], images[0])


def test_without_augmentation_training_sees_what_testing_sees(epsilon_cfg, record):
    cfg = epsilon_cfg("INPUT.RANDOM_FLIP", "none")
    train, test = (MultiLabelMapper(cfg, is_train=is_train)(record)["image"] for is_train in (True, False))
    assert torch.equal(train, test)


def photo(path, height, width, orientation=1):
    """A JPEG without detail, whose colours differ from corner to corner."""
    rows, columns = np.linspace(0, 255, height)[:, None], np.linspace(0, 255, width)[None]
    pixels = np.stack(np.broadcast_arrays(rows, columns, 255 - rows), axis=-1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, quality=95, exif=exif)
    return str(path)


def trained_on(mapper, record, monkeypatch, *, whole):
    """What training sees in some draws, and the sizes (H, W) that were read."""
    sizes = []

    def read(path, at_least=None, **rest):
        image = read_image(path, **rest) if whole else read_image(path, at_least=at_least, **rest)
        sizes.append(image.shape[:2])
        return image

    monkeypatch.setattr(mapper_module, "read_image", read)
    torch.manual_seed(3)
    return [mapper(record)["image"].float() for _ in range(12)], sizes


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("shares", [(0.7, 1.0), (0.05, 0.3)])
def test_training_decodes_a_large_jpeg_at_a_scale_that_the_crop_allows(
    epsilon_cfg, record, tmp_path, monkeypatch, shares, orientation
):
    mapper = MultiLabelMapper(epsilon_cfg("INPUT.CROP_SCALE", shares), is_train=True)
    record["file_name"] = photo(tmp_path / "a.jpg", 301, 403, orientation)
    whole, whole_sizes = trained_on(mapper, record, monkeypatch, whole=True)
    found, sizes = trained_on(mapper, record, monkeypatch, whole=False)
    assert len(set(whole_sizes)) == 1 and any(size < whole_sizes[0] for size in sizes)
    assert all(torch.equal(a, b) for a, b, size in zip(found, whole, sizes, strict=True) if size == whole_sizes[0])
    # A crop ends between pixels of the smaller image: its colours lie within two of those, apart from what JPEG loses.
    assert max(float((a - b).abs().max()) for a, b in zip(found, whole, strict=True)) <= 2 * 255 / min(min(sizes)) + 3


@pytest.mark.parametrize("size", [(301, 403), (64, 64), (129, 65), (30, 50), (1, 900), (1000, 128)])
def test_the_crop_of_a_reduced_image_is_no_smaller_than_the_square(epsilon_cfg, record, tmp_path, monkeypatch, size):
    mapper = MultiLabelMapper(epsilon_cfg("INPUT.CROP_SCALE", (0.05, 1.0)), is_train=True)
    record["file_name"] = photo(tmp_path / "a.jpg", *size)
    drawn, used = mapper.crop.make_params, mapper.crop.transform
    boxes = []
    monkeypatch.setattr(mapper.crop, "make_params", lambda inputs: boxes.append(drawn(inputs)) or boxes[-1])

    def transform(image, box):
        for side, start, axis in (("height", "top", 1), ("width", "left", 2)):
            assert box[side] >= min(64, boxes[-1][side])
            assert box[start] >= 0 and box[start] + box[side] <= max(image.shape[axis], boxes[-1][side])
        return used(image, box)

    monkeypatch.setattr(mapper.crop, "transform", transform)
    for _ in range(30):
        assert mapper(record)["image"].shape == (3, 64, 64)
    assert len(boxes) == 30


def test_testing_decodes_whole_images(epsilon_cfg, record, tmp_path, monkeypatch):
    record["file_name"] = photo(tmp_path / "a.jpg", 640, 640)
    mapper = MultiLabelMapper(epsilon_cfg(), is_train=False)
    assert trained_on(mapper, record, monkeypatch, whole=False)[1] == [(640, 640)] * 12


def test_bgr(epsilon_cfg, record):
    image = MultiLabelMapper(epsilon_cfg("INPUT.FORMAT", "BGR"), is_train=False)(record)["image"]
    assert image[2].max() > 240 and image[0].max() == 0


@pytest.mark.parametrize(("name", "error"), [("broken.png", UnreadableImage), ("absent.png", FileNotFoundError)])
def test_unreadable_images_are_named_or_skipped(epsilon_cfg, record, tmp_path, caplog, name, error):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    broken = {**record, "file_name": str(tmp_path / name)}
    with pytest.raises(error, match=rf"image .*{name}"):
        MultiLabelMapper(epsilon_cfg(), is_train=True)(broken)
    skipping = epsilon_cfg("INPUT.SKIP_UNREADABLE", True)
    assert MultiLabelMapper(skipping, is_train=True)(broken) is None and name in caplog.text
    with pytest.raises(error, match=rf"image .*{name}"):
        MultiLabelMapper(skipping, is_train=False)(broken)  # evaluation never skips


def test_too_large_images_are_refused(epsilon_cfg, record):
    assert MultiLabelMapper(epsilon_cfg("INPUT.MAX_PIXELS", 3600), is_train=False)(record) is not None
    with pytest.raises(UnreadableImage, match=r"a\.png has 90 x 40 pixels, more than 3,599"):
        MultiLabelMapper(epsilon_cfg("INPUT.MAX_PIXELS", 3599), is_train=False)(record)


@pytest.mark.parametrize("key", ["positive_labels", "negative_labels"])
def test_labels_outside_the_vocabulary(epsilon_cfg, record, key):
    with pytest.raises(ValueError, match=rf"a.png: {key} \[2\] are not all among the 2 classes of data set 'mapper_test'"):
        MultiLabelMapper(epsilon_cfg(), is_train=True)({**record, key: np.array([2])})


def test_training_needs_labels(epsilon_cfg, record):
    del record["positive_labels"]
    assert "image" in MultiLabelMapper(epsilon_cfg(), is_train=False)(record)
    with pytest.raises(ValueError, match='a.png has no "positive_labels"'):
        MultiLabelMapper(epsilon_cfg(), is_train=True)(record)


@pytest.mark.parametrize("shares", [(0.0, 1.0), (0.5, 1.5), (0.9, 0.5), (0.5,)])
def test_crop_scale_is_checked(epsilon_cfg, shares):
    cfg = epsilon_cfg()
    cfg.INPUT.CROP_SCALE = shares
    with pytest.raises(ValueError, match=r"INPUT\.CROP_SCALE must be"):
        MultiLabelMapper(cfg, is_train=True)


def test_workers_need_not_know_the_data_set(epsilon_cfg, record):
    mapper = MultiLabelMapper(epsilon_cfg("DATASETS.TRAIN", ("mapper_test",)), is_train=True)
    split = MetadataCatalog.get("mapper_test").class_split
    try:
        MetadataCatalog.remove("mapper_test")
        copied = pickle.loads(pickle.dumps(mapper))
        assert copied(record)["positive_labels"].tolist() == [0]
        with pytest.raises(ValueError, match="among the 2 classes"):
            copied({**record, "positive_labels": np.array([2])})
    finally:
        MetadataCatalog.get("mapper_test").set(class_split=split)
