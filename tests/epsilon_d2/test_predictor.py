"""Labels of one's own images from the command line, and the pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from PIL import Image

from epsilon_d2.pictures.attention import attention_figure, labels_of_groups
from zeroshot_d2 import ClassSplit
from zeroshot_d2.commands.check import main
from zeroshot_d2.demo_world import SPLIT, render
from zeroshot_d2.multilabel.pictures import LabelledImage, top_labels_figure
from zeroshot_d2.multilabel.predictor import best_labels
from zeroshot_d2.predictor import Predictor
from zeroshot_d2.vocabulary import read_names


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(render(3, 0, num_objects=(3, 5)).image).resize((90, 60)).save(path)
    return path


@pytest.fixture(scope="module")
def weights(epsilon_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    DetectionCheckpointer(epsilon_model(), str(folder)).save("model")
    return str(folder / "model.pth")


@pytest.fixture
def options(weights):
    labels = "MODEL.EPSILON.LABEL_EMBEDDINGS"
    random = ["MODEL.EPSILON.BACKBONE.PRETRAINED", "", f"{labels}.CLIP_PRETRAINED", "", f"{labels}.TEMPLATES", "single"]
    return ["--weights", weights, "--opts", *random]


def test_prints_the_best_labels_with_unseen_ones_marked(photo, options, capsys):
    main([str(photo), "--top-k", "38", *options])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == str(photo) and len(lines) == 38
    scores = [float(line.split()[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    names = {line.split(maxsplit=1)[1] for line in lines}
    assert names == {f"{name} *" if name in SPLIT.unseen else name for name in SPLIT.names}


def test_labels_of_ones_own_a_threshold_and_pictures(photo, options, capsys, tmp_path):
    labels = tmp_path / "names.txt"
    labels.write_text("# mine\nzebra|striped horse\n\nplain red tile\n", encoding="utf-8")
    main([str(photo), "--labels", str(labels), "--output", str(tmp_path / "pictures"), *options])
    lines = capsys.readouterr().out.splitlines()
    assert {line.split(maxsplit=1)[1] for line in lines[1:3]} == {"zebra *", "plain red tile"}
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert pictures == ["labels.png", "photo_global_attention.png", "photo_group_attention.png"]
    assert all(Image.open(tmp_path / "pictures" / name).width > 200 for name in pictures)
    best = float(lines[1].split()[0])
    main([str(photo), "--labels", str(labels), "--threshold", str(best - 1e-3), *options])
    assert capsys.readouterr().out.splitlines() == lines[:2]


def test_predictor_gives_what_the_model_gives(epsilon_cfg, epsilon_model, weights):
    image = render(3, 1, num_objects=(3, 5)).image
    predictor = Predictor(epsilon_cfg("MODEL.WEIGHTS", weights))
    assert predictor.vocabulary == SPLIT
    with torch.no_grad():
        (expected,) = epsilon_model()([{"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}])
    torch.testing.assert_close(predictor(image)["scores"], expected["scores"])


def test_what_can_be_missing(epsilon_cfg, photo, options, tmp_path):
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        Predictor(epsilon_cfg())
    with pytest.raises(FileNotFoundError, match="weights nowhere.pth do not exist"):
        main([str(photo), "--weights", "nowhere.pth"])
    with pytest.raises(FileNotFoundError, match="image absent.jpg does not exist"):
        main(["absent.jpg", *options])
    (tmp_path / "broken.jpg").write_text("no image")
    with pytest.raises(OSError, match="cannot read the image .*broken.jpg"):
        main([str(tmp_path / "broken.jpg"), *options])
    with pytest.raises(FileNotFoundError, match="label file absent.txt does not exist"):
        read_names(Path("absent.txt"))
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match="holds no name"):
        read_names(tmp_path / "empty.txt")
    with pytest.raises(ValueError, match="between 1 and the 38 classes of the vocabulary, got 39"):
        main([str(photo), "--top-k", "39", *options])


# ---------------------------------------------------------------------------------------------------- pictures
def test_best_labels():
    scores = np.array([1.0, 3.0, 2.0, 3.0])
    assert best_labels(scores, 3) == [1, 3, 2]
    assert best_labels(scores, 4, threshold=2.0) == [1, 3, 2]
    assert best_labels(scores, 2, threshold=9.0) == []


def test_unseen_labels_are_starred_and_right_ones_bold():
    split = ClassSplit(["cat", "dog", "cow"], unseen=["dog"])
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    scores = np.array([0.1, 0.9, 0.5])
    figure = top_labels_figure([LabelledImage(image, scores, present=[1]), LabelledImage(image, scores)], split, top_k=2)
    figure.draw_without_rendering()
    texts = [text for axes in figure.axes for text in axes.texts]
    names = [(text.get_text(), text.get_fontweight()) for text in texts[::2]]
    assert names == [("dog *", "bold"), ("cow", "normal"), ("dog *", "normal"), ("cow", "normal")]
    assert [text.get_text() for text in texts[1::2]] == ["0.90", "0.50"] * 2
    with pytest.raises(ValueError, match="no image"):
        top_labels_figure([], split)


def test_attention_figure_has_a_panel_per_group_over_the_whole_image():
    attention = np.random.default_rng(0).random((8, 4, 4))
    figure = attention_figure(np.zeros((20, 30, 3), dtype=np.uint8), attention, title="a photo")
    overlays = [axes.get_images()[1] for axes in figure.axes if len(axes.get_images()) == 2]
    assert len(overlays) == 8
    for group, overlay in zip(attention, overlays, strict=True):
        np.testing.assert_array_equal(overlay.get_array(), group)
        assert list(overlay.get_extent()) == [0, 30, 20, 0]


def test_a_group_speaks_for_the_best_of_its_labels():
    split = ClassSplit(["cat", "dog", "cow", "sky"], unseen=["dog"])
    scores, groups = np.array([0.1, 0.9, 0.5, 0.7]), np.array([2, 0, 0, 1])
    assert labels_of_groups(scores, groups, split, num_groups=4) == ["dog *", "sky", "cat", ""]
    assert labels_of_groups(scores, groups, split, num_groups=4, top_k=1) == ["dog *", "", "", ""]
    figure = attention_figure(np.zeros((8, 8, 3), dtype=np.uint8), np.ones((2, 4, 4)), labels=["dog *", ""])
    assert [axes.get_title() for axes in figure.axes] == ["image", "group 1\ndog *", "group 2\n–"]
