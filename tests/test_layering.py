"""The arrows between the packages, and that importing them does nothing but bind names and register functions."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED, SYSTEMS, BASELINES = "zeroshot_d2", ("alignzeg_d2", "epsilon_d2"), "baselines_d2"
PACKAGES = (SHARED, *SYSTEMS, BASELINES)
# Folders and programs that use the packages and that no package may use.
USERS = {"train_net", "benchmarks", "datasets", "scripts", "tests", "notebooks"}
# What a room of a system may not import of its own system: the meta-architecture, config, evaluation, predictor, pictures,
# ...
NOT_FOR_ROOMS = {
    "config",
    "system",
    "oracle",
    "predictor",
    "pictures",
    "figures",
    "export",
    "web_tab",
    "demo",
    "gamma_sweep",
    "tagger",
    "proposal_segmenter",
}
TASKS = {"segmentation", "multilabel"}
# The one place in the shared package that names the systems of the project.
NAMES_THE_SYSTEMS = {("zeroshot_d2.cli", name) for name in (*SYSTEMS, BASELINES)}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Absolute names of what ``source`` imports, inside functions too; ``from a import b`` gives a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = module.split(".") if is_package else module.split(".")[:-1]
                parent = parent[: len(parent) - node.level + 1]
                base = ".".join([*parent, base]).rstrip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> set[str]:
    return set(imported_modules(path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py"))


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def top(name: str) -> str:
    return name.partition(".")[0]


def test_the_reader_of_imports_understands_every_form() -> None:
    source = "import a.b, c\nfrom d import e as f\ndef g():\n    from . import h\n    from ..i import j\n"
    assert set(imported_modules(source, "p.q.r", False)) == {"a.b", "c", "d.e", "p.q.h", "p.i.j"}
    assert set(imported_modules("from .x import y", "p.q", True)) == {"p.q.x.y"}


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_between_packages(package: str) -> None:
    """The baselines use the systems and the shared package, the systems the shared package; nothing uses the baselines."""
    allowed = {SHARED: set(), BASELINES: {SHARED, *SYSTEMS}}.get(package, {SHARED})
    forbidden = (USERS | set(PACKAGES)) - allowed - {package}
    wrong = {(module_name(path), name) for path in sources(package) for name in imports_of(path) if top(name) in forbidden}
    assert wrong == set()


def test_the_shared_package_names_the_systems_in_one_tuple() -> None:
    """Not in imports only: neither a package of a system nor its config section is named by a string or an attribute."""
    names = re.compile(r"\b(alignzeg_d2|epsilon_d2|baselines_d2|ALIGNZEG|EPSILON)\b")
    found = set()
    for path in sources(SHARED):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docstrings = {
            id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)
        }
        for node in ast.walk(tree):
            text = node.attr if isinstance(node, ast.Attribute) else getattr(node, "value", None)
            if isinstance(text, str) and id(node) not in docstrings:
                found |= {(module_name(path), name) for name in names.findall(text)}
    # An option's help quotes a key as an example.
    assert found - {("zeroshot_d2.multilabel.figures", "EPSILON")} == NAMES_THE_SYSTEMS


def test_tasks_know_neither_each_other_nor_the_commands() -> None:
    wrong = {
        (module_name(path), name)
        for task in TASKS
        for path in (ROOT / SHARED / task).glob("*.py")
        for name in imports_of(path)
        if any(name.startswith(f"{SHARED}.{other}.") for other in TASKS - {task} | {"commands", "datasets", "demo_world"})
    }
    assert wrong == set()


def test_what_is_below_the_tasks_does_not_know_them() -> None:
    """Two files apart: the list of tasks (by dotted names, which are no imports), and what registers the releases."""
    below = [path for path in (ROOT / SHARED).glob("*.py") if path.name not in ("__init__.py", "__main__.py")]
    below += [*(ROOT / SHARED / "clip").glob("*.py"), *(ROOT / SHARED / "pictures").glob("*.py")]
    wrong = {
        (module_name(path), name)
        for path in below
        for name in imports_of(path)
        if any(name.startswith(f"{SHARED}.{part}.") for part in (*TASKS, "commands", "datasets"))
    }
    assert wrong == set()


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_config_is_read_in_few_places(system: str) -> None:
    """In config.py, system.py, from_config, and by what a user starts; no room, loss or correction knows of one."""
    readers = {
        "config",
        "system",
        "alignzeg",
        "proposal_segmenter",
        "epsilon",
        "tagger",
        "demo",
        "figures",
        "export",
        "web_tab",
    }
    wrong = []
    for path in sources(system):
        functions = [
            node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)
        ]
        for function in functions:
            takes_cfg = any(argument.arg == "cfg" for argument in [*function.args.args, *function.args.kwonlyargs])
            if takes_cfg and function.name != "from_config" and path.stem not in readers:
                wrong.append(f"{module_name(path)}.{function.name}")
    assert wrong == []


@pytest.mark.parametrize("system", SYSTEMS)
def test_rooms_import_neither_the_meta_architecture_nor_config_data_or_evaluation(system: str) -> None:
    meta_architecture = system.removesuffix("_d2")
    forbidden = {f"{system}.{name}" for name in (*NOT_FOR_ROOMS, meta_architecture)}
    rooms = [*(ROOT / system / "modeling").rglob("*.py"), *(ROOT / system).glob("inference.py")]
    assert rooms
    wrong = {
        (module_name(path), name)
        for path in rooms
        for name in imports_of(path)
        if any(name == module or name.startswith(module + ".") for module in forbidden)
        # The system's __init__ re-exports the meta-architecture, so a room may not import from there either.
        or name.rpartition(".")[0] == system
        and not (ROOT / system / name.split(".")[1]).exists()
        and not (ROOT / system / (name.split(".")[1] + ".py")).exists()
    }
    assert wrong == set()


IMPORT_PROBE = """
import sys

# What detectron2 and torch do while they are imported is not ours.
import detectron2.data, detectron2.engine, detectron2.evaluation, detectron2.modeling, open_clip, timm, scipy.optimize
import detectron2.projects.point_rend

opened = []

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and not arguments[0].endswith((".py", ".pyc", ".so")):
        opened.append(arguments[0])
    if event in ("os.mkdir", "socket.connect", "subprocess.Popen"):
        opened.append(f"{event} {arguments}")

sys.addaudithook(watch)
import PACKAGE
print("\\n".join(name for name in opened if "/site-packages/" not in name and not name.startswith(("/proc", "/sys"))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_importing_opens_no_file_but_modules(package: str) -> None:
    probe = IMPORT_PROBE.replace("PACKAGE", package)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "__pycache__" not in line and line] == []


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_without_detectron2_one_sentence_says_how_to_get_it(package: str) -> None:
    probe = (
        "import importlib.util as u, sys\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'detectron2' else find(name, *rest)\n"
        "sys.modules['detectron2'] = None\n"
        f"import {package}"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: detectron2 is not installed") and "make setup" in last
