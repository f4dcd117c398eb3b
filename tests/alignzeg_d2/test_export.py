"""Exported programs give what the model gives, for every number and size of images; and docs/export.md as it stands."""

from __future__ import annotations

import math
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from comparisons import assert_close, assert_same_labels
from filelock import FileLock
from PIL import Image
from predictor_contract import NO_IMAGE_ARRAYS
from torch import nn

from alignzeg_d2 import AlignZeg
from alignzeg_d2.export import ExportableAlignZeg, export, prepare_image, read_description, vocabulary_inputs
from alignzeg_d2.predictor import AlignZegPredictor
from zeroshot_d2 import load_config
from zeroshot_d2.checkpoint import Checkpointer, ModelRecord
from zeroshot_d2.commands.export import main
from zeroshot_d2.demo_world import render
from zeroshot_d2.export import TOLERANCE

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8").partition("\n## Epsilon\n")[0]
COMMANDS = re.findall(r"^python -m zeroshot_d2 export ((?:.*\\\n)*.*)$", PAGE, re.M)
NAMES = ["plain blue tile", "dark water|dark sea", "zebra"]
# Tracing takes time by the layer.
SHALLOW = [
    *("MODEL.ALIGNZEG.IMAGE_ENCODER.DEPTH", 1, "MODEL.ALIGNZEG.SEMANTIC_DECODER.NUM_LAYERS", 2),
    *("MODEL.ALIGNZEG.CLIP.TEMPLATES", "single"),
]


def photo(index: int, width: int = 64) -> np.ndarray:
    """(64, width, 3) RGB."""
    return np.concatenate([render(7, index).image, render(7, index + 1).image], axis=1)[:, :width]


@pytest.fixture(scope="session")
def folder_of_the_page(shared_folder):
    """A folder with the files that docs/export.md speaks of, shared by all workers. The model is shallow and not trained;
    its proposals differ in mask and class, and half of those of a photo have a class indicator above the threshold."""
    folder = shared_folder / "export_alignzeg"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            (folder / "output").mkdir(parents=True)
            Image.fromarray(photo(0, 91)[:53]).save(folder / "photo.png")
            torch.manual_seed(1)
            cfg = load_config("demo/alignzeg.yaml", SHALLOW)
            model = AlignZeg(cfg).eval()
            for parameter in model.pixel_decoder.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
            model.semantic_decoder.bias_scale.data.fill_(20.0)
            nn.init.normal_(model.class_indicator.layers[-1].weight, std=0.3)
            image = torch.tensor(photo(0)).permute(2, 0, 1)
            (found,) = model.inference([{"image": image}], proposals=True)
            middle = found["proposals"]["class_indicator"].logit().sort().values[7:9].mean()  # between two of the 16
            model.class_indicator.layers[-1].bias.data -= middle - math.log(0.6 / 0.4)
            checkpointer = Checkpointer(model, str(folder / "output/demo"), record=ModelRecord.for_training(cfg, model))
            checkpointer.save("model_final")
            (folder / "output/demo/config.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture
def predictor(folder_of_the_page):
    run = folder_of_the_page / "output/demo"
    return AlignZegPredictor(load_config(run / "config.yaml", weights=run / "model_final.pth"))


@pytest.mark.parametrize("output", ["scores", "labels"])
@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_the_function_of_tensors_is_the_model(predictor, output, gamma):
    predictor.model.postprocessor.gamma = gamma
    split = predictor.set_vocabulary(NAMES)
    images = torch.tensor(np.stack([photo(0, 96), photo(1, 96)])).permute(0, 3, 1, 2).float()
    inputs = [{"image": x, "vocabulary": split} for x in images]
    with torch.no_grad():
        scores = torch.stack([found["sem_seg"] for found in predictor.model.inference(inputs, output="scores")])
        baked = ExportableAlignZeg(predictor.model, split, output)(images)
        given = ExportableAlignZeg(predictor.model, None, output)(images, **vocabulary_inputs(predictor.model, split))
    for found in (baked, given):
        if output == "scores":
            assert_close(found, scores)
        else:
            for labels, all_scores in zip(found, scores, strict=True):
                assert_same_labels(labels, all_scores.argmax(0), all_scores)


def test_a_vocabulary_without_unseen_classes_is_not_corrected(predictor):
    """As in Eq. 7's implementation: no image's scores change where there is nothing to favour."""
    predictor.model.postprocessor.gamma = 0.0
    split = predictor.set_vocabulary(["plain blue tile", "dark grass"])
    assert split.unseen == ()
    images = torch.tensor(photo(0)).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        scores = ExportableAlignZeg(predictor.model, split)(images)
        predictor.model.postprocessor.gamma = 1.0
        assert_close(ExportableAlignZeg(predictor.model, split)(images), scores)


def test_the_correction_does_something_here(predictor):
    proposals = predictor(photo(0)[:, :, ::-1].copy(), proposals=True).proposals
    assert 0 < (proposals["class_indicator"] > predictor.cfg.MODEL.ALIGNZEG.PBC.GAMMA).sum() < 16


def test_images_are_padded_with_the_mean_and_cropped_again(predictor):
    predictor.set_vocabulary(NAMES)
    image = photo(0, 91)[:53]
    description = {"short_side": 64, "max_side": 2560, "size_divisibility": 8, "padding": predictor.cfg.MODEL.PIXEL_MEAN}
    padded, height, width = prepare_image(image, description)
    assert (height, width) == (64, 110) and padded.shape == (3, 64, 112)
    np.testing.assert_allclose(padded[:, :, 110:].max(axis=(1, 2)), description["padding"], rtol=1e-6)
    np.testing.assert_allclose(padded[:, :, 110:].min(axis=(1, 2)), description["padding"], rtol=1e-6)
    with torch.no_grad():
        scores = ExportableAlignZeg(predictor.model, predictor.vocabulary)(torch.tensor(padded)[None])
    resized = np.ascontiguousarray(padded[:, :height, :width].transpose(1, 2, 0)[:, :, ::-1]).astype(np.uint8)
    expected = predictor(resized, scores=True).scores
    assert_close(scores[0, :, :height, :width], expected)


@pytest.mark.parametrize(
    ("file_format", "name", "output", "message"),
    [
        ("tflite", "model.tflite", "scores", "--format must be one of onnx, torch_export, got 'tflite'"),
        ("onnx", "model.pt2", "scores", r"a file of format onnx ends with \.onnx, got .*model\.pt2"),
        ("onnx", "model.onnx", "masks", "must be one of .*got 'masks'"),
    ],
)
def test_faulty_arguments(predictor, tmp_path, file_format, name, output, message):
    with pytest.raises(ValueError, match=message):
        export(predictor, tmp_path / name, file_format=file_format, output=output)


@pytest.mark.slow
def test_the_other_parts_that_a_config_can_choose(demo_cfg, demo_model, tmp_path):
    """The plain transformer decoder, visual prompts, a CLIP that sees a smaller image, a bias per head."""
    parts = [
        *("MODEL.ALIGNZEG.PIXEL_DECODER.NAME", "TransformerPixelDecoder", "MODEL.ALIGNZEG.PIXEL_DECODER.DECODER_LAYERS", 1),
        *("MODEL.ALIGNZEG.CLIP.NUM_PROMPTS", 3, "MODEL.ALIGNZEG.CLIP.RESOLUTION", 0.5),
        *("MODEL.ALIGNZEG.SEMANTIC_DECODER.BIAS_PER_HEAD", True),
        *SHALLOW,
    ]
    torch.save({"model": demo_model(*parts).state_dict()}, tmp_path / "model.pth")
    predictor = AlignZegPredictor(demo_cfg(*parts, "MODEL.WEIGHTS", str(tmp_path / "model.pth")))
    predictor.set_vocabulary(NAMES)
    path = tmp_path / "model.onnx"
    assert 0 < export(predictor, path, file_format="onnx", vocabulary_input=True) < TOLERANCE
    assert read_description(path)["size_divisibility"] == 16


# ---- docs/export.md: its commands, and what they wrote ----


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
                assert re.search(r"(baked in|as input); .* from PyTorch: \d", capsys.readouterr().out)
        return path

    return run


def test_the_page_has_these_commands():
    outputs = [re.search(r"--output exported/(\S+)", command)[1] for command in COMMANDS]
    assert outputs == ["scores.onnx", "open.onnx", "scores.pt2", "newer.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scores.onnx", "scores.pt2"])
def test_a_baked_in_vocabulary(exported, name):
    description = read_description(exported(name))
    assert description["names"] == ["plain blue tile", "dark water", "light sand"]
    assert description["unseen"] == ["dark water"]
    assert (description["output"], description["input_format"], description["size_divisibility"]) == ("scores", "RGB", 8)
    assert (description["short_side"], description["max_side"]) == (64, 2560)


@pytest.mark.slow
def test_an_open_vocabulary_in_onnxruntime(exported, predictor):
    session = onnxruntime.InferenceSession(str(exported("open.onnx")))
    assert [i.name for i in session.get_inputs()] == ["images", "prototypes", "seen"]
    assert read_description(exported("open.onnx"))["names"] is None
    images = np.stack([photo(2, 72), photo(5, 72)]).astype(np.float32).transpose(0, 3, 1, 2)
    different = set()
    for names in (["zebra"], NAMES, ["dark sand", "light grass", "dark bricks", "plain red tile", "striped red tile"]):
        split = predictor.marked(names)
        given = {name: tensor.numpy() for name, tensor in vocabulary_inputs(predictor.model, split).items()}
        (labels,) = session.run(["labels"], {"images": images, **given})
        inputs = [{"image": torch.tensor(x), "vocabulary": split} for x in images]
        outputs = predictor.model.inference(inputs, output="labels")
        expected = np.stack([output["sem_seg_labels"].numpy() for output in outputs])
        assert labels.shape == (2, 64, 72) and (labels != expected).mean() < 0.01
        different |= {len(np.unique(labels))}
    assert max(different) > 1


@pytest.mark.slow
def test_python_of_the_page(exported, predictor, tmp_path):
    for name in ("scores.onnx", "open.onnx", "scores.pt2"):
        exported(name)
    first, second, third = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    scope: dict = {}
    exec(first, scope)
    in_onnxruntime, (height, width) = scope["scores"], (scope["height"], scope["width"])
    assert (height, width) == (64, 110) and scope["labels"].shape == (64, 110)
    resized = scope["padded"][::-1, :height, :width].transpose(1, 2, 0).astype(np.uint8)
    names = ["plain blue tile", "dark water", "light sand"]
    expected = predictor(np.ascontiguousarray(resized), vocabulary=names, scores=True).scores.numpy()
    np.testing.assert_allclose(in_onnxruntime, expected, atol=TOLERANCE)
    exec(second, scope)
    np.testing.assert_allclose(scope["scores"][0, :, :height, :width].numpy(), expected, atol=TOLERANCE)
    assert scope["vocabulary"]["names"].tolist() == ["dark water", "zebra"]
    padded = without_torch(third, "padded", tmp_path / "padded.npy")
    np.testing.assert_allclose(padded[0], scope["padded"], atol=1e-3)


@pytest.mark.slow
def test_a_newer_opset(exported):
    onnx = pytest.importorskip("onnx")
    assert [entry.version for entry in onnx.load(exported("newer.onnx")).opset_import] == [20]
    session = onnxruntime.InferenceSession(str(exported("newer.onnx")))
    images = np.stack([photo(2, 72), photo(5, 72)]).astype(np.float32).transpose(0, 3, 1, 2)
    (newer,) = session.run(None, {"images": images})
    (default,) = onnxruntime.InferenceSession(str(exported("scores.onnx"))).run(None, {"images": images})
    np.testing.assert_allclose(newer, default, atol=TOLERANCE)


@pytest.mark.slow
def test_no_image_and_every_size(exported, predictor):
    """Without an image in a process of its own, which onnxruntime might end."""
    split = predictor.marked(NAMES)
    given = {name: tensor.numpy() for name, tensor in vocabulary_inputs(predictor.model, split).items()}
    path = exported("open.onnx")
    program = (
        "import numpy as np, onnxruntime, sys\n"
        "session = onnxruntime.InferenceSession(sys.argv[1])\n"
        f"given = {{'images': np.zeros((0, 3, 16, 24), np.float32), 'seen': np.zeros({len(split)}, bool),\n"
        f"  'prototypes': np.zeros({given['prototypes'].shape}, np.float32)}}\n"
        "assert session.run(None, given)[0].shape == (0, 16, 24)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the refusals are what is tested
    session = onnxruntime.InferenceSession(str(path), options)
    shown = session.get_inputs()[0].shape, session.get_outputs()[0].shape
    assert shown == (["n", 3, "8*h", "8*w"], ["n", "8*h", "8*w"])
    for height, width in [*((side, 24) for side in range(1, 27)), *((24, side) for side in range(1, 27))]:
        image = np.full((1, 3, height, width), 90, np.float32)
        if height % 8 or width % 8:
            with pytest.raises(Exception, match="ONNXRuntimeError"):  # its errors have no class that is public
                session.run(None, {"images": image, **given})
            continue
        (labels,) = session.run(None, {"images": image, **given})
        (expected,) = predictor.model.inference([{"image": torch.tensor(image[0]), "vocabulary": split}], output="labels")
        assert (labels[0] != expected["sem_seg_labels"].numpy()).mean() < 0.01


@pytest.mark.slow
def test_sides_that_are_no_multiples_are_refused_by_a_program_that_returns_scores(exported):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(exported("scores.onnx")), options)
    for height, width in ((24, 25), (25, 24), (17, 27), (24, 15)):
        with pytest.raises(Exception, match="ONNXRuntimeError"):
            session.run(None, {"images": np.zeros((1, 3, height, width), np.float32)})


@pytest.mark.slow
def test_a_torch_export_takes_two_multiples_a_side(exported, predictor):
    program = torch.export.load(exported("scores.pt2")).module()
    image = torch.full((3, 16, 16), 90.0)
    (expected,) = predictor.model.inference(
        [{"image": image, "vocabulary": ["plain blue tile", "dark water", "light sand"]}], output="scores"
    )
    assert_close(program(images=image[None])[0], expected["sem_seg"], tolerance=TOLERANCE)
    for height, width in ((8, 16), (16, 8), (12, 16)):
        with pytest.raises((AssertionError, RuntimeError), match=r"Guard|images"):
            program(images=image[None, :, :height, :width])


@pytest.mark.parametrize("image", NO_IMAGE_ARRAYS)
def test_what_is_no_image_array_is_named(image):
    with pytest.raises(ValueError, match="expected an image as an array|must be .H, W, 3. uint8"):
        prepare_image(image, {})
