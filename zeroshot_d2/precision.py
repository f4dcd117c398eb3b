"""How exactly, and how, a network computes: half precision at test time, and torch.compile."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from torch import nn

logger = logging.getLogger(__name__)

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Names of config keys, and what they mean to torch.autocast; None: off."""


def precision_at_test(cfg: CfgNode) -> torch.dtype | None:
    """That of TEST.PRECISION on MODEL.DEVICE; None: float32."""
    precision = PRECISIONS[cfg.TEST.PRECISION]
    if precision is torch.float16 and not cfg.MODEL.DEVICE.startswith("cuda"):
        logger.info("TEST.PRECISION float16 is ignored: it is for CUDA devices; bfloat16 runs here")
        return None
    return precision


def mixed(device: torch.device, precision: torch.dtype | None) -> contextlib.AbstractContextManager[None]:
    """A block in which a network computes in this precision; None: as outside of it."""
    return contextlib.nullcontext() if precision is None else torch.autocast(device.type, precision)


def compile_parts(model: nn.Module, cfg: CfgNode) -> None:
    """With MODEL.COMPILE, let torch.compile work on what a model lists as its ``compiled_parts``; sizes stay free.

    Without a compiler that works here the model runs as it is, and the log says so.

    Raises:
        ValueError: the model lists none.
    """
    if not cfg.MODEL.COMPILE:
        return
    parts: Iterable[str] = getattr(model, "compiled_parts", ())
    if not parts:
        raise ValueError(
            f"MODEL.COMPILE True: {cfg.MODEL.META_ARCHITECTURE} does not say which of its parts can be compiled; set it to "
            "False"
        )
    problem = missing_compiler(cfg.MODEL.DEVICE)
    if problem:
        logger.warning("MODEL.COMPILE is ignored: %s", problem)
        return
    for name in parts:
        model.get_submodule(name).compile(dynamic=True)
    logger.info("torch.compile: %s; the first images of each kind take minutes", ", ".join(parts))


def missing_compiler(device: str) -> str:
    """What torch.compile needs and this machine, or the environment, lacks; "" for nothing."""
    if device.startswith("cuda") and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["cl"] if sys.platform == "win32" else ["g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        return f"there is no C++ compiler ({' or '.join(compilers)}; $CXX names another)"
    if os.environ.get("ATEN_CPU_CAPABILITY") == "default":
        return "torch writes code with vector instructions, which ATEN_CPU_CAPABILITY=default rules out"
    return ""
