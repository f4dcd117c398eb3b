"""The documentation: the site, its links, every command on its pages, names of code, the model zoo and quoted errors.

Every command, in a code block or in the text, is accepted by the parser that it calls, and its config can be built. Those of
README.md, getting_started.md, epsilon.md, custom_data.md and house.md are also run here, with the demo's config where a page
has one for photographs; the tests of predict, export, pictures and the web page run those of their pages.
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import glob
import html.parser
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from torch.distributed.run import get_args_parser as torchrun_parser

from alignzeg_d2.inference import POSTPROCESSOR_REGISTRY
from alignzeg_d2.modeling.pixel_decoder import PIXEL_DECODER_REGISTRY
from epsilon_d2 import demo as epsilon_demo
from zeroshot_d2 import __main__ as program
from zeroshot_d2 import load_config
from zeroshot_d2 import system as systems
from zeroshot_d2.cli import BUILT_IN, Parser, config_keys, import_systems, system_of
from zeroshot_d2.commands import train
from zeroshot_d2.demo_world import register_demo_world, register_demo_world_multilabel
from zeroshot_d2.images import write_image
from zeroshot_d2.storage import write_json

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "docs/*.md",
        "datasets/*.md",
        "notebooks/*.md",
    )
    for path in ROOT.glob(pattern)
)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


# ---- the site ----


class Resources(html.parser.HTMLParser):
    """What a page loads, and the pages that it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "a" and named.get("href"):
            self.linked.append(named["href"] or "")
        elif tag == "link" and named.get("rel") not in ("next", "prev"):
            self.loaded.append(named["href"] or "")
        elif named.get("src"):
            self.loaded.append(named["src"] or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` does; a warning is an error."""
    build = pytest.importorskip("mkdocs.commands.build").build
    load_site_config = pytest.importorskip("mkdocs.config").load_config
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        build(load_site_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_every_page_is_on_the_site(site: Path) -> None:
    for page in set(PAGES) - {"README.md"}:
        name = page.removeprefix("docs/").removesuffix("README.md").removesuffix(".md")
        assert (site / f"{name}index.html" if name.endswith("/") else site / f"{name}.html").is_file(), page


def test_the_site_loads_and_links_to_files_of_its_own(site: Path) -> None:
    for path in site.rglob("*.html"):
        found = Resources(path.read_text(encoding="utf-8"))
        assert len(found.loaded) > 2 and len(found.linked) > 2
        folder = site if path.name == "404.html" else path.parent
        for target in (*found.loaded, *(link for link in found.linked if not link.startswith(("http", "#")))):
            assert (folder / target.partition("#")[0].lstrip("/")).exists(), f"{path.name}: {target}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


# ---- links, as a code host follows them ----

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"(?:^ {4}.+\n+)+", re.M)


def anchors(page: Path) -> set[str]:
    """Names of the headings of a page, as code hosts and the site make them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", read(page))):
        if not link.startswith("https://"):
            name, _, anchor = link.partition("#")
            target = (ROOT / page).parent / name if name else ROOT / page
            assert target.exists(), f"{page}: {link}"
            assert not anchor or anchor in anchors(target), f"{page}: {link}"


# ---- commands ----

PROGRAMS = ("python", "zeroshot-d2", "make", "pip", "torchrun", "pre-commit", "source", "export", "ls", "srun", "ssh")
COMMAND = re.compile(rf"(?:[A-Z_]+=\S* )*(?:{'|'.join(PROGRAMS)}) .+")
# Of a command that is neither a program of this repository nor reached by `accept`: why it is not checked.
NOT_CHECKED = {
    "source .venv/bin/activate": "a shell's own",
    "export DETECTRON2_DATASETS=/path/to/datasets": "a shell's own",
    "pip install torch torchvision": "needs a network",
    "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2": "needs a network and a compiler",
    "pip install pycurl": "needs a network",
    "pip install rasterio": "needs a network",
    "pip freeze": "pip's own",
    "pip install pip-audit": "needs a network",
    "pip uninstall opencv-python": "pip's own",
    "pre-commit install": "pre-commit's own",
    "python -m zeroshot_d2 predict --model hub:owner/name --input photos/ --output out": "needs the Hub; it is run in "
    "tests/zeroshot_d2/commands/test_pretrained.py",
    "ssh -L 7860:127.0.0.1:7860 server": "needs a server",
    "ls SegmentationClassAug | sed 's/.png$//' | grep -vxFf ImageSets/Segmentation/val.txt "
    "> ImageSets/Segmentation/trainaug.txt": "needs the labels; its answer is that of tests/test_releases.py",
}
# Of a command on a page whose commands are run here: why it is not run.
NOT_RUN = {
    "make setup": "it makes the environment that the tests run in",
    "make demo": "tests/test_demo_script.py and test_demo.py of each system run what it starts",
    "make test": "it is what runs this test",
    "python scripts/install_detectron2.py": "it makes the environment that the tests run in",
    "pip install -e '.[opencv,demo]'": "it makes the environment that the tests run in",
    "pip install -e '.[opencv,demo,web,dev]'": "it makes the environment that the tests run in",
}


class Block(NamedTuple):
    language: str  # "python", "yaml", or "bash" for anything that may hold commands
    code: str
    file: str  # the name that the page gives the block, if any


# <!-- file: NAME --> ahead of a block, with at most one other comment between them
NAMED = re.compile(r"<!-- file: (\S+) -->\n(?:<!-- .*? -->\n)?\Z")


def blocks(page: str) -> list[Block]:
    """The code blocks of a page, in order: fenced, or indented by four spaces."""
    text = read(page)
    found = []
    for match in FENCED.finditer(text):
        named = NAMED.search(text[: match.start()])
        found.append((match.start(), Block(match[1] or "bash", match[2], named[1] if named else "")))
    outside = FENCED.sub(lambda match: " " * len(match[0]), text)
    for match in INDENTED.finditer(outside):
        code = textwrap.dedent(match[0])
        found.append((match.start(), Block("python" if re.match(r"import |from ", code) else "bash", code, "")))
    assert {block.language for _, block in found} <= {"bash", "python", "yaml"}, page
    return [block for _, block in sorted(found)]


def write_files(page: str, folder: Path) -> None:
    """The blocks that a page gives a file name, as these files."""
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.code, encoding="utf-8")


def commands(code: str) -> list[str]:
    """The commands of a shell block, comments and line breaks taken out; file trees and the like have none."""
    lines = re.sub(r" *\\\n *", " ", code).splitlines()
    return [re.sub(r" +#.*", "", line).strip() for line in lines if COMMAND.match(line)]


def commands_in_the_text(page: str) -> Iterator[str]:
    """Commands with arguments between backticks."""
    text = INDENTED.sub("", FENCED.sub("", read(page)))
    for code in re.findall(r"`([^`]+)`", text):
        code = " ".join(code.split())
        if COMMAND.fullmatch(code):
            yield code


def all_commands(page: str) -> list[str]:
    shell = "\n".join(block.code for block in blocks(page) if block.language == "bash")
    return list(dict.fromkeys([*commands(shell), *commands_in_the_text(page)]))


class ParsedArguments(Exception):
    pass


def parsed(main: Callable[[list[str]], object], arguments: list[str]) -> argparse.Namespace:
    """What the parser of ``main`` makes of ``arguments``; nothing after the parsing runs. SystemExit: it refuses them."""
    parse, parse_args = Parser.parse, argparse.ArgumentParser.parse_args

    def stop(parser: Parser, argv: Any = None) -> None:
        raise ParsedArguments(parse(parser, argv))

    def stop_plain(parser: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        found = parse_args(parser, args, namespace)
        if isinstance(parser, Parser):  # within Parser.parse
            return found
        raise ParsedArguments(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parser, "parse", stop)
        patch.setattr(argparse.ArgumentParser, "parse_args", stop_plain)
        patch.setattr(sys, "argv", ["program", *arguments])
        with pytest.raises(ParsedArguments) as caught:
            main(arguments)
    return caught.value.args[0]


def main_of(script: str) -> Callable[[list[str]], object]:
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda arguments: module.main()


def main_of_module(name: str) -> Callable[[list[str]], object]:
    is_package = importlib.util.find_spec(name).submodule_search_locations is not None  # type: ignore[union-attr]
    module = importlib.import_module(f"{name}.__main__" if is_package else name)
    return lambda arguments: module.main()


def accept(words: list[str]) -> None:
    """Check a command without running it; "..." stands for arguments that the page has shown before. A training leaves its
    config in the current folder, for later commands, and so does a model that is saved.

    Raises:
        Exception, SystemExit: something that it names does not exist, or its parser refuses it.
    """
    while "=" in words[0]:  # an environment variable
        words = words[1:]
    match [word for word in words if word != "..."]:
        case ["make", *rest]:
            targets = re.findall(r"^([\w-]+):", read("Makefile"), re.M)
            assert {word for word in rest if "=" not in word} <= set(targets)
        case ["pip", "install", "-e", what]:
            scope: dict[str, Any] = {}
            (extras,) = re.findall(r"^EXTRAS_REQUIRE = \{.*?^\}", read("setup.py"), re.M | re.S)
            exec(extras, scope)
            assert set(re.fullmatch(r"\.\[(.+)\]", what)[1].split(",")) <= set(scope["EXTRAS_REQUIRE"])  # type: ignore[index]
        case ["python", "train_net.py", *arguments]:
            accept_verb("train", arguments)
        case ["zeroshot-d2", *arguments]:
            assert "zeroshot-d2=zeroshot_d2.__main__:main" in read("setup.py")
            accept(["python", "-m", "zeroshot_d2", *arguments])
        case ["python", "-m", "zeroshot_d2"] | ["python", "-m", "zeroshot_d2", "--help" | "VERB"]:
            pass
        case ["python", "-m", "zeroshot_d2", verb, *arguments]:
            accept_verb(verb, arguments)
        case ["python", "-m", module]:
            main_of_module(module)
        case ["python", "-m", module, *arguments]:
            parsed(main_of_module(module), arguments)
        case ["python", script]:
            assert (ROOT / script).is_file()
        case ["python", script, *arguments]:
            parsed(main_of(script), arguments)
        case ["torchrun", *arguments]:
            args = torchrun_parser().parse_args(arguments)
            accept(["python", args.training_script, *args.training_script_args])
        case ["srun", "bash", "-c", script]:  # Slurm's variables are numbers and addresses
            accept(shlex.split(re.sub(r"\\?\$\w+", "1", script)))
        case _:
            raise AssertionError(f"{shlex.join(words)}: neither checked nor in NOT_CHECKED")


def accept_verb(verb: str, arguments: list[str]) -> None:
    """:func:`accept` of ``python -m zeroshot_d2 VERB ...``: its arguments, its models' configs and its KEY VALUE pairs."""
    main = program.find_verb(verb, arguments)
    assert main is not None, f"there is no verb {verb!r}"
    if not arguments:  # a verb that the text speaks of
        return
    args = parsed(main, arguments)
    opts = getattr(args, "opts", [])
    assert getattr(args, "action", "") != "prepare", "no such preparation: each has a parser of its own"
    if verb == "demo":
        named = [systems.find_system(args.system)] if args.system else systems.all_systems()
        configs = [f"demo/{system.name.lower()}.yaml" for system in named if system.has("demo")]
    else:
        configs = [args.config_file or "demo/alignzeg.yaml"] if verb == "train" else [getattr(args, "config_file", None)]
        configs += [getattr(args, "compare_config_file", None)]
        folders = getattr(args, "model", None), getattr(args, "compare_model", None)
        for folder in [folder for some in folders for folder in (some if isinstance(some, list) else [some])]:
            configs += [folder / "config.yaml"] if folder is not None else []
    loaded = [load_config(file) for file in configs if file is not None]
    pairs = list(zip(opts[::2], opts[1::2], strict=True))
    for key, value in pairs:  # a page with several models hands a pair to those that have the key
        fitting = [cfg for cfg in loaded if key in config_keys(cfg)]
        assert fitting, f"no model has a key {key}"
        for cfg in fitting:
            cfg.merge_from_list([key, value])
    if (verb == "train" and args.config_file) or verb == "save-pretrained":
        config = (args.output if verb == "save-pretrained" else Path(loaded[0].OUTPUT_DIR)) / "config.yaml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.unlink(missing_ok=True)
        config.write_text(loaded[0].dump(), encoding="utf-8")


@pytest.fixture
def forgotten(tmp_path: Path) -> Iterator[None]:
    """What a test registers, and what it --imports from its folder, is gone afterwards: other pages use the same names."""
    before = set(DatasetCatalog.list())
    with pytest.MonkeyPatch.context() as patch:
        for holder, name in (
            *((registry, "_obj_map") for registry in (META_ARCH_REGISTRY, PIXEL_DECODER_REGISTRY, POSTPROCESSOR_REGISTRY)),
            *((systems, "_systems"), (systems, "_imported")),
        ):
            patch.setattr(holder, name, dict(getattr(holder, name)))
        yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: None) -> Path:
    """The current folder: a checkout after ``make demo`` (its configs alone), and the files that the pages speak of."""
    for name in ("configs", "datasets", "docs", "notebooks", "scripts", "train_net.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    for folder, config in (("output/demo", "alignzeg.yaml"), ("output/demo/epsilon", "epsilon.yaml")):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "config.yaml").symlink_to(ROOT / "configs/demo" / config)
    for folder in ("thresholds", "tag_thresholds"):  # what `calibrate` writes
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "thresholds.json").write_text('{"threshold": 0.5}', encoding="utf-8")
    for page in PAGES:
        write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_accepted(page: str, reader: Path) -> None:
    for command in all_commands(page):
        if command not in NOT_CHECKED:
            try:
                accept(shlex.split(command))
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{page}: {command}") from error


def test_exceptions_are_commands_of_the_pages() -> None:
    assert {*NOT_CHECKED, *NOT_RUN} <= {command for page in PAGES for command in all_commands(page)}


def test_fenced_shell_blocks_hold_commands_only() -> None:
    for page in PAGES:
        for language, code in FENCED.findall(read(page)):
            if language == "bash":
                lines = [line for line in re.sub(r"\\\n", "", code).splitlines() if line and not line.startswith("#")]
                assert len(commands(code)) == len(lines), f"{page}:\n{code}"


@pytest.mark.parametrize(
    "command",
    [
        "python train_net.py --config-file configs/nowhere.yaml",
        "python train_net.py --config-file configs/demo/alignzeg.yaml NO.SUCH_KEY 1",
        "python -m zeroshot_d2 train --config-file configs/demo/alignzeg.yaml MODEL.NO_SUCH_KEY 1",
        "python -m zeroshot_d2 train --config-file configs/demo/alignzeg.yaml --import nowhere.py",
        "python -m zeroshot_d2 predict --model output/demo --weight model.pth --input a.jpg",
        "python -m zeroshot_d2 predict --model output/demo --input a.jpg --top-k 5",
        "python -m zeroshot_d2 predict --input a.jpg --pictures",
        "python -m zeroshot_d2 web --model output/demo MODEL.EPSILON.NUM_GROUPS 8",
        "python -m zeroshot_d2 figures no-such-figure --model output/demo --output a.png",
        "python -m zeroshot_d2 datasets prepare no_such_release",
        "python -m zeroshot_d2 prediction a.jpg",
        "python -m zeroshot_d2 VERBS",
        "python -m alignzeg_d2.predict a.jpg",
        "python datasets/prepare_nus_wide.py --no-such-option",
        "pip install -e '.[no_such_extra]'",
        "make coffee",
        "curl example.org",
    ],
)
def test_wrong_commands_are_not_accepted(command: str, reader: Path) -> None:
    with pytest.raises((Exception, SystemExit)):
        accept(shlex.split(command))


def test_every_verb_is_documented() -> None:
    shown = {
        command.split()[3]
        for page in PAGES
        for command in all_commands(page)
        if command.startswith("python -m zeroshot_d2 ")
    }
    assert set(program.summaries()) <= shown


# ---- commands that run ----

# Photographs, GPUs and pretrained weights are not at hand: the same commands with the demo world's config and checkpoint.
IN_THE_DEMO = {
    "coco/alignzeg.yaml": "demo/alignzeg.yaml",
    "voc/alignzeg.yaml": "demo/alignzeg.yaml",
    "nus_wide/epsilon.yaml": "demo/epsilon.yaml",
    "open_images/epsilon.yaml": "demo/epsilon.yaml",
    "--num-gpus 8": "--num-gpus 1",
    " model_final.pth": " output/demo/model_final.pth",
    '"model_final.pth"': '"output/demo/model_final.pth"',
    '"image.jpg"': '"photo.jpg"',
}
EPSILON_WEIGHTS = "output/demo/epsilon/model_final.pth"


def in_the_demo(code: str) -> str:
    for text, instead in IN_THE_DEMO.items():
        code = code.replace(text, instead)
    return code.replace(" output/demo/model_final.pth", f" {EPSILON_WEIGHTS}") if "epsilon.yaml" in code else code


@pytest.fixture(scope="module")
def small_sets() -> None:
    """Eight images each, to train and to test."""
    for vocabulary in ("seen", "all"):
        register_demo_world(f"docs_{vocabulary}", seed=41, num_images=8, vocabulary=vocabulary)
        register_demo_world_multilabel(f"docs_multilabel_{vocabulary}", seed=41, num_images=8, vocabulary=vocabulary)


def shortened(system: str) -> list[str]:
    """KEY VALUE pairs of a training of two iterations on eight images."""
    sets = {"AlignZeg": "docs", "Epsilon": "docs_multilabel"}[system]
    return [
        *("DATASETS.TRAIN", f"('{sets}_seen',)", "DATASETS.TEST", f"('{sets}_all',)", "DATALOADER.NUM_WORKERS", "0"),
        *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_EPOCHS", "0", "SOLVER.MAX_ITER", "2"),
    ]


def run(command: str) -> None:
    """Run a command in this process. Trainings are short and never overwrite the checkpoints of the demo."""
    words = [word for word in shlex.split(in_the_demo(command)) if word != "..."]
    match words:
        case ["python", "train_net.py", *arguments] | ["python", "-m", "zeroshot_d2", "train", *arguments]:
            args = train.parser().parse(arguments)
            system = system_of(args)
            assert system is not None
            arguments += shortened(system.name)
            if "OUTPUT_DIR" not in args.opts:
                arguments += ["OUTPUT_DIR", "output/documented"]
            if args.resume:
                arguments += ["SOLVER.MAX_ITER", "3"]
            verb(["train", *arguments])
        case ["python", "-m", "zeroshot_d2", "demo", "--system", "Epsilon"]:
            verb(["demo", "--system", "Epsilon", "--output", "output/documented", *shortened("Epsilon")])
        case ["python", "-m", "zeroshot_d2", *arguments] | ["zeroshot-d2", *arguments]:
            verb(arguments)
        case _:
            raise AssertionError(f"{command}: neither run nor in NOT_RUN")


def verb(words: Sequence[str]) -> None:
    assert program.main(["--traceback", *words]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/getting_started.md", "docs/epsilon.md"])
def test_commands_and_python_of_the_page(
    page: str, user_folder: Path, small_sets: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in user_folder.iterdir():
        if path.name not in ("output", "photos"):
            Path(path.name).symlink_to(path)
    Path("photos").mkdir()
    Path("photos/a.jpg").symlink_to(user_folder / "photos/a.jpg")
    for folder in ("output/demo", "output/demo/epsilon"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in ("model_final.pth", "config.yaml"):
            (Path(folder) / name).symlink_to((user_folder / folder / name).resolve())
    Path("names.txt").write_text("plain red tile\ndark water|dark sea\n", encoding="utf-8")
    monkeypatch.setattr(epsilon_demo, "TEST_SET", "docs_multilabel_all")
    monkeypatch.setattr(epsilon_demo.Demo, "OPTIONS", ("DATASETS.TEST", "('docs_multilabel_all',)"))
    scope: dict[str, Any] = {}
    for block in blocks(page):
        if block.language == "python":
            exec(in_the_demo(block.code), scope)
            continue
        for command in commands(block.code):
            if command not in NOT_RUN and command not in NOT_CHECKED:
                run(command)
    assert (tmp_path / "output/documented/results.json").is_file()


def results(folder: str, dataset: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))[dataset]


@pytest.mark.slow
def test_the_answers_of_the_house(
    forgotten: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/house.md from top to bottom, in a folder with nothing but its files."""
    monkeypatch.chdir(tmp_path)
    write_files("docs/house.md", tmp_path)
    for block in blocks("docs/house.md"):
        if block.language == "python" and not block.file:
            exec(block.code, {})
        elif block.language == "bash":
            for command in commands(block.code):
                program_name, *words = shlex.split(command)
                assert (program_name, *words[:2]) == ("python", "-m", "zeroshot_d2")
                keys = ["DATALOADER.NUM_WORKERS", "0"] if words[2] == "train" else []
                verb([*words[2:], *keys])
    assert Path("output/check/my_train/sheet.png").is_file()
    for folder in ("my_data", "my_system", "my_decoder", "my_postprocessor", "my_metric"):
        found = results(f"output/{folder}", "my_val")
        assert found["protocol"] == "GZS3" and found["num_images"] == 8
    # The postprocessor favours unseen classes and pays for it with seen ones; the metric adds a number and changes none.
    plain, stacked, worst = (results(f"output/my_{name}", "my_val") for name in ("data", "postprocessor", "metric"))
    assert stacked["mIoU_seen"] < plain["mIoU_seen"]
    unseen = [worst["IoU"][name] for name in MetadataCatalog.get("my_val").class_split.unseen]
    assert worst.pop("worst_unseen_IoU") == min(iou for iou in unseen if iou is not None)
    assert worst == plain
    system = Path("output/my_system")
    vocabulary = json.loads((system / "predictions/vocabulary.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in vocabulary] == ["red tile", "green tile", "water"]
    assert len(list((system / "predictions").glob("*_overlay.png"))) == 8 and (system / "examples.png").is_file()
    assert len(re.findall(r"^tiles/images/\d\.png: \d+%$", capsys.readouterr().out, re.M)) == 8


# ---- your own data ----


def small_camvid(folder: Path) -> None:
    """A CamVid of two images."""
    for part, values in (("train", [0, 3, 8, 11]), ("val", [1, 5, 7, 10])):
        for kind, pixels in (("images", np.zeros((64, 64, 3))), ("labels", np.repeat(values, 1024).reshape(64, 64))):
            write_image(folder / kind / part / "0001.png", pixels.astype(np.uint8))


def pairs(node: CfgNode, prefix: str) -> list[str]:
    """The leaves below a node as KEY VALUE pairs."""
    found = []
    for key, value in node.items():
        found += pairs(value, f"{prefix}.{key}") if isinstance(value, dict) else [f"{prefix}.{key}", str(value)]
    return found


def of_the_demos_size() -> list[str]:
    """KEY VALUE pairs that turn AlignZeg for photographs into the demo's, trained for one iteration."""
    demo = CfgNode.load_yaml_with_base(str(ROOT / "configs/demo/alignzeg.yaml"))
    return [
        *pairs(demo["MODEL"], "MODEL"),
        *pairs(demo["INPUT"], "INPUT"),
        "SOLVER.MAX_ITER",
        "1",
        "SOLVER.IMS_PER_BATCH",
        "2",
    ]


@pytest.mark.slow
def test_commands_for_your_own_data(reader: Path) -> None:
    small_camvid(reader / "camvid")
    write_image(reader / "photos/a.png", np.zeros((64, 80, 3), dtype=np.uint8))
    drawn = {"label": "tree", "points": [[0, 0], [9, 0], [9, 9]]}
    write_json(reader / "annotations/a.json", {"shapes": [drawn], "imageHeight": 64, "imageWidth": 80})
    for command in all_commands("docs/custom_data.md"):
        if "beach" in command:  # Epsilon's, which tests/test_custom_data_page.py runs
            continue
        words = shlex.split(command)[3:]
        if words[0] == "predict":  # the checkpoint knows the classes
            for name in [name for name in DatasetCatalog.list() if name.startswith("camvid")]:
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)
        verb([*words, *of_the_demos_size(), "DATALOADER.NUM_WORKERS", "0"] if words[0] == "train" else words)
    assert Path("output/check/camvid_train/sheet.png").is_file()
    assert results("output/camvid", "camvid_val")["protocol"] == "GZS3"
    assert results("output/camvid", "camvid_val_unseen")["protocol"] == "ZS3"
    vocabulary = json.loads(Path("predictions/vocabulary.json").read_text(encoding="utf-8"))
    assert {entry["name"] for entry in vocabulary if entry["unseen"]} == {"tree", "fence", "bicyclist"}
    assert Path("predictions/a_overlay.png").is_file()


@pytest.mark.slow
def test_the_example_of_your_own_data_as_a_program(reader: Path) -> None:
    """docs/camvid_example.py, with loader workers that are started as Python 3.14 does it."""
    small_camvid(reader / "data/camvid")
    start = "import multiprocessing\nmultiprocessing.set_start_method('forkserver')\n"
    (reader / "start").mkdir()
    (reader / "start/sitecustomize.py").write_text(start, encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(reader / "start"), str(ROOT))),
        "DETECTRON2_DATASETS": str(reader / "data"),
    }
    command = [sys.executable, "-W", "ignore", "docs/camvid_example.py", *of_the_demos_size(), "DATALOADER.NUM_WORKERS", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results("output/camvid", "camvid_val")
    assert found["protocol"] == "GZS3" and found["mIoU_unseen"] is not None


# ---- names of code ----

# The changelog also names what is gone.
OF_TODAY = [page for page in PAGES if page != "CHANGELOG.md"]
import_systems()
DEFAULTS = {system.name: system.default_config() for system in systems.all_systems() if system.package in BUILT_IN}
KEYS = {key for cfg in DEFAULTS.values() for key in config_keys(cfg)}
KEY = re.compile(r"[A-Z][A-Z0-9_]*(?:\.[A-Z0-9_*]+)+")


def code_spans(page: str) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCED.sub("", read(page)))]


@pytest.mark.parametrize("page", OF_TODAY)
def test_names_of_the_packages_exist(page: str) -> None:
    for code in code_spans(page):
        match = re.match(r"((?:zeroshot|alignzeg|epsilon)_d2(?:\.\w+)+)(?:\(.*\))?$", code)
        if match is not None:
            *parents, name = match[1].split(".")
            while True:
                try:
                    found = importlib.import_module(".".join(parents))
                    break
                except ModuleNotFoundError:
                    *parents, last = parents
                    name = f"{last}.{name}"
            for part in name.split("."):
                if not hasattr(found, part):
                    importlib.import_module(f"{found.__name__}.{part}")
                found = getattr(found, part)


def choices(pattern: str) -> Iterator[str]:
    """What a shell makes of {a,b}."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        yield pattern
        return
    for choice in braces[1].split(","):
        yield from choices(pattern[: braces.start()] + choice + pattern[braces.end() :])


@pytest.mark.parametrize("page", OF_TODAY)
def test_paths_exist(page: str) -> None:
    top = (
        "zeroshot_d2/",
        "alignzeg_d2/",
        "epsilon_d2/",
        "baselines_d2/",
        "configs/",
        "datasets/prepare",
        "docs/",
        "tests/",
        "scripts/",
    )
    for code in code_spans(page):
        if code.startswith(top):
            for path in choices(code):
                assert glob.glob(str(ROOT / path)), f"{page}: {code}"


@pytest.mark.parametrize("page", OF_TODAY)
def test_config_keys_exist(page: str) -> None:
    """With the whole path everywhere; the paper maps leave MODEL.ALIGNZEG and MODEL.EPSILON out."""
    above = {"docs/paper_map.md": "MODEL.ALIGNZEG.", "docs/paper_map_epsilon.md": "MODEL.EPSILON."}.get(page, "")
    for code in code_spans(page):
        for word in (word.strip(":") for word in code.split()):
            if KEY.fullmatch(word):
                patterns = [f"{prefix}{word}{suffix}" for prefix in ("", above) for suffix in ("", ".*")]
                assert any(fnmatch.filter(KEYS, pattern) for pattern in patterns), f"{page}: {code}"


@pytest.mark.parametrize(
    ("page", "package"), [("docs/paper_map.md", "alignzeg_d2"), ("docs/paper_map_epsilon.md", "epsilon_d2")]
)
def test_the_paper_maps_name_code_that_exists(page: str, package: str) -> None:
    rows = re.findall(r"^\| (?!Paper|---|#|\d)(.+?) \| (.+?) \|$", read(page).partition("## Readings")[0], re.M)
    checked = 0
    for _, code in rows:
        for part in code.split(";"):
            spans = re.findall(r"`([^`]+)`", part)
            files = [span for span in spans if span.endswith(".py")]
            for file in files:
                assert (ROOT / file).is_file() or (ROOT / package / file).is_file(), file
            names = [span for span in spans if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", span) and span not in files]
            if len(files) == 1 and names:
                path = files[0] if (ROOT / files[0]).is_file() else f"{package}/{files[0]}"
                module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
                for name in names:
                    found: Any = module
                    for attribute in name.split("."):
                        found = getattr(found, attribute)
                    checked += 1
    assert checked >= 10


def test_the_tree_of_the_house_is_the_repository() -> None:
    tree = next(block.code for block in blocks("docs/house.md") if "train_net.py" in block.code and "->" not in block.code)
    parent, shown = "", set()
    for line in filter(str.strip, tree.splitlines()):
        name = line.split()[0]
        path = f"{parent}{name}" if line.startswith(" ") else name
        parent = parent if line.startswith(" ") else name
        assert (ROOT / path).exists(), path
        shown.add(path.rstrip("/"))
    rooms = {f"zeroshot_d2/{path.name}" for path in (ROOT / "zeroshot_d2").iterdir() if not path.name.startswith("_")}
    assert rooms - shown == {"zeroshot_d2/py.typed"}
    rooms = {f"alignzeg_d2/{path.name}" for path in (ROOT / "alignzeg_d2").iterdir() if not path.name.startswith("_")}
    assert rooms - shown == {"alignzeg_d2/py.typed", "alignzeg_d2/gamma_sweep.py", "alignzeg_d2/oracle.py"}


def test_the_house_names_every_part() -> None:
    """The table of parts, and who has each."""
    table = dict(re.findall(r"^\| (`[a-z_`, ]+`) \| (task|system|task and system) \|", read("docs/house.md"), re.M))
    owner = {name: of for names, of in table.items() for name in re.findall(r"\w+", names)}
    of_tasks = {part for task in systems.TASKS.values() for part in task.parts} - {"config"}
    of_systems = {part for name in DEFAULTS for part in systems.find_system(name).parts}
    assert {name for name, of in owner.items() if "task" in of} == of_tasks
    assert {name for name, of in owner.items() if of == "system"} == of_systems - of_tasks


def test_versions_are_those_of_the_package() -> None:
    setup = read("setup.py")
    page = read("docs/troubleshooting.md") + read("docs/getting_started.md")
    for name, distribution in (
        ("torch", "torch"),
        ("numpy", "numpy"),
        ("open_clip", "open_clip_torch"),
        ("Python", "python_requires"),
    ):
        bound = re.search(rf'"{distribution}>=([\d.]+)"|{distribution}=">=([\d.]+)"', setup)
        assert bound is not None
        for stated in re.findall(rf"\b{name} (?:of )?(\d[\d.]*\d) or newer", page):
            exact, shown = (re.sub(r"(\.0)+$", "", version) for version in (bound[1] or bound[2], stated))
            assert exact == shown, name


# ---- the model zoo ----

ZOO = read("docs/model_zoo.md")
CONFIGS = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}


def test_every_config_is_in_the_model_zoo() -> None:
    rows = "\n".join(re.findall(r"^\| `.*$", ZOO, re.M))
    for name in CONFIGS:
        folder, file = name.rsplit("/", 1)
        if "ablation" not in folder:
            assert f"| `{name}` |" in rows
        elif "demo" not in folder:
            assert f"| `{Path(folder).name}/{file}`" in rows


def test_every_config_of_the_model_zoo_exists() -> None:
    for name in re.findall(r"`([\w/]+\.yaml)`", ZOO):
        assert name in CONFIGS if name.startswith("configs/") else any(other.endswith(f"/{name}") for other in CONFIGS), name


def test_nothing_on_photographs_is_claimed_and_the_rest_is_in_the_results() -> None:
    photographs, demo = ZOO.split("## The demo world")
    rows = re.findall(r"^\| (?!config|---).*$", photographs, re.M)
    assert len(rows) > 20 and all(row.endswith("| not yet reproduced |") for row in rows)
    results = read("docs/results.md")
    for row in re.findall(r"^\| (?!config|---).*$", demo, re.M):
        for number in re.findall(r"\d+\.\d", row.rsplit("|", 2)[1]):
            assert f"| {number} |" in results, row


# ---- error messages ----


def texts_of_the_code() -> str:
    """All string literals of the packages, the variable parts of f-strings as a line break."""
    literals = []
    for package in ("zeroshot_d2", "alignzeg_d2", "epsilon_d2", "baselines_d2"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "\n" for part in node.values]
                    literals.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    literals.append(node.value)
    return "\0".join(literals)


def test_quoted_error_messages_are_those_of_the_code() -> None:
    quoted = re.findall(r"`([^`]+)`", read("docs/troubleshooting.md"))
    quotes = [quote for quote in quoted if "..." in quote and " " in quote]
    assert len(quotes) > 15
    code = texts_of_the_code()
    for quote in quotes:
        parts = [re.escape(part.strip()) for part in quote.split("...") if part.strip()]
        assert re.search(r"[^\0]*".join(parts), code), quote
