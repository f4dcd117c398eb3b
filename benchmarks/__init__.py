"""Measurements: each module is a command, ``python -m benchmarks.<name>``."""

import zeroshot_d2  # noqa: F401  (before any module imports torch: it says how torch's threads wait)
