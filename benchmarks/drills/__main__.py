"""``python -m benchmarks.drills NAME [options]``: run one drill."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

DRILLS = ("kill", "disk", "fuzz", "web", "processes", "soak")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the drill that the first word names; its exit status is 0 where it found nothing wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in DRILLS:
        print(f"usage: python -m benchmarks.drills {{{','.join(DRILLS)}}} [--help]", file=sys.stderr)
        return 2
    return int(importlib.import_module(f"benchmarks.drills.{words[0]}").main(words[1:]))


if __name__ == "__main__":
    sys.exit(main())
