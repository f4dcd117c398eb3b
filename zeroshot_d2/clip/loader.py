"""CLIP by name: open_clip's models and weights, a local file, or the small CLIP of the demo world.

Every CLIP of this project, whatever its origin, comes from :func:`create_clip`.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import open_clip
import torch
from open_clip.transformer import VisionTransformer
from safetensors import SafetensorError
from torch import Tensor, nn

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


def create_clip(name: str, pretrained: str) -> open_clip.CLIP:
    """Build a CLIP on the CPU, in float32 and evaluation mode.

    Args:
        name: an open_clip model name such as ``ViT-B-16-quickgelu``, or ``demo-world-clip``.
        pretrained: an open_clip tag (``openai``, ``laion2b_s34b_b88k``), a local weights file (.safetensors, .pt, .bin;
            OpenAI's TorchScript archives too), ``bundled`` (the demo world's weights) or ``""`` for random weights.

    Raises:
        ValueError: unknown name; ``pretrained`` neither a tag nor a file; weights of a QuickGELU model for a model with GELU
            or the other way round; weights that do not fit the model.
        RuntimeError: the weights of a tag cannot be downloaded.
    """
    _register_demo_clip()
    known = open_clip.list_models()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        raise ValueError(
            f"unknown CLIP {name!r}"
            + (f"; did you mean {' or '.join(map(repr, close))}?" if close else "")
            + " open_clip.list_models() lists all names."
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
            f"PRETRAINED {pretrained!r} is neither a weights file nor an open_clip tag of {name!r} (tags: {', '.join(tags)})"
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
    except RuntimeError as error:
        source = open_clip.get_pretrained_cfg(name, tag)
        raise RuntimeError(
            f"the weights {tag!r} of {name!r} could not be loaded ({error}). Without a network, fetch them elsewhere "
            f"({source.get('hf_hub') or source.get('url')}) and give the file's path as PRETRAINED."
        ) from error


def _create_from_file(name: str, path: Path) -> open_clip.CLIP:
    if _is_torchscript(path):  # how OpenAI released CLIP: always QuickGELU
        if not _has_quickgelu(name):
            raise _quickgelu_error(name, f"{path} (a TorchScript archive as OpenAI released them)", True)
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
        for key in ("input_resolution", "context_length", "vocab_size"):
            state.pop(key, None)
        clip = open_clip.create_model(name, pretrained=None, load_weights=False)
        try:
            clip.load_state_dict({key: value.float() for key, value in state.items()})
        except RuntimeError as error:
            raise ValueError(f"{path} does not hold the weights of {name!r}: {error}") from error
        return clip.eval()
    if "openai" in path.name.lower() and not _has_quickgelu(name):
        raise _quickgelu_error(name, str(path), True)
    try:
        return open_clip.create_model(name, pretrained=str(path)).eval()
    # Missing or misshapen weights (RuntimeError; AssertionError where open_clip resizes position embeddings), or no weights.
    except (RuntimeError, AssertionError, UnpicklingError, SafetensorError) as error:
        raise ValueError(f"{path} does not hold the weights of {name!r}: {error}") from error


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
