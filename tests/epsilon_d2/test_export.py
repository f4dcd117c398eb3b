"""Exported programs give what Epsilon gives, for every number of images and labels; and docs/export.md as it stands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from comparisons import assert_close
from filelock import FileLock
from PIL import Image
from predictor_contract import NO_IMAGE_ARRAYS

from epsilon_d2.export import ExportableEpsilon, examples, export, prepare_image, read_description, vocabulary_inputs
from epsilon_d2.predictor import EpsilonPredictor
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.commands.export import main
from zeroshot_d2.demo_world import render
from zeroshot_d2.export import TOLERANCE
from zeroshot_d2.vocabulary import vocabulary_from_names

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8").partition("\n## Epsilon\n")[2]
COMMANDS = re.findall(r"^python -m zeroshot_d2 export ((?:.*\\\n)*.*)$", PAGE, re.M)
NAMES = ["plain blue tile", "dark water|dark sea", "zebra"]


def photo() -> np.ndarray:
    """(53, 91, 3) RGB."""
    return np.asarray(Image.fromarray(render(7, 0, num_objects=(3, 5)).image).resize((91, 53)))


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("MODEL.EPSILON.GPA.ENABLED", False),
        ("MODEL.EPSILON.GFP.ENABLED", False, "MODEL.EPSILON.BACKBONE.CLS_TOKEN", True),
        ("MODEL.EPSILON.GPA.ENABLED", False, "MODEL.EPSILON.GFP.ENABLED", False),
    ],
)
def test_the_function_of_tensors_is_the_model(epsilon_model, options):
    model = epsilon_model(*options)
    vocabulary = vocabulary_from_names(NAMES)
    with torch.no_grad():
        for inputs, expected in examples(model, [vocabulary], baked=False):
            given = ExportableEpsilon(model, None)(**inputs)
            baked = ExportableEpsilon(model, vocabulary)(inputs["images"])
            assert given.shape == (len(inputs["images"]), 3)
            assert_close(given, expected)
            assert_close(baked, expected)


def test_a_photo_is_squeezed_as_the_model_squeezes_it(epsilon_model):
    model, vocabulary = epsilon_model(), vocabulary_from_names(NAMES)
    prepared = prepare_image(photo(), {"image_size": 64})
    assert prepared.shape == (3, 64, 64) and prepared.dtype == np.float32
    with torch.no_grad():
        (expected,) = model([{"image": torch.from_numpy(photo().transpose(2, 0, 1).copy()), "vocabulary": vocabulary}])
        scores = ExportableEpsilon(model, vocabulary)(torch.from_numpy(prepared)[None])
    assert_close(scores[0], expected["scores"])


@pytest.mark.slow
def test_a_plain_vit_to_torch_export(epsilon_cfg, epsilon_model, tmp_path):
    """The backbone of the paper's configs, with the tokens that they do not have, on a vocabulary of one class."""
    options = [
        *("MODEL.BACKBONE.NAME", "TimmViT", "MODEL.EPSILON.BACKBONE.NAME", "vit_tiny_patch16_224"),
        *("MODEL.EPSILON.BACKBONE.TAP", 1, "MODEL.EPSILON.BACKBONE.CLS_TOKEN", True),
        *("MODEL.EPSILON.GPA.ENCODER_HEADS", 4, "MODEL.EPSILON.GPA.ENCODER_LAYERS", 2),
    ]
    torch.save({"model": epsilon_model(*options).state_dict()}, tmp_path / "model.pth")
    predictor = EpsilonPredictor(epsilon_cfg(*options, "MODEL.WEIGHTS", str(tmp_path / "model.pth")))
    predictor.set_vocabulary(["zebra"])
    path = tmp_path / "open.pt2"
    assert export(predictor, path, file_format="torch_export", vocabulary_input=True) < TOLERANCE
    description = read_description(path)
    assert description["names"] is None and description["label_width"] == 96
    program = torch.export.load(path).module()
    images, vectors = torch.rand(4, 3, 64, 64) * 255, torch.randn(5, 96)
    with torch.no_grad():
        expected = ExportableEpsilon(predictor.model, None)(images, vectors)
        assert_close(program(images=images, label_vectors=vectors), expected)
        with pytest.raises((AssertionError, RuntimeError), match="64"):  # the side is fixed
            program(images=images[:, :, :48], label_vectors=vectors)


def test_faulty_arguments(epsilon_cfg, epsilon_model, tmp_path):
    with pytest.raises(ValueError, match=r"a file of format onnx ends with \.onnx, got .*model\.pt2"):
        export(None, tmp_path / "model.pt2", file_format="onnx")
    torch.save({"model": epsilon_model().state_dict()}, tmp_path / "model_final.pth")
    (tmp_path / "config.yaml").write_text(epsilon_cfg().dump())
    given = ["--model", str(tmp_path), "--output", str(tmp_path / "model.onnx")]
    with pytest.raises(FileNotFoundError, match="class list absent.txt does not exist"):
        main([*given, "--vocabulary", "absent.txt"])
    with pytest.raises(SystemExit):
        main([*given, "--returns", "labels"])  # AlignZeg's
    with pytest.raises(SystemExit):
        main(given[2:])


# ---- docs/export.md: its commands, and what they wrote ----


@pytest.fixture(scope="session")
def folder_of_the_page(epsilon_checkpoint, shared_folder):
    """A folder with the files that the page speaks of, shared by all workers."""
    folder = shared_folder / "export_epsilon"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            (folder / "output/demo").mkdir(parents=True)
            (folder / "output/demo/epsilon").symlink_to(epsilon_checkpoint.parent)
            (folder / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
            Image.fromarray(photo()).save(folder / "photo.png")
    return folder


def without_torch(block: str, result: str, path: Path) -> np.ndarray:
    """``result`` of a block of the page, in a process that has neither PyTorch nor Detectron2."""
    blocked = "import sys; sys.modules.update(torch=None, torchvision=None, detectron2=None, zeroshot_d2=None)\n"
    program = f"{blocked}{block}\nnp.save({str(path)!r}, {result})"
    subprocess.run([sys.executable, "-c", program], check=True)
    return np.load(path)


@pytest.fixture
def exported(folder_of_the_page, monkeypatch, capsys):
    """``exported(name)``: the file that the page's command wrote, run at most once."""
    monkeypatch.chdir(folder_of_the_page)

    def run(name: str) -> Path:
        path = Path("exported") / name
        with FileLock(f"{name}.lock"):
            if not path.exists():
                (command,) = (command for command in COMMANDS if str(path) in command)
                assert main(shlex.split(command.replace("\\\n", " "))) == 0
                assert re.search(r"3 classes (baked in|as input); .* from PyTorch: \d", capsys.readouterr().out)
        return path

    return run


def test_the_page_has_these_commands():
    outputs = [re.search(r"--output exported/(\S+)", command)[1] for command in COMMANDS]
    assert outputs == ["labels.onnx", "open_labels.onnx"]


@pytest.mark.slow
def test_a_baked_in_vocabulary(exported):
    description = read_description(exported("labels.onnx"))
    assert description["names"] == ["plain blue tile", "dark water", "zebra"]
    assert description["unseen"] == ["dark water", "zebra"]
    assert (description["output"], description["input_format"], description["image_size"]) == ("scores", "RGB", 64)


@pytest.mark.slow
def test_an_open_vocabulary_in_onnxruntime(exported, tagger):
    session = onnxruntime.InferenceSession(str(exported("open_labels.onnx")))
    assert [x.name for x in session.get_inputs()] == ["images", "label_vectors"]
    images = np.stack([render(5, index).image for index in range(4)]).astype(np.float32).transpose(0, 3, 1, 2)
    best = set()
    for names in (["zebra"], NAMES, ["dark sand", "light grass", "dark bricks", "plain red tile", "striped red tile"]):
        split = ClassSplit(names)
        given = {name: tensor.numpy() for name, tensor in vocabulary_inputs(tagger.model, split).items()}
        (scores,) = session.run(["scores"], {"images": images, **given})
        with torch.no_grad():
            outputs = tagger.model([{"image": torch.tensor(x), "vocabulary": split} for x in images])
        np.testing.assert_allclose(scores, np.stack([output["scores"].numpy() for output in outputs]), atol=TOLERANCE)
        best |= set(scores.argmax(axis=1).tolist())
    assert len(best) > 1


@pytest.mark.slow
def test_python_of_the_page(exported, tagger, tmp_path):
    for name in ("labels.onnx", "open_labels.onnx"):
        exported(name)
    first, second = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    scope: dict = {}
    exec(first, scope)
    expected = tagger(np.ascontiguousarray(photo()[:, :, ::-1]), vocabulary=NAMES).scores
    np.testing.assert_allclose(scope["scores"], expected, atol=TOLERANCE)
    np.testing.assert_allclose(scope["same"], expected, atol=TOLERANCE)
    assert scope["vocabulary"]["names"].tolist() == ["plain blue tile", "dark water", "zebra"]
    pixels = without_torch(second, "pixels", tmp_path / "pixels.npy")
    np.testing.assert_allclose(pixels.transpose(2, 0, 1), scope["square"], atol=1)  # of 255
    scores = without_torch(second, "scores", tmp_path / "scores.npy")
    np.testing.assert_allclose(scores[0], expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.slow
def test_no_image(exported):
    session = onnxruntime.InferenceSession(str(exported("open_labels.onnx")))
    assert [x.shape for x in session.get_inputs()] == [["n", 3, 64, 64], ["k", 96]]
    given = {"images": np.zeros((0, 3, 64, 64), np.float32), "label_vectors": np.zeros((5, 96), np.float32)}
    assert session.run(None, given)[0].shape == (0, 5)
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):  # the side is fixed; its errors have no class that is public
        session.run(None, {**given, "images": np.zeros((1, 3, 64, 56), np.float32)})


@pytest.mark.parametrize("image", NO_IMAGE_ARRAYS)
def test_what_is_no_image_array_is_named(image):
    with pytest.raises(ValueError, match="expected an image as an array|must be .H, W, 3. uint8"):
        prepare_image(image, {})
