"""``python -m zeroshot_d2 VERB``: verbs, their summaries, and faults as one sentence."""

import importlib
import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zeroshot_d2 import __main__ as program
from zeroshot_d2 import commands, system
from zeroshot_d2.__main__ import find_verb, main, summaries, summaries_of_systems, usage
from zeroshot_d2.cli import BUILT_IN, import_systems
from zeroshot_d2.system import System

REPOSITORY = Path(__file__).parents[2]
NEEDS_WEB = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="the extra 'web' is not installed")
VERBS = {"train", "predict", "export", "figures", "web", "check", "datasets", "demo", "save-pretrained", "push-to-hub"}


def test_every_command_is_a_verb_with_a_summary():
    found = summaries()
    assert set(found) >= VERBS
    for verb, text in found.items():
        module = importlib.import_module(f"{commands.__name__}.{verb.replace('-', '_')}")
        assert text == module.__doc__.splitlines()[0] and text.endswith(".")
        assert find_verb(verb) is module.main


@pytest.mark.parametrize(("words", "status"), [([], 2), (["-h"], 0), (["--help"], 0)])
def test_usage_lists_the_verbs(words, status, capsys):
    assert main(words) == status
    printed = capsys.readouterr().out
    assert printed.startswith("usage: python -m zeroshot_d2 VERB ...")
    for verb, text in (summaries() | summaries_of_systems()).items():
        assert f"  {verb:<15} {text}\n" in printed


def test_verbs_of_the_projects_systems_are_found_without_importing_them():
    import_systems()
    built_in = [each for each in system.all_systems() if each.package in BUILT_IN]
    known = {verb: dotted for each in built_in for verb, dotted in each.verbs.items()}
    found = summaries_of_systems()
    assert set(found) == set(known) and known
    for verb, text in found.items():
        module, _, function = known[verb].partition(":")
        assert text == importlib.import_module(module).__doc__.splitlines()[0] and text.endswith(".")
        assert find_verb(verb) is getattr(importlib.import_module(module), function)
    script = "import sys; from zeroshot_d2.__main__ import usage; usage(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and not any(f"'{package}'" in done.stdout for package in BUILT_IN)


def test_an_unknown_verb_is_named_and_the_others_are_shown(capsys):
    assert main(["predcit", "--model", "x"]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: there is no verb 'predcit'; did you mean predict?\n\n{usage()}\n" and not printed.out
    assert main(["bias-reprot"]) == 2 and "did you mean bias-report?" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [*sorted(VERBS - {"web"}), pytest.param("web", marks=NEEDS_WEB)])
def test_every_verb_has_help(verb, capsys):
    words = [verb, "--help"] if verb != "figures" else [verb, "top10", "--help"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    printed = capsys.readouterr().out
    assert ended.value.code == 0 and f"usage: python -m zeroshot_d2 {verb}" in printed and "--import" in printed


def test_a_system_may_bring_verbs(monkeypatch, tmp_path, capsys):
    import_systems()
    (tmp_path / "mine_verbs.py").write_text("def run(argv):\n    print(*argv)\n    return 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = System("Mine", "multilabel", lambda cfg: None, verbs={"mine": "mine_verbs:run"})
    monkeypatch.setattr(system, "_systems", {**system._systems, "Mine": own})
    assert main(["mine", "a", "b"]) == 7
    assert capsys.readouterr().out == "a b\n"


def test_a_verb_of_a_system_that_is_imported(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(system, "_systems", dict(system._systems))
    path = tmp_path / "mine_brings_a_verb.py"
    path.write_text(
        "from zeroshot_d2 import System, register_system\n"
        "def add(cfg): pass\n"
        "def run(argv): return 7\n"
        "register_system(System('MineOfMain', 'multilabel', add, verbs={'bring': 'mine_brings_a_verb:run'}))\n"
    )
    assert main(["bring"]) == 2 and "there is no verb 'bring'" in capsys.readouterr().err
    assert main(["bring", "--import", str(path)]) == 7
    assert main(["bring", "--import", str(tmp_path / "absent.py")]) == 2
    assert "--import" in capsys.readouterr().err


# ---- faults ----


@pytest.fixture
def verb(monkeypatch):
    """``verb(function)``: what the verb "try" does."""

    def use(function) -> None:
        monkeypatch.setattr(program, "find_verb", lambda name, *others: function if name == "try" else None)

    return use


def raising(error: BaseException):
    def function(argv: list[str]) -> int:
        raise error

    return function


@pytest.mark.parametrize("error", [ValueError("the class 'cat' is there twice"), FileNotFoundError("a.jpg does not exist")])
def test_a_fault_of_the_input_is_one_sentence(verb, error, capsys):
    verb(raising(error))
    assert main(["try"]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: {error}\n(--traceback shows where)\n" and not printed.out


def test_a_traceback_is_there_for_those_who_ask(verb):
    verb(raising(ValueError("twice")))
    with pytest.raises(ValueError, match="twice"):
        main(["try", "--traceback"])
    verb(lambda argv: len(argv))
    assert main(["try", "--traceback", "a"]) == 1  # the verb does not see the word


@pytest.mark.parametrize("error", [KeyError("ours"), ZeroDivisionError(), RuntimeError("cuda"), SystemExit(3)])
def test_a_mistake_of_ours_is_not_hidden(verb, error):
    verb(raising(error))
    with pytest.raises(type(error)):
        main(["try"])


def test_the_status_is_that_of_the_verb(verb):
    verb(lambda argv: 1)
    assert main(["try"]) == 1


def test_a_name_that_the_terminal_cannot_show_does_not_end_the_work(verb, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)

    def prints(argv: list[str]) -> int:
        print("★ Äpfel")
        return 0

    verb(prints)
    assert main(["try"]) == 0
    stream.flush()
    assert stream.buffer.getvalue().strip() == b"? ?pfel"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "--model", "absent", "--input", "a.jpg", "--output", "o"], "absent"),
        (["predict", "--config-file", "absent.yaml", "--input", "a.jpg"], "--config-file absent.yaml does not exist"),
        (["train", "--config-file", "absent.yaml"], "--config-file absent.yaml does not exist"),
        (["train"], "--config-file is missing; there is one per data set"),
        (["export", "--model", "absent", "--output", "a.onnx"], "absent"),
        (["figures", "nothing", "--output", "a.png"], "there is no figure 'nothing'; choose one of"),
        (["check", "nothing"], "no data set 'nothing' is registered"),
        (["demo", "--system", "Nothing"], "'Nothing' is no system; there are"),
        pytest.param(["web", "--model", "absent"], "absent", marks=NEEDS_WEB),
        (["datasets", "list", "--import", "absent.py"], "--import absent.py does not exist"),
    ],
)
def test_faults_of_every_verb(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed and "Traceback" not in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_it_starts_as_a_module(tmp_path):
    """In a process of its own, from anywhere."""
    done = subprocess.run(
        [sys.executable, "-m", "zeroshot_d2", "datasets", "list"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "demo_world_val" in done.stdout and "open_images_v4_test" in done.stdout
    assert "deprecated" not in done.stderr
