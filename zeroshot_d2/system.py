"""What a system is: one object in one registry, from which every command takes what it needs.

A *task* is what a kind of problem shares, whoever's method solves it: data sets, mapper, evaluator, the predictor's result
and how it is written and drawn. A *system* is a method for a task: a meta-architecture, its config keys, and whatever it
brings beside the task's parts. Parts are dotted names, ``"package.module:attribute"``, imported when they are used.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from detectron2.config import CfgNode, get_cfg


@dataclass(frozen=True)
class Task:
    """What all systems of a kind share.

    Args:
        name: "segmentation" or "multilabel".
        evaluator_type: that of the data sets registered for it.
        parts: of any system of the task that does not bring its own:

            * "config": (cfg) adds the task's keys;
            * "mapper": (cfg, is_train=...) -> mapper of dataset dicts to inputs;
            * "evaluator": (cfg, dataset name) -> Detectron2 evaluator;
            * "predictor": class, (cfg, batch_size) -> callable on images;
            * "writer": class that writes the predictor's results to files;
            * "referee": class that scores saved predictions, see :mod:`zeroshot_d2.referee`;
            * "calibrator": class that chooses thresholds, see :class:`zeroshot_d2.thresholds.Calibrator`;
            * "figures": {name: :class:`zeroshot_d2.commands.figures.Figure`}.
    """

    name: str
    evaluator_type: str
    parts: Mapping[str, str]


TASKS: Mapping[str, Task] = {
    "segmentation": Task(
        "segmentation",
        "zero_shot_sem_seg",
        {
            "config": "zeroshot_d2.segmentation.config:add_segmentation_config",
            "mapper": "zeroshot_d2.segmentation.mapper:SegmentationMapper",
            "evaluator": "zeroshot_d2.segmentation.evaluation:build_evaluator",
            "predictor": "zeroshot_d2.segmentation.predictor:SegmentationPredictor",
            "writer": "zeroshot_d2.segmentation.writer:SegmentationWriter",
            "referee": "zeroshot_d2.segmentation.referee:SegmentationReferee",
            "calibrator": "zeroshot_d2.segmentation.calibration:Calibrator",
            "figures": "zeroshot_d2.segmentation.figures:FIGURES",
        },
    ),
    "multilabel": Task(
        "multilabel",
        "zero_shot_multilabel",
        {
            "config": "zeroshot_d2.multilabel.config:add_multilabel_config",
            "mapper": "zeroshot_d2.multilabel.mapper:MultiLabelMapper",
            "evaluator": "zeroshot_d2.multilabel.evaluation:build_evaluator",
            "predictor": "zeroshot_d2.multilabel.predictor:TagPredictor",
            "writer": "zeroshot_d2.multilabel.writer:TagWriter",
            "referee": "zeroshot_d2.multilabel.referee:MultiLabelReferee",
            "calibrator": "zeroshot_d2.multilabel.calibration:Calibrator",
            "figures": "zeroshot_d2.multilabel.figures:FIGURES",
        },
    ),
}


@dataclass(frozen=True)
class System:
    """A method, as the commands see it.

    Args:
        name: ``MODEL.META_ARCHITECTURE``, which every config names; a model of this name is in Detectron2's
            META_ARCH_REGISTRY.
        task: a name of :data:`TASKS`.
        add_config: adds the system's keys below ``MODEL``, and sets Detectron2's to what the method trains with; called
            after the task's own.
        mapper: (cfg, is_train=...) -> mapper, where the task's will not do.
        evaluator: (cfg, dataset name) -> evaluator, where the task's will not do.
        parts: dotted names; those of :class:`Task` replace the task's (but "figures" are added to them), and

            * "exporter": class that :mod:`zeroshot_d2.commands.export` uses;
            * "web_tab": class that :mod:`zeroshot_d2.commands.web` uses;
            * "demo": class that :mod:`zeroshot_d2.commands.demo` uses.
        verbs: further verbs of the command line, {name: dotted name of a function (argv) -> exit status}.

    The model may have ``trained_classes``, which :class:`zeroshot_d2.trainer.Trainer` sets; ``result_facts``, a dict for
    JSON of what its numbers depend on, which results.json holds beside them; and ``frozen_record``, see
    :mod:`zeroshot_d2.checkpoint`.

    Raises:
        ValueError: there is no such task.
    """

    name: str
    task: str
    add_config: Callable[[CfgNode], None]
    mapper: Callable[..., Any] | None = None
    evaluator: Callable[[CfgNode, str], Any] | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    verbs: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"system {self.name!r}: task must be one of {sorted(TASKS)}, got {self.task!r}")

    @property
    def package(self) -> str:
        """The top-level package of the system's code, whose log lines go where Detectron2's go."""
        return self.add_config.__module__.partition(".")[0]

    def has(self, part: str) -> bool:
        """Whether the system or its task has a part of this name."""
        return part in self.parts or part in TASKS[self.task].parts

    def part(self, part: str) -> Any:
        """A part: the system's own, else the task's.

        Raises:
            ValueError: neither has it.
        """
        own = {"mapper": self.mapper, "evaluator": self.evaluator}.get(part)
        if own is not None:
            return own
        if not self.has(part):
            having = [system.name for system in all_systems() if system.has(part)]
            raise ValueError(
                f"the system {self.name!r} has no {part!r} part"
                + (f"; {', '.join(having)} {'has' if len(having) == 1 else 'have'} one" if having else "")
            )
        return resolve({**TASKS[self.task].parts, **self.parts}[part])

    def default_config(self) -> CfgNode:
        """Detectron2's defaults with the trainer's, the task's and the system's keys."""
        cfg = get_cfg()
        resolve(TASKS[self.task].parts["config"])(cfg)
        self.add_config(cfg)
        return cfg


_systems: dict[str, System] = {}


def register_system(system: System) -> None:
    """Make a system known to every command. The same again, as by a notebook's cell run twice, is no fault.

    Raises:
        ValueError: another system has this name.
    """
    known = _systems.get(system.name)
    if known is not None and known.add_config.__module__ != system.add_config.__module__:
        raise ValueError(
            f"a system {system.name!r} is already registered by {known.add_config.__module__}: give yours another name"
        )
    _systems[system.name] = system


def find_system(name: str) -> System:
    """The system of a meta-architecture.

    Raises:
        ValueError: none is registered under this name.
    """
    if name not in _systems:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {name!r} is no system; there are {', '.join(sorted(_systems)) or 'none'}. "
            "`--import MODULE` names the module or file that registers another"
        )
    return _systems[name]


def all_systems() -> list[System]:
    """All registered systems, in the order of their registration."""
    return list(_systems.values())


def resolve(dotted: str) -> Any:
    """``"package.module:attribute"`` -> the attribute."""
    module, _, attribute = dotted.partition(":")
    return getattr(importlib.import_module(module), attribute)


# ------------------------------------------------------------------------------------------------------- --import
_imported: dict[str, ModuleType] = {}


def import_module(name: str) -> ModuleType:
    """Import the code that an ``--import`` names, once per process: it may register systems, parts and data sets.

    Args:
        name: a dotted name such as ``my_package.my_system``, or the path of a .py file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: there is no module of this name.
    """
    is_file = name.endswith(".py")
    key = str(Path(name).resolve()) if is_file else name  # another process may start elsewhere
    if key in _imported:
        return _imported[key]
    if is_file:
        module = _import_file(Path(name))
    else:
        if "." not in sys.path and "" not in sys.path:
            sys.path.insert(0, "")  # as `python -m` has it: modules of the current folder
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise  # the module is there, but something that it imports is not
            raise ValueError(
                f"--import {name}: there is no module of this name; give a dotted name that Python can import from "
                f"{Path.cwd()}, or the path of a .py file"
            ) from error
    _imported[key] = module
    return module


def _import_file(path: Path) -> ModuleType:
    """The module of a file, under the file's name, so that its classes can be pickled to other processes."""
    if not path.is_file():
        raise FileNotFoundError(f"--import {path} does not exist (looked for it from {Path.cwd()})")
    path = path.resolve()
    name = path.stem
    loaded = sys.modules.get(name)
    if loaded is not None:
        if getattr(loaded, "__file__", None) and Path(str(loaded.__file__)).resolve() == path:
            return loaded
        raise ValueError(f"--import {path}: a module {name!r} is already loaded from elsewhere; rename your file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        del sys.modules[name]
        raise ValueError(f"--import {path} is no Python: line {error.lineno}: {error.msg}; correct it") from error
    except BaseException:
        del sys.modules[name]
        raise
    return module


def imported_modules() -> list[str]:
    """What ``--import`` named so far, for processes that must import the same."""
    return list(_imported)


class WithImports:
    """A value that, unpickled in another process, comes with the modules that ``--import`` named in this one.

    Loader workers started by ``spawn`` or ``forkserver`` know nothing of them, and could not unpickle their classes.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        # Unpickled in this order: what is imported, then the value. The pickler is the caller's, which shares tensors.
        return _restored, (_Imports(), self.value)


class _Imports:
    """Unpickled, it imports what ``--import`` named in the process that pickled it."""

    def __reduce__(self) -> Any:
        return _import_all, (imported_modules(),)


def _import_all(modules: list[str]) -> None:
    for module in modules:
        import_module(module)


def _restored(imports: None, value: Any) -> WithImports:
    return WithImports(value)
