"""Memory of this process, from Linux's /proc.

``resource.getrusage`` will not do: a process begins with the peak of the one that started it.
"""

from __future__ import annotations

from pathlib import Path

from zeroshot_d2.processes import give_back_memory


def megabytes(field: str) -> float:
    """ "VmRSS": what this process holds now; "VmHWM": the most that it held so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def count_peak_anew() -> float:
    """Megabytes that this process holds once it has given back what it freed; "VmHWM" counts from here on.

    The C library keeps freed memory, some 150 MB after a full-size model is built: what comes next would seem to need less.
    """
    give_back_memory()
    Path("/proc/self/clear_refs").write_text("5")
    return megabytes("VmRSS")
