"""Other projects' own code for ``benchmarks.epsilon_cost --peer``, read from clones, unchanged.

SDL (https://github.com/Alibaba-MIIL/ZS_SDL): the ranking loss with its regulariser. BiAM (https://github.com/akshitac8/BiAM):
AP and F1. Nothing of theirs is part of this project.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch


@dataclass(frozen=True)
class Peer:
    """A public project.

    Args:
        address: where it can be cloned from.
        file: the module that is timed, within a clone.
        unneeded: libraries that the module imports for its data sets and logs alone.
    """

    name: str
    address: str
    file: str
    unneeded: tuple[str, ...] = ()


PEERS = (
    Peer("SDL", "https://github.com/Alibaba-MIIL/ZS_SDL", "src/loss_functions/SDL_loss.py"),
    Peer("BiAM", "https://github.com/akshitac8/BiAM", "util_nus.py", unneeded=("h5py", "pandas", "sklearn.preprocessing")),
)


def find_peers(clones: Sequence[Path]) -> dict[str, Path]:
    """{name of the peer: its clone}.

    Raises:
        FileNotFoundError: a folder is a clone of none of them.
        ValueError: two folders are clones of the same.
    """
    found: dict[str, Path] = {}
    for clone in clones:
        peer = next((peer for peer in PEERS if (clone / peer.file).is_file()), None)
        if peer is None:
            known = " nor of ".join(f"{peer.name} ({peer.address}, where {peer.file} is)" for peer in PEERS)
            raise FileNotFoundError(f"--peer {clone} is a clone neither of {known}: name the top folder of one")
        if peer.name in found:
            raise ValueError(f"--peer {found[peer.name]} and {clone} are both clones of {peer.name}: name one")
        found[peer.name] = clone
    return found


@functools.cache
def import_peer(name: str, clone: Path) -> types.ModuleType:
    """The timed module of a clone, without the libraries that it does not need for what is timed."""
    peer = next(peer for peer in PEERS if peer.name == name)
    spec = importlib.util.spec_from_file_location(f"{name}_code", clone / peer.file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {library: mock.MagicMock() for library in peer.unneeded}):
        spec.loader.exec_module(module)
    return module


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """``.cuda()``, which both call for every new tensor, leaves it where it is."""
    with mock.patch.object(torch.Tensor, "cuda", lambda tensor: tensor):
        yield
