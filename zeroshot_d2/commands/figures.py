"""Draw a figure of the papers for a trained model.

    python -m zeroshot_d2 figures                                            # the figures and their systems
    python -m zeroshot_d2 figures qualitative --model output/demo --output examples.png
    python -m zeroshot_d2 figures per-class-iou --results results.json --output iou.png

`--compare-model` puts a second model beside the first, where the figure has room for it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..cli import Parser, peek, system_of, which_model
from ..pictures.command import FigureCommand, picture_path
from ..pictures.style import save_figure
from ..system import TASKS, System, all_systems, resolve

PROG = "python -m zeroshot_d2 figures"


def figures_of(system: System) -> dict[str, FigureCommand]:
    """The figures of a system: its task's and its own."""
    own = resolve(system.parts["figures"]) if "figures" in system.parts else {}
    return {**resolve(TASKS[system.task].parts["figures"]), **own}


def find_figure(name: str, system: System | None) -> FigureCommand:
    """A figure by its name.

    Args:
        name: as typed.
        system: of the model; None: any.

    Raises:
        ValueError: the system has no such figure, or no system has.
    """
    systems = all_systems() if system is None else [system]
    found = [figures_of(s)[name] for s in systems if name in figures_of(s)]
    if not found:
        known = sorted({figure for s in systems for figure in figures_of(s)})
        whose = "there is" if system is None else f"the system {system.name!r} has"
        raise ValueError(f"{whose} no figure {name!r}; choose one of {', '.join(known)}")
    return found[0]


def listing() -> str:
    lines = []
    for system in all_systems():
        lines += [f"{system.name}:", *(f"  {name:<16} {figure.summary}" for name, figure in figures_of(system).items())]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw a figure by command-line arguments ``argv``.

    Raises:
        FileNotFoundError: a config, checkpoint, result file or module does not exist.
        ValueError: the figure, the data set, the model or an argument does not fit.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    known = peek(words)
    if not words or words[0].startswith("-"):
        print(f"{__doc__}\n{listing()}\n\n`{PROG} NAME --help` says what a figure takes.")
        return 0 if words[:1] in ([], ["-h"], ["--help"]) else 2
    name = words[0]
    figure = find_figure(name, system_of(known))
    parser = Parser(f"{PROG} {name}", figure.summary)
    figure.add_all_arguments(parser)
    args = parser.parse(words[1:])
    if figure.needs_model and args.model is None and args.config_file is None:
        parser.fail(which_model())
    path = picture_path(args.output, name)
    save_figure(figure.draw(args), path)
    print(f"written: {path}")
    return 0
