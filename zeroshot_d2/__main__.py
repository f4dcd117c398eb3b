"""``python -m zeroshot_d2 VERB ...`` and the console script ``zeroshot-d2``."""

from __future__ import annotations

import ast
import difflib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import commands


def summaries() -> dict[str, str]:
    """{verb: the first line about it}, without importing what the verbs need."""
    found = {}
    for module in pkgutil.iter_modules(commands.__path__):
        source = Path(commands.__path__[0], f"{module.name}.py").read_text(encoding="utf-8")
        found[module.name.replace("_", "-")] = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
    return found


def find_verb(name: str, arguments: Sequence[str] = ()) -> Callable[[Sequence[str]], int] | None:
    """The function of a verb, of the project or of a system that is registered or that ``arguments`` --import; None if there
    is none."""
    if name in summaries():
        return importlib.import_module(f"{commands.__name__}.{name.replace('-', '_')}").main
    from .cli import peek
    from .system import all_systems, resolve

    peek(arguments)
    for system in all_systems():
        if name in system.verbs:
            return resolve(system.verbs[name])
    return None


def usage() -> str:
    lines = [f"  {verb:<15} {text}" for verb, text in summaries().items()]
    return "\n".join(
        [
            "usage: python -m zeroshot_d2 VERB ...",
            "",
            *lines,
            "",
            "`python -m zeroshot_d2 VERB --help` says what a verb takes.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; its exit status, 2 where the arguments or what they name are at fault."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show must not end the work
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    show_traceback = "--traceback" in words
    if show_traceback:
        words.remove("--traceback")
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    try:
        verb = find_verb(words[0], words[1:])
        if verb is None:
            close = difflib.get_close_matches(words[0], list(summaries()), n=1)
            hint = f"; did you mean {close[0]}?" if close else "; choose one of these"
            print(f"error: there is no verb {words[0]!r}{hint}\n\n{usage()}", file=sys.stderr)
            return 2
        return verb(words[1:])
    # What the project raises about what it was given, and at a loss that is not finite.
    except (ValueError, OSError, FloatingPointError) as error:
        if show_traceback:
            raise
        print(f"error: {error}\n(--traceback shows where)", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
