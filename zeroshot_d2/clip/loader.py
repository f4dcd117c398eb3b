"""CLIP by name: open_clip's models and weights, a local file, or the small CLIP of the demo world.

Every CLIP of this project, whatever its origin, comes from :func:`create_clip`.
"""

from __future__ import annotations

import difflib
import functools
import logging
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import open_clip
import torch
from torch import Tensor, nn
from torch.utils import serialization

from ..defaults import plain_defaults
from ..pixel_stats import PixelStats
from ..storage import file_sha256
from ..weights import check_tensors, fingerprint_of, read_weights

logger = logging.getLogger(__name__)

# OpenAI's pixel statistics, which most CLIPs have, RGB in 0..255.
PIXEL_MEAN, PIXEL_STD = PixelStats.of_pretrained(
    {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
)

Clip: TypeAlias = open_clip.CLIP | open_clip.CustomTextCLIP
"""A model of open_clip, with its text tower inside or beside."""

BUNDLED = "bundled"  # the value of `pretrained` that means the weights of a BundledClip


@dataclass(frozen=True)
class BundledClip:
    """A small CLIP that comes with the project: that of a demo world."""

    name: str

    @property
    def config(self) -> Path:
        return self._file(".json")

    @property
    def bpe(self) -> Path:
        """The table of its tokenizer."""
        return self._file(".bpe.txt.gz")

    @property
    def weights(self) -> Path:
        return self._file(".safetensors")

    def _file(self, ending: str) -> Path:
        return Path(__file__).parents[1] / "demo_world" / "clip" / f"{self.name}{ending}"


DEMO_CLIP, NEAR_CLIP = BundledClip("demo-world-clip"), BundledClip("demo-near-clip")
BUNDLED_CLIPS = {clip.name: clip for clip in (DEMO_CLIP, NEAR_CLIP)}


class DownloadFailed(OSError, RuntimeError):
    """Weights that a tag names are not on this machine and cannot be fetched."""


@plain_defaults()
def create_clip(name: str, pretrained: str) -> Clip:
    """Build a CLIP on the CPU, in float32 and evaluation mode.

    Args:
        name: an open_clip model name such as ``ViT-B-16-quickgelu``, or ``demo-world-clip`` or ``demo-near-clip``.
        pretrained: an open_clip tag (``openai``, ``laion2b_s34b_b88k``), a local weights file (.safetensors, .pt, .bin;
            OpenAI's TorchScript archives too), ``bundled`` (of a demo world's CLIP) or ``""`` for random weights.

    Raises:
        ValueError: unknown name; ``pretrained`` neither a tag nor a file; weights of a QuickGELU model for a model with GELU
            or the other way round; weights that do not fit the model.
        DownloadFailed: the weights of a tag cannot be downloaded.
    """
    _register_bundled_clips()
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
        if name not in BUNDLED_CLIPS:
            raise ValueError(
                f"PRETRAINED {BUNDLED!r} goes with {' and '.join(map(repr, BUNDLED_CLIPS))} only, not with {name!r}"
            )
        pretrained = str(BUNDLED_CLIPS[name].weights)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained in tags:
        return _create_from_tag(name, pretrained)
    path = Path(pretrained).expanduser()
    if not path.is_file():
        raise ValueError(
            f"PRETRAINED {pretrained!r} is neither a weights file nor an open_clip tag of {name!r}: give one of "
            f"{', '.join([*tags, repr(BUNDLED)] if name in BUNDLED_CLIPS else tags)}, or a file's path"
        )
    return _create_from_file(name, path)


def get_tokenizer(name: str) -> Callable[[list[str]], Tensor]:
    """open_clip's tokenizer of the model ``name``: texts -> (N, L) token ids, padded with 0.

    Raises:
        DownloadFailed: the model's tokenizer is not open_clip's own, as SigLIP's, and cannot be had.
    """
    _register_bundled_clips()
    if name in BUNDLED_CLIPS:
        return open_clip.get_tokenizer(name, bpe_path=str(BUNDLED_CLIPS[name].bpe))
    try:
        return open_clip.get_tokenizer(name)
    except (ImportError, OSError) as error:
        hub = open_clip.get_model_config(name)["text_cfg"].get("hf_tokenizer_name")
        raise DownloadFailed(
            f"the tokenizer of {name!r} could not be loaded ({error}). It is {hub} on the Hugging Face hub: it needs the "
            "package transformers, and a network at the first use"
        ) from error


def pixel_stats(name: str, pretrained: str) -> list[PixelStats]:
    """What the weights of a CLIP may have been trained with, in no order.

    Of a tag it is one pair, of a file what the tags of that model have; nothing of random weights.
    """
    if name in BUNDLED_CLIPS:
        return [PixelStats(PIXEL_MEAN, PIXEL_STD)] if pretrained else []
    known = open_clip.list_pretrained_tags_by_model(name)
    tags = [pretrained] if pretrained in known else known if pretrained else []
    return list(dict.fromkeys(PixelStats.of_pretrained(open_clip.get_pretrained_cfg(name, tag)) for tag in tags))


def embedding_dim(name: str) -> int:
    """The length of the vectors of images and texts of the CLIP ``name``."""
    _register_bundled_clips()
    return int(open_clip.get_model_config(name)["embed_dim"])


def is_tag(name: str, pretrained: str) -> bool:
    """Whether ``pretrained`` names weights that open_clip knows for the model ``name``, or the demo world's."""
    return pretrained == BUNDLED or pretrained in open_clip.list_pretrained_tags_by_model(name)


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a module's state (names, shapes and values), as 64 hexadecimal digits."""
    return fingerprint_of(module.state_dict())


def _register_bundled_clips() -> None:
    known = open_clip.list_models()
    for name, clip in BUNDLED_CLIPS.items():
        if name not in known:
            open_clip.add_model_config(clip.config)


def _create_from_tag(name: str, tag: str) -> Clip:
    _check_activation(name, tag)
    try:
        return open_clip.create_model(name, pretrained=tag).eval()
    except (RuntimeError, OSError) as error:
        source = open_clip.get_pretrained_cfg(name, tag)
        raise DownloadFailed(
            f"the weights {tag!r} of {name!r} could not be loaded ({error}). Without a network, fetch them elsewhere "
            f"({source.get('hf_hub') or source.get('url')}) and give the file's path as PRETRAINED."
        ) from error


def _check_activation(name: str, tag: str) -> None:
    """Raise ValueError where the weights of a tag were trained with GELU and the model computes QuickGELU, or contrariwise.

    A model without a twin of the other kind is right as it is: open_clip describes some weights without their activation.
    """
    trained_with_quickgelu = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
    if trained_with_quickgelu != _has_quickgelu(name) and tag in open_clip.list_pretrained_tags_by_model(_twin(name)):
        raise _quickgelu_error(name, f"the tag {tag!r}", trained_with_quickgelu)


def _twin(name: str) -> str:
    """The model that differs in its activation alone."""
    return name.removesuffix("-quickgelu") if name.endswith("-quickgelu") else f"{name}-quickgelu"


def _create_from_file(name: str, path: Path) -> Clip:
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
            # Mapped, an archive is not copied into memory first, half a gigabyte for a ViT-B/16.
            with serialization.config.patch({"load.mmap": zipfile.is_zipfile(path)}):  # type: ignore[attr-defined]
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
    return ValueError(
        f"{source} was trained with {'QuickGELU' if needs_quickgelu else 'GELU'}, but {name!r} computes "
        f"{'GELU' if needs_quickgelu else 'QuickGELU'}: its activations would be silently wrong. Use {_twin(name)!r}."
    )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("/constants.pkl") for entry in archive.namelist())
