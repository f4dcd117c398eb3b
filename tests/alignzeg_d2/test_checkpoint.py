"""Checkpoints leave the frozen CLIP out, name it, and refuse another one."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from safetensors.torch import save_file

from alignzeg_d2 import alignzeg
from zeroshot_d2.clip.loader import DEMO_CLIP_NAME, create_clip

IMAGES = [{"image": torch.randint(0, 256, (3, 48, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)}]


@pytest.fixture(scope="module")
def trained(demo_model):
    """A model whose learnt weights differ from those of any fresh one."""
    torch.manual_seed(7)
    model = demo_model("MODEL.ALIGNZEG.CLIP.NUM_PROMPTS", 2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def checkpoint(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    DetectionCheckpointer(trained, str(folder)).save("model")
    return folder / "model.pth"


@pytest.fixture(scope="module")
def another_clip(random_clip, tmp_path_factory):
    """The demo world's CLIP with one weight changed."""
    path = tmp_path_factory.mktemp("clip") / "other.safetensors"
    state = {name: value.clone().contiguous() for name, value in random_clip.state_dict().items()}
    state["visual.conv1.weight"][0, 0, 0, 0] += 1
    save_file(state, str(path))
    return str(path)


def test_state_holds_what_learns_and_the_identity_of_clip_only(trained):
    learnt = {name for name, p in trained.named_parameters() if p.requires_grad}
    assert set(trained.state_dict()) == learnt | {"frozen_record"}
    assert not any(name.startswith("clip_image_encoder.") and "prompts" not in name for name in trained.state_dict())


def test_loads_back_to_the_same_outputs(trained, checkpoint, demo_model):
    torch.manual_seed(8)
    other = demo_model("MODEL.ALIGNZEG.CLIP.NUM_PROMPTS", 2)
    expected = trained(IMAGES)[0]["sem_seg"]
    assert not torch.allclose(other(IMAGES)[0]["sem_seg"], expected)
    DetectionCheckpointer(other).load(str(checkpoint))
    assert torch.equal(other(IMAGES)[0]["sem_seg"], expected)
    other.load_state_dict(trained.state_dict())  # torch's own way, strictly


def test_another_clip_is_refused(checkpoint, demo_model, another_clip):
    other = demo_model("MODEL.ALIGNZEG.CLIP.NUM_PROMPTS", 2, "MODEL.ALIGNZEG.CLIP.PRETRAINED", another_clip)
    with pytest.raises(ValueError, match=rf"trained with the CLIP .*{DEMO_CLIP_NAME}.*this model has .*other"):
        DetectionCheckpointer(other).load(str(checkpoint))


def test_equal_weights_of_another_path_are_the_same_clip(trained, checkpoint, demo_model, random_clip, tmp_path):
    path = tmp_path / "moved.safetensors"
    save_file({name: value.contiguous() for name, value in random_clip.state_dict().items()}, str(path))
    moved = demo_model("MODEL.ALIGNZEG.CLIP.NUM_PROMPTS", 2, "MODEL.ALIGNZEG.CLIP.PRETRAINED", str(path))
    DetectionCheckpointer(moved).load(str(checkpoint))
    torch.testing.assert_close(moved(IMAGES)[0]["sem_seg"], trained(IMAGES)[0]["sem_seg"])
    assert b"moved" in bytes(moved.frozen_record.tolist())  # it goes on recording its own path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.ALIGNZEG.CLIP.NUM_PROMPTS", 3), "clip_image_encoder.prompts"),  # another shape
        (("MODEL.ALIGNZEG.IMAGE_ENCODER.DEPTH", 4), "image_encoder"),  # more layers
        (("MODEL.ALIGNZEG.PIXEL_DECODER.NAME", "TransformerPixelDecoder"), "pixel_decoder"),
    ],
)
def test_checkpoint_of_another_config_is_refused(checkpoint, demo_model, options, message):
    other = demo_model(*("MODEL.ALIGNZEG.CLIP.NUM_PROMPTS", 2, *options))
    with pytest.raises(ValueError, match=rf"the checkpoint lacks .*{message}"):
        DetectionCheckpointer(other).load(str(checkpoint))


def test_checkpoint_of_something_else_is_refused(tmp_path, demo_model):
    torch.save({"model": {"backbone.conv.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="the checkpoint lacks"):
        DetectionCheckpointer(demo_model()).load(str(tmp_path / "other.pth"))


def test_missing_file_is_an_error(tmp_path, demo_model):
    with pytest.raises((AssertionError, FileNotFoundError), match="nothing.pth"):
        DetectionCheckpointer(demo_model()).load(str(tmp_path / "nothing.pth"))


def test_too_long_a_path_of_clip_is_an_error(demo_cfg, monkeypatch, random_clip):
    monkeypatch.setattr(alignzeg, "create_clip", lambda name, pretrained: create_clip(name, ""))
    with pytest.raises(ValueError, match="too long for a checkpoint"):
        alignzeg.AlignZeg(demo_cfg("MODEL.ALIGNZEG.CLIP.PRETRAINED", "x" * 3000))
