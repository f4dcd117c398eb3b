"""A case of a benchmark in a process of its own. What is imported here counts in every such process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def imports_of(modules: Sequence[str]) -> list[str]:
    """The words of a command line that import ``modules``."""
    return [word for module in modules for word in ("--import", module)]


def json_of_own_process(module: str, words: Sequence[str], **environment: str) -> Any:
    """What ``python -m module words`` prints in its last line, as JSON.

    Raises:
        subprocess.CalledProcessError: it failed; the error has what it wrote to stderr.
    """
    command = [sys.executable, "-W", "ignore", "-m", module, *words]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return json.loads(done.stdout.splitlines()[-1])
