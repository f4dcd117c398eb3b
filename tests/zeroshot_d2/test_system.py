"""Systems and their parts, and the code that ``--import`` brings."""

import importlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from alignzeg_d2.predictor import AlignZegPredictor
from zeroshot_d2 import system
from zeroshot_d2.cli import import_systems
from zeroshot_d2.multilabel.mapper import MultiLabelMapper
from zeroshot_d2.segmentation.mapper import SegmentationMapper
from zeroshot_d2.segmentation.predictor import SegmentationPredictor
from zeroshot_d2.system import (
    TASKS,
    System,
    WithImports,
    all_systems,
    find_system,
    import_module,
    imported_modules,
    register_system,
    resolve,
)

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def registries_of_their_own(monkeypatch):
    """What a test registers and imports is forgotten, and what others have registered is not there."""
    import_systems()
    monkeypatch.setattr(system, "_systems", {name: system._systems[name] for name in ("AlignZeg", "Epsilon")})
    monkeypatch.setattr(system, "_imported", dict(system._imported))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.startswith("mine_")]:
        del sys.modules[name]


def add_config(cfg: CfgNode) -> None:
    cfg.MODEL.MINE = CfgNode({"WIDTH": 7})


def mine(**arguments: object) -> System:
    return System(**{"name": "Mine", "task": "segmentation", "add_config": add_config, **arguments})


# ---- the registry ----


def test_a_system_is_found_by_the_name_of_its_model():
    register_system(mine())
    assert find_system("Mine").task == "segmentation" and all_systems()[-1].name == "Mine"
    assert [s.name for s in all_systems()][:2] == ["AlignZeg", "Epsilon"]
    with pytest.raises(ValueError, match="'SAN' is no system; there are AlignZeg, Epsilon, Mine. `--import MODULE` names"):
        find_system("SAN")


def test_the_same_again_is_no_fault_and_another_is_refused():
    register_system(mine())
    register_system(mine(parts={"demo": "a:b"}))  # a cell that was changed and run again
    assert find_system("Mine").parts == {"demo": "a:b"}

    def elsewhere(cfg: CfgNode) -> None: ...

    elsewhere.__module__ = "somebody.elses"
    with pytest.raises(ValueError, match="a system 'Mine' is already registered by .*test_system: give yours another name"):
        register_system(mine(add_config=elsewhere))


def test_there_are_two_tasks():
    with pytest.raises(
        ValueError, match=r"system 'Mine': task must be one of \['multilabel', 'segmentation'\], got 'depth'"
    ):
        mine(task="depth")


# ---- parts ----


def test_parts_are_the_systems_own_or_the_tasks():
    assert mine().part("predictor") is SegmentationPredictor and mine(task="multilabel").part("mapper") is MultiLabelMapper
    assert find_system("AlignZeg").part("predictor") is AlignZegPredictor
    own = mine(parts={"predictor": "alignzeg_d2.predictor:AlignZegPredictor"})
    assert own.part("predictor") is AlignZegPredictor and own.part("mapper") is SegmentationMapper
    assert own.part("writer") is mine().part("writer")


def test_mapper_and_evaluator_may_be_functions():
    def build_mapper(cfg: CfgNode, *, is_train: bool) -> str:
        return f"mine, {is_train}"

    assert mine(mapper=build_mapper).part("mapper")(None, is_train=True) == "mine, True"
    assert mine(evaluator=build_mapper).part("evaluator") is build_mapper
    assert mine().part("evaluator").__module__ == "zeroshot_d2.segmentation.evaluation"


def test_a_part_that_a_system_lacks_says_who_has_it():
    assert find_system("AlignZeg").has("web_tab") and not mine().has("web_tab") and mine().has("mapper")
    with pytest.raises(ValueError, match="the system 'Mine' has no 'web_tab' part; AlignZeg, Epsilon have one"):
        mine().part("web_tab")
    with pytest.raises(ValueError, match="the system 'Mine' has no 'gauge' part$"):
        mine().part("gauge")
    register_system(mine(name="Other", parts={"gauge": "json:loads"}))
    with pytest.raises(ValueError, match="no 'gauge' part; Other has one"):
        mine().part("gauge")


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_every_part_of_every_task_is_there(task):
    for dotted in task.parts.values():
        assert resolve(dotted) is not None


@pytest.mark.parametrize("name", ["AlignZeg", "Epsilon"])
def test_every_part_of_every_system_is_there(name):
    pytest.importorskip("gradio", reason="the extra 'web' is not installed")
    for dotted in (*find_system(name).parts.values(), *find_system(name).verbs.values()):
        assert resolve(dotted) is not None


def test_parts_are_imported_when_they_are_used():
    lazy = mine(parts={"predictor": "nowhere.at.all:Predictor"})
    register_system(lazy)
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        lazy.part("predictor")


def test_the_config_has_the_keys_of_trainer_task_and_system():
    for task, key in (("segmentation", "COLOR_AUG_SSD"), ("multilabel", "CROP_SCALE")):
        cfg = mine(task=task).default_config()
        assert cfg.MODEL.MINE.WIDTH == 7 and "MAX_PIXELS" in cfg.INPUT and key in cfg.INPUT
    assert "MINE" not in find_system("AlignZeg").default_config().MODEL


def test_the_package_whose_log_lines_are_shown():
    assert find_system("AlignZeg").package == "alignzeg_d2"


# ---- --import ----


def write_module(folder: Path, name: str, text: str = "VALUE = 1\n") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_file_is_run_once(tmp_path):
    path = write_module(tmp_path, "mine_once.py", "import sys\nsys.runs = getattr(sys, 'runs', 0) + 1\n")
    try:
        first = import_module(str(path))
        assert import_module(str(path)) is first and sys.runs == 1 and first.__name__ == "mine_once"
        assert importlib.import_module("mine_once") is first
        assert imported_modules()[-1] == str(path)
    finally:
        del sys.runs


def test_a_relative_path_stays_the_same_file_elsewhere(tmp_path, monkeypatch):
    write_module(tmp_path, "mine_relative.py")
    monkeypatch.chdir(tmp_path)
    module = import_module("mine_relative.py")
    monkeypatch.chdir("/")
    assert imported_modules()[-1] == str(tmp_path / "mine_relative.py")
    assert import_module(str(tmp_path / "mine_relative.py")) is module


def test_a_dotted_name_may_lie_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "mine_package").mkdir()
    write_module(tmp_path / "mine_package", "__init__.py", "")
    write_module(tmp_path / "mine_package", "part.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    assert import_module("mine_package.part").VALUE == 1 and imported_modules()[-1] == "mine_package.part"


def test_names_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"--import absent\.py does not exist \(looked for it from {tmp_path}\)"):
        import_module("absent.py")
    for name in ("absent", "absent.part", "json.absent"):
        with pytest.raises(ValueError, match=rf"--import {name}: there is no module of this name; give a dotted name"):
            import_module(name)
    assert not set(imported_modules()) & {"absent", "absent.py", "json.absent"}


def test_what_an_imported_module_lacks_itself_is_not_blamed_on_the_option(tmp_path, monkeypatch):
    write_module(tmp_path, "mine_lacking.py", "import something_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    for name in ("mine_lacking", "mine_lacking.py"):
        with pytest.raises(ModuleNotFoundError, match="something_that_is_not_there"):
            import_module(name)


def test_a_file_that_fails_can_be_mended_and_imported_again(tmp_path):
    path = write_module(tmp_path, "mine_failing.py", "1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        import_module(str(path))
    assert "mine_failing" not in sys.modules
    write_module(tmp_path, "mine_failing.py")
    assert import_module(str(path)).VALUE == 1


def test_a_file_does_not_take_the_name_of_a_loaded_module(tmp_path):
    path = write_module(tmp_path, "json.py")
    with pytest.raises(ValueError, match=r"json\.py: a module 'json' is already loaded from elsewhere; rename your file"):
        import_module(str(path))
    import_module(str(write_module(tmp_path, "mine_twice.py")))
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="'mine_twice' is already loaded from elsewhere"):
        import_module(str(write_module(tmp_path / "other", "mine_twice.py")))


def test_a_file_that_was_imported_otherwise_is_not_run_again(tmp_path, monkeypatch):
    path = write_module(tmp_path, "mine_known.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert import_module(str(path)) is importlib.import_module("mine_known")


@pytest.mark.slow
def test_another_process_imports_the_same(tmp_path):
    """As a loader worker of spawn or forkserver: the class of the value is in a file that only ``--import`` named."""
    path = write_module(tmp_path, "mine_sent.py", "class Sent:\n    value = 7\n")
    sent = WithImports(import_module(str(path)).Sent())
    assert pickle.loads(pickle.dumps(sent)).value.value == 7
    (tmp_path / "sent.pickle").write_bytes(pickle.dumps(sent))
    program = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).value.value, 'mine_sent' in sys.modules)"
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "sent.pickle")],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["7", "True"], done.stderr
