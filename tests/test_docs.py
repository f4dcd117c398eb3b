"""The documentation: the site, its links, every command on its pages, the model zoo and the quoted error messages.

Every command, in a code block or in the text, is accepted by the parser that it calls, and its config can be built. Those of
README.md, getting_started.md and epsilon.md are also run here, with the demo's config in place of one for photographs; the
tests of predict, export, pictures, the web page and your own data run those of their pages.
"""

from __future__ import annotations

import argparse
import ast
import html.parser
import importlib
import importlib.util
import json
import re
import runpy
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from mkdocs.commands.build import build
from mkdocs.config import load_config
from PIL import Image
from torch.distributed.run import get_args_parser as torchrun_parser

import train_net
from epsilon_d2 import demo as epsilon_demo
from zeroshot_d2.demo_world import register_demo_world, register_demo_world_multilabel

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "datasets/*.md", "notebooks/*.md")
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
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
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

PROGRAMS = ("python", "make", "pip", "torchrun", "pre-commit", "source", "export", "ls", "srun", "ssh")
COMMAND = re.compile(rf"(?:[A-Z_]+=\S* )*(?:{'|'.join(PROGRAMS)}) .+")
# Of a command that is neither a program of this repository nor reached by `accept`: why it is not checked.
NOT_CHECKED = {
    "source .venv/bin/activate": "a shell's own",
    "export DETECTRON2_DATASETS=/path/to/datasets": "a shell's own",
    "pip install torch torchvision": "needs a network",
    "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2": "needs a network and a compiler",
    "pip freeze": "pip's own",
    "pip uninstall opencv-python": "pip's own",
    "pre-commit install": "pre-commit's own",
    "ssh -L 7860:127.0.0.1:7860 server": "needs a server",
    "ls SegmentationClassAug | sed 's/.png$//' | grep -vxFf ImageSets/Segmentation/val.txt "
    "> ImageSets/Segmentation/trainaug.txt": "needs the labels; its answer is that of tests/test_releases.py",
}
# Of a command on a page whose commands are run here: why it is not run.
NOT_RUN = {
    "make setup": "it makes the environment that the tests run in",
    "make demo": "tests/alignzeg_d2/test_demo.py runs what it starts",
    "make test": "it is what runs this test",
    "python scripts/install_detectron2.py": "it makes the environment that the tests run in",
    "pip install -e '.[opencv,demo]'": "it makes the environment that the tests run in",
    "pip install -e '.[opencv,demo,web,dev]'": "it makes the environment that the tests run in",
}


class Block(NamedTuple):
    language: str  # "python", or "bash" for anything that may hold commands
    code: str


def blocks(page: str) -> list[Block]:
    """The code blocks of a page, in order: fenced, or indented by four spaces."""
    text = read(page)
    found = [(match.start(), Block(match[1] or "bash", match[2])) for match in FENCED.finditer(text)]
    outside = FENCED.sub(lambda match: " " * len(match[0]), text)
    for match in INDENTED.finditer(outside):
        code = textwrap.dedent(match[0])
        found.append((match.start(), Block("python" if re.match(r"import |from ", code) else "bash", code)))
    assert {block.language for _, block in found} <= {"bash", "python"}, page
    return [block for _, block in sorted(found)]


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


def parsed(main: Callable[[], object], arguments: list[str]) -> argparse.Namespace:
    """What the parser of ``main`` makes of ``arguments``; nothing else of it runs. SystemExit: it refuses them."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> None:
        raise ParsedArguments(parse_args(parser, args, namespace))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", ["program", *arguments])
        with pytest.raises(ParsedArguments) as caught:
            main()
    return caught.value.args[0]


def config(file: str, options: list[str]) -> CfgNode:
    cfg = get_cfg()
    train_net.add_config_keys(cfg, file)
    cfg.merge_from_file(file)
    cfg.merge_from_list(options)
    return cfg


def main_of(script: str) -> Callable[[], object]:
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def main_of_module(name: str) -> Callable[[], object]:
    is_package = importlib.util.find_spec(name).submodule_search_locations is not None  # type: ignore[union-attr]
    return importlib.import_module(f"{name}.__main__" if is_package else name).main


def accept(words: list[str]) -> None:
    """Check a command without running it; "..." stands for arguments that the page has shown before.

    Raises:
        Exception, SystemExit: something that it names does not exist, or its parser refuses it.
    """
    while "=" in words[0]:  # an environment variable
        words = words[1:]
    match words:
        case ["make", *rest]:
            targets = re.findall(r"^([\w-]+):", read("Makefile"), re.M)
            assert {word for word in rest if "=" not in word} <= set(targets)
        case ["pip", "install", "-e", what]:
            scope: dict[str, Any] = {}
            (extras,) = re.findall(r"^EXTRAS_REQUIRE = \{.*?^\}", read("setup.py"), re.M | re.S)
            exec(extras, scope)
            assert set(re.fullmatch(r"\.\[(.+)\]", what)[1].split(",")) <= set(scope["EXTRAS_REQUIRE"])  # type: ignore[index]
        case ["python", "-m", module]:
            main_of_module(module)
        case ["python", "train_net.py", *arguments]:
            args = default_argument_parser().parse_args([word for word in arguments if word != "..."])
            config(args.config_file or "configs/demo/alignzeg.yaml", args.opts)
        case ["python", "-m", module, *arguments]:
            args = parsed(main_of_module(module), arguments)
            if getattr(args, "config_file", None):
                config(str(args.config_file), args.opts)
        case ["python", script, *arguments]:
            parsed(main_of(script), arguments)
        case ["torchrun", *arguments]:
            args = torchrun_parser().parse_args(arguments)
            accept(["python", args.training_script, *args.training_script_args])
        case ["srun", "bash", "-c", script]:  # Slurm's variables are numbers and addresses
            accept(shlex.split(re.sub(r"\\?\$\w+", "1", script)))
        case _:
            raise AssertionError(f"{shlex.join(words)}: neither checked nor in NOT_CHECKED")


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_accepted(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
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
        "python -m alignzeg_d2.predict --config-file configs/demo/alignzeg.yaml --weight model.pth --input a.jpg",
        "python -m alignzeg_d2.prediction a.jpg",
        "python datasets/prepare_nus_wide.py --no-such-option",
        "pip install -e '.[no_such_extra]'",
        "make coffee",
        "curl example.org",
    ],
)
def test_wrong_commands_are_not_accepted(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises((Exception, SystemExit)):
        accept(shlex.split(command))


# ---- commands that run ----

# Photographs, GPUs and pretrained weights are not at hand: the same commands with the demo world's config and checkpoint.
IN_THE_DEMO = {
    "configs/coco/alignzeg.yaml": "configs/demo/alignzeg.yaml",
    "configs/voc/alignzeg.yaml": "configs/demo/alignzeg.yaml",
    "configs/nus_wide/epsilon.yaml": "configs/demo/epsilon.yaml",
    "configs/open_images/epsilon.yaml": "configs/demo/epsilon.yaml",
    "--num-gpus 8": "--num-gpus 1",
    " model_final.pth": " output/demo/model_final.pth",
    '"model_final.pth"': '"output/demo/model_final.pth"',
    '"image.jpg"': '"photo.jpg"',
}
EPSILON_WEIGHTS = "output/demo/epsilon/model_final.pth"


def in_the_demo(code: str) -> str:
    for text, instead in IN_THE_DEMO.items():
        code = code.replace(text, instead)
    return code.replace(" output/demo/model_final.pth", f" {EPSILON_WEIGHTS}") if "epsilon_d2" in code else code


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
        case ["python", "train_net.py", *arguments]:
            args = default_argument_parser().parse_args(arguments)
            args.opts += shortened(config(args.config_file, []).MODEL.META_ARCHITECTURE)
            if "OUTPUT_DIR" not in args.opts:
                args.opts += ["OUTPUT_DIR", "output/documented"]
            if args.resume:
                args.opts += ["SOLVER.MAX_ITER", "3"]
            assert train_net.main(args)
        case ["python", "-m", "epsilon_d2.demo"]:
            options = shortened("Epsilon")
            del options[2:4]  # it tests on a set of its own
            epsilon_demo.main(["--output", "output/documented", "--opts", *options])
        case ["python", "-m", module, *arguments]:
            assert not main_of_module(module)(arguments)  # type: ignore[call-arg]
        case _:
            raise AssertionError(f"{command}: neither run nor in NOT_RUN")


@pytest.mark.parametrize("page", ["README.md", "docs/getting_started.md", "docs/epsilon.md"])
def test_commands_and_python_of_the_page(
    page: str, user_folder: Path, small_sets: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in user_folder.iterdir():
        if path.name not in ("output", "photos"):
            Path(path.name).symlink_to(path)
    for checkpoint in ("output/demo/model_final.pth", EPSILON_WEIGHTS):
        Path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
        Path(checkpoint).symlink_to((user_folder / checkpoint).resolve())
    Path("names.txt").write_text("plain red tile\ndark water|dark sea\n", encoding="utf-8")
    monkeypatch.setattr(epsilon_demo, "TEST_SET", "docs_multilabel_all")
    scope = {  # what the Python of epsilon.md is given
        "cfg": config("configs/demo/epsilon.yaml", ["MODEL.WEIGHTS", EPSILON_WEIGHTS]),
        "rgb_image": np.zeros((64, 64, 3), dtype=np.uint8),
    }
    for block in blocks(page):
        if block.language == "python":
            exec(in_the_demo(block.code), scope)
            continue
        for command in commands(block.code):
            if command not in NOT_RUN and command not in NOT_CHECKED:
                run(command)
    assert (tmp_path / "output/documented/results.json").is_file()


def pairs(node: CfgNode, prefix: str) -> list[str]:
    """The leaves below a node as KEY VALUE pairs."""
    found = []
    for key, value in node.items():
        found += pairs(value, f"{prefix}.{key}") if isinstance(value, dict) else [f"{prefix}.{key}", str(value)]
    return found


@pytest.fixture
def forgotten_data_sets() -> Iterator[None]:
    """Data sets that the test registers are gone afterwards: another page uses the same names."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_script_for_data_of_ones_own(forgotten_data_sets: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/camvid_example.py on a CamVid of two images, with a model of the demo's size."""
    for part, values in (("train", [0, 3, 8, 11]), ("val", [1, 5, 7, 10])):
        for kind, pixels in (("images", np.zeros((64, 64, 3))), ("labels", np.repeat(values, 1024).reshape(64, 64))):
            (tmp_path / "camvid" / kind / part).mkdir(parents=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "camvid" / kind / part / "0001.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    demo = CfgNode.load_yaml_with_base(str(ROOT / "configs/demo/alignzeg.yaml"))
    size = [*pairs(demo["MODEL"], "MODEL"), *pairs(demo["INPUT"], "INPUT"), "SOLVER.MAX_ITER", "1"]
    monkeypatch.setattr(sys, "argv", ["camvid_example.py", "camvid", *size, "DATALOADER.NUM_WORKERS", "0"])
    runpy.run_path(str(ROOT / "docs/camvid_example.py"), run_name="__main__")
    results = json.loads((tmp_path / "output/camvid/results.json").read_text(encoding="utf-8"))["camvid_val"]
    assert results["protocol"] == "GZS3" and results["mIoU_unseen"] is not None


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
    for package in ("zeroshot_d2", "alignzeg_d2", "epsilon_d2"):
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
