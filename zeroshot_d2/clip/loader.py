"""CLIP by name: open_clip's models and weights, a local file, or the small CLIP of the demo world.

Every CLIP of this project, whatever its origin, comes from :func:`create_clip`.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import logging
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from ..defaults import plain_defaults
from ..storage import file_sha256
from ..weights import check_tensors, read_weights

logger = logging.getLogger(__name__)

# CLIP's pixel statistics, RGB in 0..255 (open_clip.OPENAI_DATASET_MEAN and _STD hold them in 0..1).
PIXEL_MEAN = tuple(255 * value for value in open_clip.OPENAI_DATASET_MEAN)
PIXEL_STD = tuple(255 * value for value in open_clip.OPENAI_DATASET_STD)

DEMO_CLIP_NAME = "demo-world-clip"
_DEMO_DIRECTORY = Path(__file__).parents[1] / "demo_world" / "clip"
DEMO_CLIP_CONFIG = _DEMO_DIRECTORY / f"{DEMO_CLIP_NAME}.json"
DEMO_CLIP_BPE = _DEMO_DIRECTORY / "bpe.txt.gz"
DEMO_CLIP_WEIGHTS = _DEMO_DIRECTORY / f"{DEMO_CLIP_NAME}.safetensors"
BUNDLED = "bundled"  # the value of `pretrained` that means DEMO_CLIP_WEIGHTS


class DownloadFailed(OSError, RuntimeError):
    """Weights that a tag names are not on this machine and cannot be fetched."""


@plain_defaults()
def create_clip(name: str, pretrained: str) -> open_clip.CLIP:
    """Build a CLIP on the CPU, in float32 and evaluation mode.

    Args:
        name: an open_clip model name such as ``ViT-B-16-quickgelu``, or ``demo-world-clip``.
        pretrained: an open_clip tag (``openai``, ``laion2b_s34b_b88k``), a local weights file (.safetensors, .pt, .bin;
            OpenAI's TorchScript archives too), ``bundled`` (the demo world's weights) or ``""`` for random weights.

    Raises:
        ValueError: unknown name; ``pretrained`` neither a tag nor a file; weights of a QuickGELU model for a model with GELU
            or the other way round; weights that do not fit the model.
        DownloadFailed: the weights of a tag cannot be downloaded.
    """
    _register_demo_clip()
    known = open_clip.list_models()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        raise ValueError(
            f"unknown CLIP {name!r}"
            + (f"; did you mean {' or '.join(map(repr, close))}?" if close else ";")
            + " choose one that open_clip.list_models() has"
        )
    if pretrained == "":
        # The same random weights in every process and at every call: the text tower may be loaded later than the image's.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return open_clip.create_model(name, pretrained=None, load_weights=False).eval()
    if pretrained == BUNDLED:
        if name != DEMO_CLIP_NAME:
            raise ValueError(f"PRETRAINED {BUNDLED!r} goes with {DEMO_CLIP_NAME!r} only, not with {name!r}")
        pretrained = str(DEMO_CLIP_WEIGHTS)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained in tags:
        return _create_from_tag(name, pretrained)
    path = Path(pretrained).expanduser()
    if not path.is_file():
        raise ValueError(
            f"PRETRAINED {pretrained!r} is neither a weights file nor an open_clip tag of {name!r}: give one of "
            f"{', '.join([*tags, repr(BUNDLED)] if name == DEMO_CLIP_NAME else tags)}, or a file's path"
        )
    return _create_from_file(name, path)


def checked_vision_tower(clip: open_clip.CLIP, name: str) -> VisionTransformer:
    """The image tower of a CLIP, where it is a plain vision transformer, whose blocks and tokens can be used one by one.

    Raises:
        ValueError: it is another network.
    """
    visual = getattr(clip, "visual", None)
    if not isinstance(visual, VisionTransformer):
        raise ValueError(
            f"the image tower of {name!r} is a {type(visual).__name__}, not a plain vision transformer of open_clip, whose "
            "blocks are needed here. What works: ViT-B-32, ViT-B-16, ViT-L-14, ViT-L-14-336, ViT-H-14 and their "
            "-quickgelu forms"
        )
    return visual


def get_tokenizer(name: str) -> Callable[[list[str]], Tensor]:
    """open_clip's tokenizer of the model ``name``: texts -> (N, L) token ids, padded with 0."""
    _register_demo_clip()
    if name == DEMO_CLIP_NAME:
        return open_clip.get_tokenizer(name, bpe_path=str(DEMO_CLIP_BPE))
    return open_clip.get_tokenizer(name)


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a module's state (names, shapes and values), as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy() if value.ndim else str(value).encode())
    return digest.hexdigest()


def _register_demo_clip() -> None:
    if DEMO_CLIP_NAME not in open_clip.list_models():
        open_clip.add_model_config(DEMO_CLIP_CONFIG)


def _create_from_tag(name: str, tag: str) -> open_clip.CLIP:
    trained_with_quickgelu = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
    if trained_with_quickgelu != _has_quickgelu(name):
        raise _quickgelu_error(name, f"the tag {tag!r}", trained_with_quickgelu)
    try:
        return open_clip.create_model(name, pretrained=tag).eval()
    except (RuntimeError, OSError) as error:
        source = open_clip.get_pretrained_cfg(name, tag)
        raise DownloadFailed(
            f"the weights {tag!r} of {name!r} could not be loaded ({error}). Without a network, fetch them elsewhere "
            f"({source.get('hf_hub') or source.get('url')}) and give the file's path as PRETRAINED."
        ) from error


def _create_from_file(name: str, path: Path) -> open_clip.CLIP:
    is_torchscript = _is_torchscript(path)  # how OpenAI released CLIP: always QuickGELU
    if (is_torchscript or "openai" in path.name.lower()) and not _has_quickgelu(name):
        raise _quickgelu_error(name, str(path), True)
    try:
        if is_torchscript:
            weights = _torchscript_weights(path)
            clip = open_clip.create_model(name, pretrained=None, load_weights=False)
            clip.load_state_dict(weights)
        else:
            read_weights(path, f"file of weights of {name!r}", mapped=True)  # says what is wrong with it, if something is
            clip = open_clip.create_model(name, pretrained=str(path))
        check_tensors(clip.state_dict(), str(path))
    # Missing or misshapen weights: RuntimeError, or whatever open_clip stumbles over where it renames them.
    except (
        RuntimeError,
        AssertionError,
        AttributeError,
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        StopIteration,
    ) as error:
        reason = " ".join(str(error).split()) or "it holds none"
        raise ValueError(f"{path} does not hold the weights of {name!r}, give a file that does: {reason[:300]}") from error
    return clip.eval()


def _torchscript_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a TorchScript archive, which is a program: only those that open_clip publishes are opened."""
    if file_sha256(path) not in _published():
        raise ValueError(
            "it is a TorchScript archive, which can run code, and none that open_clip publishes: save its state_dict() with "
            "a program you trust"
        )
    state = torch.jit.load(str(path), map_location="cpu").state_dict()
    return {
        key: value.float() for key, value in state.items() if key not in ("input_resolution", "context_length", "vocab_size")
    }


@functools.cache
def _published() -> frozenset[str]:
    """SHA-256 of OpenAI's archives, which open_clip has in their addresses."""
    addresses = (open_clip.get_pretrained_cfg(name, tag).get("url") or "" for name, tag in open_clip.list_pretrained())
    return frozenset(found[0] for address in addresses if (found := re.search(r"\b[0-9a-f]{64}\b", address)))


def _has_quickgelu(name: str) -> bool:
    return bool(open_clip.get_model_config(name).get("quick_gelu", False))


def _quickgelu_error(name: str, source: str, needs_quickgelu: bool) -> ValueError:
    other = name.removesuffix("-quickgelu") if name.endswith("-quickgelu") else f"{name}-quickgelu"
    return ValueError(
        f"{source} was trained with {'QuickGELU' if needs_quickgelu else 'GELU'}, but {name!r} computes "
        f"{'GELU' if needs_quickgelu else 'QuickGELU'}: its activations would be silently wrong. Use {other!r}."
    )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("/constants.pkl") for entry in archive.namelist())
