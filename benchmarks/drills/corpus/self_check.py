"""One case for each outcome: what the drill must say of itself."""

from __future__ import annotations

import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

from .case import Case, write

KIND = "self_check"


class _Payload:
    def __reduce__(self) -> Any:
        return Path.mkdir, (Path("canary-ran"),)


def _refuse(folder: Path) -> None:
    raise ValueError(f"{folder / 'a.txt'} is empty: fetch it again")


def _mumble(folder: Path) -> None:
    raise ValueError("bad value")


def _break(folder: Path) -> None:
    raise KeyError("a.txt")


def _crash(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang(folder: Path) -> None:
    time.sleep(600)


def _unpickle(folder: Path) -> None:
    pickle.loads(pickle.dumps(_Payload()))
    _refuse(folder)


def _reach_outside(folder: Path) -> None:
    write(folder / "canary-outside.txt", "secret").read_text()
    _refuse(folder)


def cases(seed: int) -> list[Case]:
    """``seed`` decides nothing here."""
    names = ("a.txt",)
    return [
        Case(KIND, "clear", _refuse, names),
        Case(KIND, "unclear", _mumble, names),
        Case(KIND, "unclear", _break, names),
        Case(KIND, "wrong", lambda folder: "read", names),
        Case(KIND, "wrong", _refuse, None, bool),
        Case(KIND, "wrong", _unpickle, names, canary=True),
        Case(KIND, "wrong", _reach_outside, names, canary=True),
        Case(KIND, "crash", _crash, names),
        Case(KIND, "valid", lambda folder: "read", None, lambda text: text == "read"),
        Case(KIND, "hang", _hang, names),
        Case(KIND, "valid", lambda folder: "read", names, bool),
    ]
