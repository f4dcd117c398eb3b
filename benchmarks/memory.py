"""Memory of this process, from Linux's /proc.

``resource.getrusage`` will not do: a process begins with the peak of the one that started it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path


def megabytes(field: str) -> float:
    """ "VmRSS": what this process holds now; "VmHWM": the most that it held so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def count_peak_anew() -> float:
    """Megabytes that this process holds once it has given back what it freed; "VmHWM" counts from here on.

    The C library keeps freed memory, some 150 MB after a full-size model is built: what comes next would seem to need less.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return megabytes("VmRSS")
