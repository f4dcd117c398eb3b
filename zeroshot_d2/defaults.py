"""What is built does not depend on the defaults that a program has set for the whole of torch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

_lock = threading.RLock()


@contextlib.contextmanager
def plain_defaults() -> Iterator[None]:
    """Within the block, or the function that this decorates, new tensors are float32 and on the CPU unless told otherwise.

    For constructors of other packages, which take torch's defaults: models and text encoders are built within. What runs
    later says dtypes and devices itself. torch has one default dtype for all threads, so one thread at a time is inside.
    """
    with _lock, contextlib.ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        dtype = torch.get_default_dtype()
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        yield
