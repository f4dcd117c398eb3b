"""``python -m zeroshot_d2 VERB ...`` and the console script ``zeroshot-d2``."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import commands
from .cli import BUILT_IN, peek
from .system import System, all_systems, resolve


def summaries() -> dict[str, str]:
    """{verb: the first line about it}, without importing what the verbs need."""
    found = {}
    for module in pkgutil.iter_modules(commands.__path__):
        found[module.name.replace("_", "-")] = _first_line(Path(commands.__path__[0], f"{module.name}.py"))
    return found


def summaries_of_systems() -> dict[str, str]:
    """The same of the verbs that the project's systems bring: a second of imports would be too much for a list."""
    found = {}
    for package in BUILT_IN:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        folder = Path(spec.origin).parent
        for file in sorted(folder.glob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == System.__name__:
                    verbs = next((keyword.value for keyword in node.keywords if keyword.arg == "verbs"), ast.Dict([], []))
                    for verb, dotted in ast.literal_eval(verbs).items():
                        module = dotted.partition(":")[0].split(".")[1:]
                        found[verb] = _first_line(folder.joinpath(*module).with_suffix(".py"))
    return found


def _first_line(file: Path) -> str:
    """Of a module's docstring."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").splitlines()[0]


def find_verb(name: str, arguments: Sequence[str] = ()) -> Callable[[Sequence[str]], int] | None:
    """The function of a verb, of the project or of a system that is registered or that ``arguments`` --import; None if there
    is none."""
    if name in summaries():
        return importlib.import_module(f"{commands.__name__}.{name.replace('-', '_')}").main
    peek(arguments)
    for system in all_systems():
        if name in system.verbs:
            return resolve(system.verbs[name])
    return None


def usage() -> str:
    """Every verb of the project with a line about it."""
    lines = [f"  {verb:<15} {text}" for verb, text in (summaries() | summaries_of_systems()).items()]
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
            close = difflib.get_close_matches(words[0], [*summaries(), *summaries_of_systems()], n=1)
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
