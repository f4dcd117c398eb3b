"""CLIP by name: names, tags, files, and the errors that spare silently wrong activations."""

import contextlib
import json
import re

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file

from zeroshot_d2.clip.loader import (
    BUNDLED_CLIPS,
    DEMO_CLIP,
    PIXEL_MEAN,
    PIXEL_STD,
    DownloadFailed,
    _check_activation,
    _published,
    create_clip,
    fingerprint,
    get_tokenizer,
    pixel_stats,
)
from zeroshot_d2.pixel_stats import PixelStats
from zeroshot_d2.storage import file_sha256

QUICK_NAME, PLAIN_NAME = "test-tiny-quickgelu", "test-tiny"


@pytest.fixture(scope="module", autouse=True)
def tiny_models(tmp_path_factory):
    """Two open_clip models of a few thousand weights that differ in their activation, as ViT-B-16 and its twin do."""
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 1, "layers": 2},
    }
    folder = tmp_path_factory.mktemp("configs")
    for name, quick in ((QUICK_NAME, True), (PLAIN_NAME, False)):
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**config, **({"quick_gelu": True} if quick else {})}))
        open_clip.add_model_config(path)


def save(clip, path):
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, str(path))
    return str(path)


def as_torchscript(clip, path):
    """A TorchScript archive with the weights under CLIP's names and OpenAI's three extra entries."""

    class Archive(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    def attach(module, name, value):
        head, _, rest = name.partition(".")
        if rest:
            if not hasattr(module, head):
                module.add_module(head, Archive())
            attach(getattr(module, head), rest, value)
        else:
            module.register_buffer(head, value)

    archive = Archive()
    for name, value in clip.state_dict().items():
        attach(archive, name, value.half())
    for name in ("input_resolution", "context_length", "vocab_size"):
        archive.register_buffer(name, torch.tensor(8))
    with torch.no_grad():
        torch.jit.trace(archive, torch.zeros(1)).save(str(path))
    return str(path)


def test_random_weights_are_the_same_at_every_call_and_leave_the_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = create_clip(PLAIN_NAME, "")
    assert torch.equal(torch.rand(1), expected)
    torch.manual_seed(4)
    assert fingerprint(create_clip(PLAIN_NAME, "")) == fingerprint(first)
    assert not first.training and next(first.parameters()).dtype == torch.float32


def test_quickgelu_follows_the_name():
    def uses_quickgelu(clip):
        return any(isinstance(module, QuickGELU) for module in clip.modules())

    assert uses_quickgelu(create_clip(QUICK_NAME, "")) and not uses_quickgelu(create_clip(PLAIN_NAME, ""))


def test_fingerprint_sees_every_weight():
    clip = create_clip(PLAIN_NAME, "")
    before = fingerprint(clip)
    with torch.no_grad():
        clip.ln_final.bias[3] += 1e-6
    assert len(before) == 64 and fingerprint(clip) != before


def test_unknown_name_suggests_a_close_one():
    with pytest.raises(ValueError, match=r"unknown CLIP 'ViT-B-16-quickgello'; did you mean 'ViT-B-16-quickgelu'"):
        create_clip("ViT-B-16-quickgello", "openai")


def test_pretrained_is_neither_tag_nor_file():
    with pytest.raises(ValueError, match=r"'/nowhere/clip.pt' is neither a weights file nor an open_clip tag .*openai"):
        create_clip("ViT-B-16-quickgelu", "/nowhere/clip.pt")


def test_openai_tag_needs_quickgelu():
    with pytest.raises(ValueError, match="QuickGELU, but 'ViT-B-16' computes GELU.* Use 'ViT-B-16-quickgelu'"):
        create_clip("ViT-B-16", "openai")


@pytest.mark.parametrize(("name", "tag"), [("ViT-B-16-quickgelu", "openai"), ("ViT-B-16", "laion2b_s34b_b88k")])
def test_weights_that_cannot_be_had_offline(name, tag, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))  # should this machine have them
    with pytest.raises(
        RuntimeError, match=rf"weights '{tag}' of '{name}' could not be loaded.*give the file's path as PRETRAINED"
    ):
        create_clip(name, tag)


def test_bundled_weights_belong_to_the_bundled_clips():
    with pytest.raises(ValueError, match="goes with 'demo-world-clip' and 'demo-near-clip' only"):
        create_clip("ViT-B-16", "bundled")


@pytest.mark.parametrize("bundled", BUNDLED_CLIPS.values(), ids=list(BUNDLED_CLIPS))
def test_bundled_weights_load(bundled):
    clip = create_clip(bundled.name, "bundled")
    assert fingerprint(clip) != fingerprint(create_clip(bundled.name, ""))
    assert bundled.weights.stat().st_size <= 10e6
    assert fingerprint(clip) == fingerprint(create_clip(bundled.name, str(bundled.weights)))


def test_local_files(tmp_path):
    torch.manual_seed(11)
    clip = open_clip.create_model(PLAIN_NAME, pretrained=None, load_weights=False)
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    for path in (save(clip, tmp_path / "clip.safetensors"), str(tmp_path / "clip.pt")):
        loaded = create_clip(PLAIN_NAME, path)
        assert fingerprint(loaded) == fingerprint(clip) and not loaded.training


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_archive_as_openai_released_them(tmp_path, monkeypatch):
    torch.manual_seed(11)
    clip = open_clip.create_model(QUICK_NAME, pretrained=None, load_weights=False).half().float().eval()
    path = as_torchscript(clip, tmp_path / "weights.pt")
    with pytest.raises(
        ValueError, match=r"weights\.pt .*a TorchScript archive, which can run code, and none that open_clip"
    ):
        create_clip(QUICK_NAME, path)
    monkeypatch.setattr("zeroshot_d2.clip.loader._published", lambda: {file_sha256(path)})
    assert fingerprint(create_clip(QUICK_NAME, path)) == fingerprint(clip)
    with pytest.raises(ValueError, match=f"QuickGELU, but '{PLAIN_NAME}' computes GELU.* Use '{PLAIN_NAME}-quickgelu'"):
        create_clip(PLAIN_NAME, path)


def test_openai_s_archives_are_known_by_their_addresses():
    assert "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f" in _published()  # ViT-B/16
    assert len(_published()) >= 9


def test_weights_that_hold_nan_are_refused(tmp_path):
    state = create_clip(DEMO_CLIP.name, "").state_dict()
    torch.save({**state, "ln_final.bias": torch.full_like(state["ln_final.bias"], torch.nan)}, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=r"clip\.pt .*NaN in ln_final\.bias"):
        create_clip(DEMO_CLIP.name, str(tmp_path / "clip.pt"))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_of_another_model(tmp_path, suffix):
    clip = create_clip(DEMO_CLIP.name, "")
    path = tmp_path / f"clip.{suffix}"
    if suffix == "pt":
        torch.save(clip.state_dict(), path)
    else:
        save(clip, path)
    with pytest.raises(ValueError, match=f"clip.{suffix} does not hold the weights of '{PLAIN_NAME}'"):
        create_clip(PLAIN_NAME, str(path))


@pytest.mark.parametrize("name", ["broken.pt", "broken.safetensors"])
def test_a_file_that_holds_no_weights(tmp_path, name):
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=f"{name} does not hold the weights of '{PLAIN_NAME}'"):
        create_clip(PLAIN_NAME, str(tmp_path / name))


def test_openai_in_a_file_name_means_quickgelu(tmp_path):
    path = save(create_clip(PLAIN_NAME, ""), tmp_path / "vit_openai.safetensors")
    with pytest.raises(ValueError, match="QuickGELU"):
        create_clip(PLAIN_NAME, path)


def test_tokenizer_by_name():
    tokens = get_tokenizer(DEMO_CLIP.name)(["striped green tile", "dark water"])
    assert tokens.shape == (2, 24)
    assert (tokens[0] > 0).sum() == 5 and (tokens[1] > 0).sum() == 4  # a token per word, and the two ends
    assert get_tokenizer("ViT-B-16-quickgelu")(["a cat"]).shape == (1, 77)


def test_pixel_statistics_are_those_of_clip():
    assert pytest.approx((122.7709, 116.7460, 104.0937), abs=1e-3) == PIXEL_MEAN
    assert pytest.approx((68.5005, 66.6322, 70.3232), abs=1e-3) == PIXEL_STD


# ---- activations and pixel statistics of open_clip's tags ----


def test_every_tag_goes_with_its_model_or_the_message_names_the_model():
    refused = 0
    for name, tag in open_clip.list_pretrained():
        try:
            _check_activation(name, tag)
        except ValueError as error:
            refused += 1
            other = re.search(r"Use '([^']+)'", str(error))[1]
            assert tag in open_clip.list_pretrained_tags_by_model(other)
            _check_activation(other, tag)
    assert refused > 10


@pytest.mark.parametrize(
    ("name", "tag", "right"),
    [
        ("ViT-B-16", "openai", False),
        ("ViT-B-16", "dfn2b", False),
        ("ViT-L-14-quickgelu", "dfn2b", True),
        ("ViT-L-14", "dfn2b_s39b", True),
        ("ViT-H-14", "dfn5b", False),
        ("ViT-H-14-378-quickgelu", "dfn5b", True),
        ("ViT-L-14", "metaclip_400m", False),
        ("ViT-L-14-quickgelu", "metaclip_fullcc", True),
        ("ViT-B-16", "laion2b_s34b_b88k", True),
        ("ViT-L-14", "datacomp_xl_s13b_b90k", True),
        ("EVA02-B-16", "merged2b_s8b_b131k", True),
        ("ViT-B-16-SigLIP", "webli", True),
        ("roberta-ViT-B-32", "laion2b_s12b_b32k", True),  # described without its activation, and has no twin
    ],
)
def test_activations_of_the_families_of_weights(name, tag, right):
    assert tag in open_clip.list_pretrained_tags_by_model(name)
    with contextlib.nullcontext() if right else pytest.raises(ValueError, match=f"Use '{name}-quickgelu'"):
        _check_activation(name, tag)


def test_pixel_statistics_follow_the_tag():
    clip, half = PixelStats(PIXEL_MEAN, PIXEL_STD), PixelStats((127.5,) * 3, (127.5,) * 3)
    for name, tag in (("ViT-L-14-quickgelu", "dfn2b"), ("ViT-L-14", "laion400m_e32"), ("EVA02-B-16", "merged2b_s8b_b131k")):
        assert pixel_stats(name, tag) == [clip]
    for name, tag in (("ViT-L-14", "laion2b_s32b_b82k"), ("ViT-B-16-SigLIP", "webli")):
        assert pixel_stats(name, tag) == [half]
    assert set(pixel_stats("ViT-L-14", "/some/file.pt")) == {clip, half}  # whichever tag it was
    assert pixel_stats("ViT-L-14", "") == [] and pixel_stats(PLAIN_NAME, "/some/file.pt") == []
    assert pixel_stats(DEMO_CLIP.name, "bundled") == [clip] and pixel_stats(DEMO_CLIP.name, "") == []


def test_a_tokenizer_that_cannot_be_had():
    message = "tokenizer of 'ViT-B-16-SigLIP' could not be loaded.*timm/ViT-B-16-SigLIP.*transformers"
    with pytest.raises(DownloadFailed, match=message):
        get_tokenizer("ViT-B-16-SigLIP")
