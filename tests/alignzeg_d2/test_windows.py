"""AlignZeg on windows, several sizes and mirror images: the same as blending what it says of each by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparisons import assert_close, assert_same_labels

from alignzeg_d2.export import export
from alignzeg_d2.predictor import AlignZegPredictor, proposals_of
from zeroshot_d2.segmentation.looks import Looks
from zeroshot_d2.segmentation.mapper import SegmentationMapper

SLIDE = ("TEST.SLIDE.ENABLED", True, "TEST.SLIDE.WINDOW", 64, "TEST.SLIDE.STRIDE", 40)


@pytest.fixture(scope="module")
def model(demo_model):
    return demo_model()


@pytest.fixture
def look(model, monkeypatch):
    """Let the model look at images in another way."""
    return lambda **looks: monkeypatch.setattr(model, "looks", Looks(**looks))


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(0)
    small = 255 * torch.rand(1, 3, 7, 9, generator=generator)
    return F.interpolate(small, size=(112, 144), mode="bilinear")[0]


def scores_of(model, image, **size):
    (output,) = model.inference([{"image": image, **size}], output="scores", proposals=False)
    return output["sem_seg"]


def test_one_window_gives_what_the_whole_image_gives(model, look, image):
    whole = scores_of(model, image, height=70, width=90)
    look(window=144, stride=100)
    assert_close(scores_of(model, image, height=70, width=90), whole)


@pytest.mark.parametrize("output_size", [(112, 144), (224, 288)])
def test_windows_are_blended(model, look, image, output_size):
    look(window=64, stride=40)
    (of_image,) = model.looks.of_image((112, 144))
    assert len(of_image.places()) == 3 * 3
    blended = torch.zeros(len(model.default_vocabulary), *output_size)
    look()
    factor = output_size[0] // 112
    for place in of_image.places():
        down, across = place.down(output_size[0]), place.across(output_size[1])
        size = {"height": 64 * factor, "width": 64 * factor}
        rows = of_image.rows.weights(place.row, torch.arange(output_size[0]), output_size[0])[down]
        columns = of_image.columns.weights(place.column, torch.arange(output_size[1]), output_size[1])[across]
        blended[:, down, across] += scores_of(model, place.cut(image), **size) * (rows[:, None] * columns).float()
    look(window=64, stride=40)
    given = scores_of(model, image, height=output_size[0], width=output_size[1])
    assert_close(given, blended)
    (labelled,) = model.inference(
        [{"image": image, "height": output_size[0], "width": output_size[1]}], output="labels", proposals=False
    )
    assert_same_labels(labelled["sem_seg_labels"], given.argmax(0), given)
    assert labelled["sem_seg_confidence"].min() >= 0 and labelled["sem_seg_confidence"].max() <= 1


def test_no_seam_can_be_seen(model, look, image):
    """At the edges of windows scores change as little from pixel to pixel as anywhere else."""
    look(window=64, stride=40)
    scores = scores_of(model, image, height=4 * 112, width=4 * 144)
    steps = (scores[..., 1:] - scores[..., :-1]).abs().amax(dim=(0, 1))
    edges = [4 * edge - 1 for edge in (40, 64, 80, 104)]
    assert steps[edges].max() <= steps[[k for k in range(len(steps)) if k not in edges]].max()


def test_mirror_images_and_sizes_count_equally(model, look, image):
    sizes = [(84, 108), (112, 144)]
    expected = torch.zeros(len(model.default_vocabulary), 112, 144)
    for size in sizes:
        smaller = image
        if size != (112, 144):
            smaller = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]
        expected += scores_of(model, smaller, height=112, width=144) / 4
        expected += scores_of(model, smaller.flip(-1), height=112, width=144).flip(-1) / 4
    look(min_sizes=(84, 112), max_size=144, mirrored=True)
    # The image is normalised before it is made smaller here, and after it there.
    assert_close(scores_of(model, image, height=112, width=144), expected, 4e-3)


def test_a_batch_gives_what_its_images_give(model, look, image):
    look(window=64, stride=48)
    inputs = [{"image": image}, {"image": image[:, :64, :80]}, {"image": image, "vocabulary": ("cat", "tree", "sky")}]
    together = model.inference(inputs, output="scores", proposals=False)
    for alone, output in zip(inputs, together, strict=True):
        (expected,) = model.inference([alone], output="scores", proposals=False)
        assert_close(output["sem_seg"], expected["sem_seg"])
    assert together[2]["sem_seg"].shape[0] == 3


@pytest.mark.parametrize("window", [None, 64])
def test_rows_one_after_another_are_those_of_the_whole(model, look, image, window):
    look(window=window, stride=40)
    size = (150, 190)
    (expected,) = model.inference([{"image": image, "height": 150, "width": 190}], output="labels", proposals=False)
    scores = scores_of(model, image, height=150, width=190)
    (of_image,) = model.looks.of_image((112, 144))
    rows, labels, confidence = [], [], []
    read = []

    def window_of(place):
        read.append((place.row, place.column))
        return place.cut(image)

    for part, best in model.segment_rows(of_image, window_of, model.default_vocabulary, output_size=size):
        rows += range(part.start, part.stop)
        labels.append(best.labels)
        confidence.append(best.confidence)
    assert rows == list(range(150)) and read == [(place.row, place.column) for place in of_image.places()]
    assert_same_labels(torch.cat(labels), expected["sem_seg_labels"], scores)
    assert_close(torch.cat(confidence), expected["sem_seg_confidence"])


def test_keys_reach_model_mapper_and_predictor(demo_cfg, trained_cfg, tmp_path):
    aug = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (48, 96), "TEST.AUG.MAX_SIZE", 300)
    photo = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    predictor = AlignZegPredictor(trained_cfg(*SLIDE, *aug))
    assert predictor.model.looks == Looks(64, 40, (48, 96), 300, True)
    assert predictor.model_input(photo)["image"].shape == (3, 96, 192)
    (augmentation,) = SegmentationMapper(demo_cfg(*aug), False).augmentations.augs
    assert augmentation.get_transform(photo).apply_image(photo).shape == (96, 192, 3)
    found = predictor(photo, proposals=True)
    assert found.labels.shape == (100, 200) and found.proposals is None
    with pytest.raises(ValueError, match=r"seen once, as a whole: set TEST\.SLIDE\.ENABLED and TEST\.AUG\.ENABLED to False"):
        proposals_of(found)


def test_two_stage_and_san_see_windows_too(tmp_path):
    from detectron2.modeling import build_model

    from baselines_d2.san import SAN  # noqa: F401  (registers it)
    from zeroshot_d2.cli import load_config

    image = torch.randint(0, 256, (3, 96, 128), generator=torch.Generator().manual_seed(0))
    for name, system in (("simbaseline", "TWO_STAGE"), ("zegformer", "TWO_STAGE"), ("san", "SAN")):
        random = (f"MODEL.{system}.CLIP.PRETRAINED", "", f"MODEL.{system}.CLIP.TEMPLATES", "single")
        model = build_model(load_config(f"demo/baselines/{name}.yaml", [*random, *SLIDE])).eval()
        (output,) = model([{"image": image}])
        assert output["sem_seg"].shape[1:] == (96, 128) and output["sem_seg"].isfinite().all()
    with pytest.raises(ValueError, match=r"MODEL\.SAN\.TEST\.UPSAMPLING scores is for whole images: set it to once"):
        build_model(load_config("demo/baselines/san.yaml", [*random, *SLIDE, "MODEL.SAN.TEST.UPSAMPLING", "scores"]))


def test_a_system_that_looks_once_says_so():
    from zeroshot_d2.cli import load_config
    from zeroshot_d2.startup import check_datasets

    cfg = load_config("demo/baselines/zegclip.yaml", ["TEST.AUG.ENABLED", True])
    with pytest.raises(ValueError, match=r"TEST\.AUG\.ENABLED True: ZegCLIP sees each image once and at one size"):
        check_datasets(cfg)
    with pytest.raises(ValueError, match=r"there is no key TEST\.SLIDE\.ENABLED"):
        load_config("demo/baselines/zegclip.yaml", ["TEST.SLIDE.ENABLED", True])


def test_an_export_sees_images_once(trained_cfg, tmp_path):
    with pytest.raises(ValueError, match=r"an exported model sees each image once: set TEST\.SLIDE\.ENABLED"):
        export(AlignZegPredictor(trained_cfg(*SLIDE)), tmp_path / "model.pt2", file_format="torch_export")
