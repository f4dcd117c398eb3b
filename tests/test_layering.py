"""The arrows between the packages, and that importing them does nothing but bind names and register functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED, SYSTEMS = "zeroshot_d2", ("alignzeg_d2", "epsilon_d2")
PACKAGES = tuple(name for name in (SHARED, *SYSTEMS) if (ROOT / name / "__init__.py").is_file())
# Folders and programs that use the packages and that no package may use.
USERS = {"train_net", "benchmarks", "datasets", "scripts", "tests", "notebooks"}
# What a room of a system may not import of its own system: the meta-architecture, config, data, evaluation.
NOT_FOR_ROOMS = {"config", "dataset_mapper", "evaluation", "visualization", "demo"}

# The web page is one for both systems, as train_net.py is one for both: it imports the other one's tab, inside the function
# that runs it and only where the user names that system's weights.
THE_PAGE_SHOWS_BOTH = {("alignzeg_d2.web", "epsilon_d2.web.load_labeller"), ("alignzeg_d2.web", "epsilon_d2.web.tags_tab")}


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
    forbidden = USERS | set(SYSTEMS) | {SHARED}
    forbidden -= {package, SHARED} if package in SYSTEMS else {SHARED}
    # The data registration code of the shared package is a folder of the same name as the scripts at the top.
    wrong = {(module_name(path), name) for path in sources(package) for name in imports_of(path) if top(name) in forbidden}
    assert wrong - THE_PAGE_SHOWS_BOTH == set()


@pytest.mark.parametrize("system", [name for name in SYSTEMS if name in PACKAGES])
def test_rooms_import_neither_the_meta_architecture_nor_config_data_or_evaluation(system: str) -> None:
    meta_architecture = system.removesuffix("_d2")
    forbidden = {f"{system}.{name}" for name in (*NOT_FOR_ROOMS, meta_architecture)}
    rooms = [*(ROOT / system / "modeling").rglob("*.py"), *(ROOT / system).glob("postprocessing.py")]
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


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_opens_no_file_but_modules(package: str) -> None:
    probe = IMPORT_PROBE.replace("PACKAGE", package)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "__pycache__" not in line and line] == []


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
