"""Golden values: what the public code of the compared methods computes, in ``<method>_*.npz`` files.

They lie in the folder of the environment variable GOLDEN_DIR, by default beside the checkout. A file has ``meta`` (JSON,
with sizes and options in "config") and arrays ``state/*``, ``in/*``, ``out/*``, ``loss/*``, ``grad/*``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparisons import assert_close
from torch import Tensor

FOLDER = Path(os.environ.get("GOLDEN_DIR", Path(__file__).resolve().parents[3] / "shared" / "data" / "golden"))

# Of the largest value: outputs and losses, and gradients, in which the public code's own rounding adds up.
OUTPUT, GRADIENT = 1e-5, 5e-4


def golden_files(method: str) -> list[Any]:
    """Arguments for ``pytest.mark.parametrize``: the files of a method, or a test that is skipped and says why."""
    paths = sorted(FOLDER.glob(f"{method}_*.npz"))
    if paths:
        return [pytest.param(path, id=path.stem) for path in paths]
    return [pytest.param(None, marks=pytest.mark.skip(reason=f"there are no golden values {FOLDER}/{method}_*.npz"))]


class Golden:
    """The arrays of a file as tensors, and what is known of them.

    Attributes:
        config: sizes and options, from ``meta``.
        used: names of the expected values that were compared.
    """

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as stored:
            self._arrays = {name: stored[name] for name in stored.files}
        self.config: dict[str, Any] = json.loads(str(self._arrays.pop("meta").item()))["config"]
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self._arrays[name])

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def below(self, prefix: str) -> dict[str, Tensor]:
        """Arrays whose names start with ``prefix/``, named by the rest."""
        start = f"{prefix}/"
        return {name.removeprefix(start): self[name] for name in self._arrays if name.startswith(start)}

    def check(self, name: str, given: Tensor) -> None:
        """Compare a value of ours with ``name``: an output, a loss, or a gradient, which may be stored in part."""
        expected = self[name].float()
        given = torch.as_tensor(given).detach().float()
        assert given.shape == expected.shape, f"{name}: {tuple(given.shape)} is not {tuple(expected.shape)}"
        try:
            assert_close(given, expected, GRADIENT if name.startswith("grad/") else OUTPUT)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
        self.used.add(name)

    def unused(self, *prefixes: str) -> set[str]:
        """Names below the prefixes that were not compared."""
        return {name for name in self._arrays if name.startswith(prefixes)} - self.used
