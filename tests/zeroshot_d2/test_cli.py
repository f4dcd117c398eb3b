"""The one command line: KEY VALUE pairs, configs by path and by name, models, vocabularies, and what is not understood."""

import argparse
import os
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg

from zeroshot_d2 import ClassSplit, system
from zeroshot_d2.cli import (
    BUILT_IN,
    Parser,
    add_model_arguments,
    add_vocabulary_arguments,
    config_file,
    config_keys,
    find_config,
    import_systems,
    load_config,
    model_config,
    peek,
    positive,
    set_vocabulary,
    split_keys,
    system_of,
    system_of_config,
)

CONFIGS = Path(__file__).parents[2] / "configs"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ---- KEY VALUE pairs ----


@pytest.mark.parametrize(
    ("words", "pairs"),
    [
        ("", ""),
        ("--input a.jpg", ""),
        ("--input a.jpg MODEL.DEVICE cpu", "MODEL.DEVICE cpu"),
        ("MODEL.DEVICE cpu SEED 3", "MODEL.DEVICE cpu SEED 3"),
        ("--input a b SOLVER.BASE_LR -1e-3", "SOLVER.BASE_LR -1e-3"),  # a value may look like an option
        ("a MODEL.WEIGHTS MODEL.DEVICE", "MODEL.WEIGHTS MODEL.DEVICE"),  # or like a key
        ("a DATASETS.TEST ('x',) MODEL.WEIGHTS ", "DATASETS.TEST ('x',) MODEL.WEIGHTS "),  # or be empty
        ("MODEL.DEVICE cpu --output o", ""),  # they end the line
        ("MODEL.DEVICE cpu --output o SEED 3", "SEED 3"),
        ("a.jpg MODEL.DEVICE", ""),  # no value
        ("a.jpg NO.SUCH thing", ""),  # no section of a config
        ("a.jpg model.device cpu", ""),
        ("a.jpg MODEL..DEVICE cpu", ""),
        ("--name A SEED 3", "SEED 3"),
    ],
)
def test_pairs_are_cut_off_the_end(words, pairs):
    words = words.split(" ") if words else []
    expected = pairs.split(" ") if pairs else []
    assert split_keys(words) == (words[: len(words) - len(expected)], expected)


# ---- arguments ----


def parser(**arguments: bool) -> Parser:
    made = Parser("prog", "What it does.", **arguments)
    made.add_argument("--input", nargs="+")
    made.add_argument("--output")
    return made


def test_arguments_keys_and_imports_together(tmp_path):
    module = write(tmp_path / "mine_cli_parsed.py", "")
    args = parser().parse(["--input", "a", "b", "--import", str(module), "--import", "json", "MODEL.DEVICE", "cpu"])
    assert args.input == ["a", "b"] and args.opts == ["MODEL.DEVICE", "cpu"] and args.modules == [str(module), "json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--outptu", "o"], "unrecognized arguments: --outptu o"),
        (["--out", "o"], "unrecognized arguments: --out o"),  # options are not abbreviated
        (["--output", "o", "NO.SUCH", "x"], "unrecognized arguments: NO.SUCH x"),
        (["--output", "o", "MODEL.DEVICE"], "unrecognized arguments: MODEL.DEVICE"),
        (["--output"], "argument --output: expected one argument"),
    ],
)
def test_what_is_not_understood_is_an_error(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        parser().parse(words)
    assert ended.value.code == 2 and f"prog: error: {message}" in capsys.readouterr().err


def test_a_command_without_a_config_takes_no_keys(capsys):
    with pytest.raises(SystemExit):
        parser(takes_keys=False).parse(["MODEL.DEVICE", "cpu"])
    assert "unrecognized arguments: MODEL.DEVICE cpu" in capsys.readouterr().err
    assert parser(takes_keys=False).parse([]).opts == []


def test_help_says_where_keys_go(capsys):
    for takes_keys in (True, False):
        with pytest.raises(SystemExit) as ended:
            parser(takes_keys=takes_keys).parse(["--help"])
        assert ended.value.code == 0
        assert ("KEY VALUE pairs at the end" in capsys.readouterr().out) is takes_keys


def test_imports_come_before_the_rest_is_looked_at(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--import .*absent\.py does not exist"):
        parser().parse(["--import", str(tmp_path / "absent.py")])


def test_peeking_takes_what_decides_about_the_other_options(tmp_path):
    config = write(tmp_path / "run/config.yaml", "MODEL: {META_ARCHITECTURE: Epsilon}")
    args = peek(["--strange", "x", "--model", str(tmp_path / "run"), "MODEL.DEVICE", "cpu"])
    assert args.model == tmp_path / "run" and args.config_file is None and system_of(args).name == "Epsilon"
    assert system_of(peek(["--config-file", str(config)])).name == "Epsilon"
    assert system_of(peek(["--config-file", "coco/alignzeg.yaml"])).name == "AlignZeg"
    assert system_of(peek(["--help"])) is None


def test_whole_numbers_from_one():
    assert positive("12") == 12
    for text in ("0", "-1", "1.5", "many", "", "²"):
        with pytest.raises(argparse.ArgumentTypeError, match="must be a positive whole number, got"):
            positive(text)


# ---- configs ----


def test_installed_configs_have_names():
    assert config_file("coco/alignzeg.yaml").samefile(CONFIGS / "coco/alignzeg.yaml")
    assert find_config("configs/coco/alignzeg.yaml").is_file()
    with pytest.raises(
        FileNotFoundError, match=r"there is no config 'coco/alingzeg\.yaml'; did you mean coco/alignzeg\.yaml"
    ):
        config_file("coco/alingzeg.yaml")
    with pytest.raises(FileNotFoundError, match="there is no config 'xyz'; see .*configs"):
        config_file("xyz")


def test_a_path_wins_over_a_name(tmp_path, monkeypatch):
    write(tmp_path / "coco/alignzeg.yaml", "MODEL: {META_ARCHITECTURE: Epsilon}")
    monkeypatch.chdir(tmp_path)
    assert find_config("coco/alignzeg.yaml") == Path("coco/alignzeg.yaml")
    assert find_config("demo/epsilon.yaml").samefile(CONFIGS / "demo/epsilon.yaml")
    with pytest.raises(
        FileNotFoundError, match=rf"--config-file nowhere\.yaml does not exist \(looked for it from {tmp_path}\)"
    ):
        find_config("nowhere.yaml")


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_names_its_system(path):
    import_systems()
    assert system_of_config(path).package in BUILT_IN


def test_python_gets_the_config_that_a_command_has(tmp_path):
    cfg = load_config("demo/alignzeg.yaml", ["SOLVER.MAX_ITER", 7, "DATASETS.TEST", ("a", "b")], weights=tmp_path / "w.pth")
    assert cfg.SOLVER.MAX_ITER == 7 and cfg.DATASETS.TEST == ("a", "b") and str(tmp_path / "w.pth") == cfg.MODEL.WEIGHTS
    assert cfg.MODEL.META_ARCHITECTURE == "AlignZeg" and not cfg.is_frozen()
    words = load_config("demo/alignzeg.yaml", ["SOLVER.MAX_ITER", "7", "DATASETS.TEST", "('a', 'b')"])
    assert words.SOLVER == cfg.SOLVER and words.DATASETS == cfg.DATASETS


def test_the_device_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_config("demo/alignzeg.yaml", ["MODEL.DEVICE", "cuda:1"]).MODEL.DEVICE == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load_config("demo/alignzeg.yaml", ["MODEL.DEVICE", "cuda:1"]).MODEL.DEVICE == "cuda:1"
    assert load_config("demo/alignzeg.yaml", ["MODEL.DEVICE", "cpu"]).MODEL.DEVICE == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert load_config("demo/alignzeg.yaml", ["MODEL.DEVICE", "mps"]).MODEL.DEVICE == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="MODEL.DEVICE is mps, which this machine does not have: set it to cpu"):
        load_config("demo/alignzeg.yaml", ["MODEL.DEVICE", "mps"])


def test_a_config_of_a_system_that_a_module_brings(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "_systems", dict(system._systems))  # it is forgotten again
    module = write(
        tmp_path / "mine_cli_system.py",
        "from detectron2.config import CfgNode\n"
        "from zeroshot_d2 import System, register_system\n"
        "def add(cfg): cfg.MODEL.MINE = CfgNode({'WIDTH': 7})\n"
        "register_system(System('MineOfCli', 'multilabel', add))\n",
    )
    config = write(tmp_path / "mine.yaml", "MODEL: {META_ARCHITECTURE: MineOfCli, MINE: {WIDTH: 8}}")
    with pytest.raises(ValueError, match="'MineOfCli' is no system; there are .* `--import MODULE`"):
        load_config(config)
    cfg = load_config(config, modules=[str(module)])
    assert cfg.MODEL.MINE.WIDTH == 8 and cfg.TEST.TOP_K == (3, 5)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.BASE_LR"], "KEY VALUE pairs come in twos, got SOLVER.BASE_LR"),
        (["SOLVER.BASE_LRR", 1], "there is no key SOLVER.BASE_LRR; did you mean SOLVER.BASE_LR"),
        (["MODEL.EPSILON.NUM_GROUPS", 1], "there is no key MODEL.EPSILON"),
        (["MODEL.ALIGNZEG.PBC.GAMA", 1], "there is no key .*GAMA; did you mean MODEL.ALIGNZEG.PBC.GAMMA"),
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER must be a whole number such as 600, got many"),
        (["SOLVER", 3], "SOLVER is a section of keys"),
    ],
)
def test_faulty_pairs_are_named(opts, message):
    with pytest.raises(ValueError, match=message):
        load_config("demo/alignzeg.yaml", opts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: {META_ARCHITECTURE: AlignZeg}\nSOLVER: {BASE_LRR: 1}", "there is no key SOLVER.BASE_LRR; did you mean"),
        (
            "MODEL: {META_ARCHITECTURE: AlignZeg}\nSOLVER: {MAX_ITER: many}",
            "MAX_ITER must be a whole number such as 20000, got many",
        ),
        ("MODEL: {WEIGHTS: a.pth}", "names no MODEL.META_ARCHITECTURE, which says whose keys it has"),
        ("MODEL: 3", "names no MODEL.META_ARCHITECTURE"),
        ("MODEL:", "names no MODEL.META_ARCHITECTURE"),
        ("MODEL: {META_ARCHITECTURE: [AlignZeg]}", "names no MODEL.META_ARCHITECTURE"),
        ("- a\n- b\n", "holds list values, not KEY: value lines"),
        ("3", "holds int values, not KEY: value lines"),
        ("", "names no MODEL.META_ARCHITECTURE"),
        ("MODEL: {META_ARCHITECTURE: Mask2Former}", "'Mask2Former' is no system; there are"),
        ("MODEL: {META_ARCHITECTURE", "is no plain YAML"),
        ("_BASE_: absent.yaml\nMODEL: {META_ARCHITECTURE: AlignZeg}", r"cannot be read: .*absent\.yaml"),
        ("_BASE_: run.yaml\nMODEL: {META_ARCHITECTURE: AlignZeg}", "its _BASE_ leads back to it"),
    ],
)
def test_faulty_files_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        load_config(write(tmp_path / "run.yaml", text))
    assert "run.yaml" in str(error.value) or "Mask2Former" in message


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match=r"the config .*run\.yaml"):
        load_config(tmp_path / "run.yaml")


TAGS = [
    "!!python/object/apply:os.mkdir [{folder}]",
    "!!python/object/new:os.mkdir [{folder}]",
    "!!python/name:os.mkdir",
    "!!python/module:os",
]


@pytest.mark.parametrize("where", ["file", "base", "key"])
@pytest.mark.parametrize("tag", TAGS)
def test_code_in_a_config_is_refused_and_not_run(tmp_path, tag, where):
    made = tmp_path / "made"
    evil = f"MODEL: {{META_ARCHITECTURE: AlignZeg}}\nOUTPUT_DIR: {tag.format(folder=made)}\n"
    if where == "key":
        cfg = load_config("demo/alignzeg.yaml", ["OUTPUT_DIR", tag.format(folder=made)])
        assert tag.format(folder=made) == cfg.OUTPUT_DIR  # a text like any other
    else:
        path = write(tmp_path / "evil.yaml", evil)
        if where == "base":
            path = write(tmp_path / "run.yaml", "_BASE_: evil.yaml\nMODEL: {META_ARCHITECTURE: AlignZeg}\n")
        with pytest.raises(ValueError, match=r"the config .*evil.yaml is no plain YAML.* tags that run Python code are"):
            load_config(path)
    assert not made.exists()


def test_a_value_is_not_evaluated(tmp_path):
    word = f"__import__('os').mkdir({str(tmp_path / 'made')!r})"
    assert word == load_config("demo/alignzeg.yaml", ["OUTPUT_DIR", word]).OUTPUT_DIR
    assert not (tmp_path / "made").exists()


def test_keys_of_a_config():
    cfg = CfgNode({"A": 1, "B": {"C": 2, "D": {"E": 3}}})
    assert config_keys(cfg) == {"A", "B.C", "B.D.E"}
    assert "SOLVER.BASE_LR" in config_keys(get_cfg())


# ---- models ----


def model_arguments(*words: str, prefix: str = "") -> argparse.Namespace:
    made = Parser("prog", None)
    add_model_arguments(made, prefix)
    return made.parse(words)


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A folder with the files of a finished run, and a config beside it; the current folder is that of both."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(CONFIGS / "demo/epsilon.yaml", tmp_path / "epsilon.yaml")
    write(tmp_path / "run/config.yaml", "MODEL: {META_ARCHITECTURE: Epsilon, WEIGHTS: ''}\nOUTPUT_DIR: elsewhere\n")
    write(tmp_path / "run/model_final.pth", "")
    write(tmp_path / "other.pth", "")
    return tmp_path / "run"


def test_a_folder_is_a_model(run):
    cfg = model_config(model_arguments("--model", "run", "SOLVER.MAX_ITER", "7"))
    assert os.path.join("run", "model_final.pth") == cfg.MODEL.WEIGHTS and cfg.SOLVER.MAX_ITER == 7
    assert model_config(model_arguments("--model", "run", "--weights", "other.pth")).MODEL.WEIGHTS == "other.pth"
    cfg = model_config(model_arguments("--model", "run", "--config-file", "epsilon.yaml"))
    assert cfg.OUTPUT_DIR != "elsewhere" and os.path.join("run", "model_final.pth") == cfg.MODEL.WEIGHTS
    prefixed = model_arguments("--compare-model", "run", prefix="compare-")
    assert os.path.join("run", "model_final.pth") == model_config(prefixed, "compare-").MODEL.WEIGHTS
    assert model_config(model_arguments("--model", "run"), opts=["SEED", 3]).SEED == 3


def test_a_config_has_weights_of_its_own_or_those_of_its_run(run):
    words = ("--config-file", "epsilon.yaml")
    assert os.path.join("run", "model_final.pth") == model_config(model_arguments(*words, "OUTPUT_DIR", "run")).MODEL.WEIGHTS
    assert model_config(model_arguments(*words, "MODEL.WEIGHTS", "other.pth")).MODEL.WEIGHTS == "other.pth"
    assert model_config(model_arguments(*words, "--weights", "other.pth")).MODEL.WEIGHTS == "other.pth"


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ((), ValueError, "which model. Give --model FOLDER, or --config-file FILE and --weights FILE"),
        (("--weights", "other.pth"), ValueError, "which model"),
        (("--model", "absent"), FileNotFoundError, r"--model absent is no folder \(looked for it from "),
        (("--model", "other.pth"), FileNotFoundError, "--model other.pth is no folder"),
        (("--model", "run", "--weights", "absent.pth"), FileNotFoundError, r"--weights absent\.pth do not exist"),
        (("--config-file", "absent.yaml"), FileNotFoundError, r"--config-file absent\.yaml does not exist"),
        (("--config-file", "epsilon.yaml", "OUTPUT_DIR", "new"), FileNotFoundError, "--weights new.model_final.pth do not"),
        (("--model", "run", "--weights", "https://a/b.pth"), ValueError, "is an address: download the file, look it over"),
        (("--config-file", "epsilon.yaml", "MODEL.WEIGHTS", "https://a/b.pth"), ValueError, "is an address"),
        (("--model", "run", "SOLVER.MAX_ITR", "3"), ValueError, "there is no key SOLVER.MAX_ITR; did you mean"),
    ],
)
def test_models_that_are_not_there(run, words, error, message):
    with pytest.raises(error, match=message):
        model_config(model_arguments(*words))


def test_a_folder_without_a_config(run):
    (run / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"run.config\.yaml does not exist"):
        model_config(model_arguments("--model", "run"))


# ---- vocabularies ----


class Stub:
    """A predictor, as far as its vocabulary goes."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, object]] = []

    def set_vocabulary(self, names, unseen=None) -> ClassSplit:
        self.calls.append((names, unseen))
        if isinstance(names, ClassSplit):
            return names
        return ClassSplit(names or ["cat", "dog"], unseen or ["dog"])


def vocabulary_arguments(*words: str) -> argparse.Namespace:
    made = Parser("prog", None)
    add_vocabulary_arguments(made)
    return made.parse(words)


def test_vocabularies_of_the_command_line(tmp_path):
    stub = Stub()
    assert set_vocabulary(stub, vocabulary_arguments()).names == ("cat", "dog") and stub.calls == [(None, None)]
    classes = write(tmp_path / "classes.txt", "sky\n# no\ntree|bush\n")
    split = set_vocabulary(stub, vocabulary_arguments("--vocabulary", str(classes), "--unseen", "sky, tree|bush"))
    assert stub.calls[-1] == (["sky", "tree|bush"], ["sky", "tree|bush"]) and len(split) == 2
    split = set_vocabulary(stub, vocabulary_arguments("--vocabulary", "a, b", "--unseen", "b", "--unseen-only"))
    assert split == ClassSplit(["b"], ["b"]) and stub.calls[-1] == (split, None)
