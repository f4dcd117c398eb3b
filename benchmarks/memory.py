"""Memory of this process, from Linux's /proc.

``resource.getrusage`` will not do: a process begins with the peak of the one that started it.
"""

from __future__ import annotations

from pathlib import Path


def megabytes(field: str) -> float:
    """ "VmRSS": what this process holds now; "VmHWM": the most that it held so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024
