"""The mapper: squares, augmentation, sparse labels, and files that cannot be read."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from zeroshot_d2 import ClassSplit
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
    mapper = MultiLabelMapper(epsilon_cfg("MODEL.EPSILON.CROP_SCALE", (0.3, 0.5)), is_train=True)
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


def test_bgr(epsilon_cfg, record):
    image = MultiLabelMapper(epsilon_cfg("INPUT.FORMAT", "BGR"), is_train=False)(record)["image"]
    assert image[2].max() > 240 and image[0].max() == 0


def test_unreadable_images_are_named_or_skipped(epsilon_cfg, record, tmp_path, caplog):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    for name, skip in (("broken.png", False), ("absent.png", False), ("broken.png", True), ("absent.png", True)):
        cfg = epsilon_cfg("INPUT.SKIP_UNREADABLE", skip)
        broken = {**record, "file_name": str(tmp_path / name)}
        if skip:
            assert MultiLabelMapper(cfg, is_train=True)(broken) is None
            assert name in caplog.text
        else:
            with pytest.raises(OSError, match=f"cannot read the image .*{name}"):
                MultiLabelMapper(cfg, is_train=True)(broken)
        with pytest.raises(OSError, match="cannot read the image"):
            MultiLabelMapper(cfg, is_train=False)(broken)  # evaluation never skips


@pytest.mark.parametrize("key", ["positive_labels", "negative_labels"])
def test_labels_outside_the_vocabulary(epsilon_cfg, record, key):
    with pytest.raises(ValueError, match=rf"a.png: {key} \[2\] are not all among the 2 classes of data set 'mapper_test'"):
        MultiLabelMapper(epsilon_cfg(), is_train=True)({**record, key: np.array([2])})


def test_training_needs_labels(epsilon_cfg, record):
    del record["positive_labels"]
    assert "image" in MultiLabelMapper(epsilon_cfg(), is_train=False)(record)
    with pytest.raises(ValueError, match='a.png has no "positive_labels"'):
        MultiLabelMapper(epsilon_cfg(), is_train=True)(record)


def test_crop_scale_is_checked(epsilon_cfg):
    with pytest.raises(ValueError, match="CROP_SCALE must be shares"):
        MultiLabelMapper(epsilon_cfg("MODEL.EPSILON.CROP_SCALE", (0.0, 1.0)), is_train=True)
