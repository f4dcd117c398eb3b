"""Threads that wait give up their core soon, so that other work on the machine does not slow them down.

The threads of GNU's OpenMP, which torch's wheels for Linux bring, wait for their next piece of work in a loop that keeps a
core busy for 300,000 turns. On a machine with other work they hold up the very thread that they wait for.
"""

import os
import sys

SPIN_VARIABLE = "GOMP_SPINCOUNT"
_SPINS = "3000"  # a fraction of a millisecond: enough from one operation to the next
_USERS = (SPIN_VARIABLE, "OMP_WAIT_POLICY")
_too_late = False


def wait_briefly() -> None:
    """Set GOMP_SPINCOUNT, unless the user has set it or OMP_WAIT_POLICY.

    OpenMP reads it when torch is imported. If torch is there already, only processes that are started from now on see it.
    """
    global _too_late  # for the log
    if not any(name in os.environ for name in _USERS):
        os.environ[SPIN_VARIABLE] = _SPINS
        _too_late = "torch" in sys.modules


def how_threads_wait() -> str:
    """One sentence for the log."""
    settings = ", ".join(f"{name} {os.environ[name]}" for name in _USERS if name in os.environ)
    late = "; this process does not see it, because torch was imported before zeroshot_d2" if _too_late else ""
    return f"how OpenMP's threads wait: {settings}{late}"
