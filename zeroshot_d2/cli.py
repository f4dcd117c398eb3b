"""The one command line: what every command of the project takes, and the config that it gives.

``--config-file`` names a file, or where there is none an installed config such as ``coco/alignzeg.yaml``; ``--model FOLDER``
a finished run or a model that was saved, ``--model hub:OWNER/NAME`` one on the Hugging Face Hub. ``--import`` runs code of
yours first. ``KEY VALUE`` pairs at the end of a line override the config. Whatever else is not understood is an error.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from detectron2.config import CfgNode, get_cfg

from .checkpoint import refuse_address, weights_in
from .class_split import ClassSplit
from .config_file import BESIDE, leaves, merge, path_beside, read_config
from .hub import find_model, is_hub_id
from .predictor import Predictor
from .ranges import check_ranges
from .system import System, find_system, import_module
from .vocabulary import read_names

# The systems that come with the project; importing a package registers its systems.
BUILT_IN = ("alignzeg_d2", "epsilon_d2", "baselines_d2")

# What yacs raises at a key or a value that it cannot use; the last ones at values that Python's parser does not survive.
_BAD_VALUES = (KeyError, ValueError, AssertionError, TypeError, AttributeError, RecursionError, MemoryError)

_TYPE_MISMATCH = re.compile(
    r"Type mismatch \(<class '(?:\w+\.)*(\w+)'> vs\. <class '(?:\w+\.)*(\w+)'>\) with values "
    r"\((.*?) vs\. (.*)\) for config key: (\S+)",
    re.DOTALL,
)
_KINDS = {
    "int": "a whole number",
    "float": "a number with a point",
    "str": "a text",
    "bool": "True or False",
    "list": "a list",
    "tuple": "a list",
}

_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")


# --------------------------------------------------------------------------------------------------------- systems
def import_systems(modules: Sequence[str] = ()) -> None:
    """Import the systems of the project, then what ``--import`` names."""
    for name in BUILT_IN:
        importlib.import_module(name)
    for name in modules:
        import_module(name)


# --------------------------------------------------------------------------------------------------------- configs
def config_file(name: str) -> Path:
    """The path of an installed config, such as ``"coco/alignzeg.yaml"``.

    Raises:
        FileNotFoundError: there is none of this name.
    """
    for folder in (Path(__file__).parent / "configs", Path(__file__).resolve().parents[1] / "configs"):  # wheel, checkout
        if (folder / name).is_file():
            return folder / name
        if folder.is_dir():
            known = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))
            close = difflib.get_close_matches(name, known, n=3)
            raise FileNotFoundError(
                f"there is no config {name!r}; " + (f"did you mean {' or '.join(close)}?" if close else f"see {folder}")
            )
    raise FileNotFoundError(
        f"the configs are not installed: neither {Path(__file__).parent / 'configs'} nor a checkout is there"
    )


def find_config(name: str | Path) -> Path:
    """A config by its path, or where there is no such file by its installed name.

    Raises:
        FileNotFoundError: neither is there.
    """
    path = Path(name)
    if path.is_file():
        return path
    try:
        return config_file(str(name).removeprefix("configs/"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--config-file {name} does not exist (looked for it from {Path.cwd()}); {error}") from None


def system_of_config(path: str | Path) -> System:
    """The system that a config file, or its ``_BASE_``, names.

    Raises:
        FileNotFoundError, ValueError: as :func:`zeroshot_d2.config_file.read_config`; it names no system, or one that is
            not registered.
    """
    return _system_in(read_config(path), path)


def _system_in(content: Mapping[str, Any], path: str | Path) -> System:
    model = content.get("MODEL")
    name = model.get("META_ARCHITECTURE") if isinstance(model, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"the config {path} names no MODEL.META_ARCHITECTURE, which says whose keys it has: set it")
    return find_system(name)


def load_config(
    config: str | Path, opts: Sequence[object] = (), *, weights: str | Path = "", modules: Sequence[str] = ()
) -> CfgNode:
    """The config of a file and overrides, on the CPU where there is no GPU.

    ::

        cfg = zeroshot_d2.load_config("coco/alignzeg.yaml", weights="model_final.pth")

    Args:
        config: a path, or an installed name.
        opts: KEY, VALUE, KEY, VALUE, ...
        weights: MODEL.WEIGHTS.
        modules: what ``--import`` names.

    Returns:
        not frozen.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: the file or a key is faulty; it is named.
    """
    import_systems(modules)
    path = find_config(config)
    content = read_config(path)
    cfg = _system_in(content, path).default_config()
    version = content.get("VERSION", cfg.VERSION)
    if version != cfg.VERSION:
        raise ValueError(f"the config {path} has VERSION {version!r}: write VERSION: {cfg.VERSION}")
    optional = {key for key, value in leaves(cfg) if value is None}
    try:
        merge(cfg, content)
    except _BAD_VALUES as error:
        raise ValueError(f"the config {path}: {_explained(error, cfg)}") from error
    if len(opts) % 2:
        raise ValueError(f"KEY VALUE pairs come in twos, got {' '.join(map(str, opts))}: give the value")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        _check_key(str(key), cfg)
        try:
            cfg.merge_from_list([key, value])
        except _BAD_VALUES as error:
            raise ValueError(f"{key} {value}: {_explained(error, cfg)}") from error
    for key, value in list(leaves(cfg)):
        if value is None and key not in optional:
            raise ValueError(f"{key} has no value: give it one, or leave the key out")
        if isinstance(value, str) and value.startswith(BESIDE):
            cfg.merge_from_list([key, str(path_beside(path, key, value))])
    if weights:
        cfg.MODEL.WEIGHTS = str(weights)
    check_ranges(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE.startswith("mps") and not torch.backends.mps.is_available():  # nobody's config has it by default
        raise ValueError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, which this machine does not have: set it to cpu")
    return cfg


def _check_key(key: str, cfg: CfgNode) -> None:
    """Raise ValueError where a config has no such key; the nearest known ones are named."""
    known = config_keys(cfg)
    if key in known:
        return
    below = sorted(name for name in known if name.startswith(f"{key}."))
    if below:
        raise ValueError(f"{key} is a section of keys, not a key: give one of them, such as {below[0]}")
    close = difflib.get_close_matches(key, sorted(known), n=3)
    raise ValueError(
        f"there is no key {key or repr('')}; " + (f"did you mean {' or '.join(close)}?" if close else "correct it")
    )


def _explained(error: BaseException, cfg: CfgNode) -> str:
    """What yacs says of a value of another type and of a key that it does not know."""
    text = str(error.args[0]) if error.args else type(error).__name__
    kinds = _TYPE_MISMATCH.fullmatch(text)
    if kinds is not None:
        wanted, given, before, value, key = kinds.groups()
        if "CfgNode" in wanted + given:
            return f"{key} must be {_KINDS.get(wanted, 'a section of keys')}, not {_KINDS.get(given, 'a section of keys')}"
        example = f"{_KINDS.get(wanted, wanted)} such as {before or repr('')}"
        return f"{key} must be {example}, got {value} ({_KINDS.get(given, given)})"
    unknown = re.search(r"Non-existent (?:config )?key: ([\w.]+)", text)
    if unknown is not None:
        try:
            _check_key(unknown[1], cfg)
        except ValueError as named:
            return str(named)
    return f"it cannot be used ({text}): correct it"


def config_keys(cfg: CfgNode) -> set[str]:
    """All keys of a config, with their sections: "SOLVER.BASE_LR"."""
    return {key for key, _ in leaves(cfg)}


# ------------------------------------------------------------------------------------------------------- arguments
class Parser(argparse.ArgumentParser):
    """A parser for one command: ``--import`` and KEY VALUE pairs are part of it, and options are not abbreviated."""

    def __init__(self, prog: str, description: str | None, *, takes_keys: bool = True) -> None:
        """
        Args:
            prog: how the command is called.
            description: shown by ``--help`` as it stands.
            takes_keys: whether KEY VALUE pairs may end the line.
        """
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            epilog="KEY VALUE pairs at the end of the line override the config." if takes_keys else None,
        )
        self.takes_keys = takes_keys
        self.add_argument(
            "--import",
            dest="modules",
            action="append",
            default=[],
            metavar="MODULE",
            help="a dotted name or a .py file that registers systems, parts or data sets of yours; may be repeated",
        )

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """The arguments, with the KEY VALUE pairs as ``opts``; what they import is imported."""
        words = list(sys.argv[1:] if argv is None else argv)
        words, opts = split_keys(words) if self.takes_keys else (words, [])
        args = self.parse_args(words)
        args.opts = opts
        import_systems(args.modules)
        return args

    def parse_with_part(self, argv: Sequence[str] | None, name: str) -> tuple[Any, argparse.Namespace]:
        """As :meth:`parse`, with the arguments that a part of the command line's system adds; the part comes first.

        The command ends with a message where the line names no model.
        """
        system = system_of(peek(argv))
        part = None if system is None else system.part(name)
        if part is not None:
            part.add_arguments(self)
        args = self.parse(argv)
        if part is None:
            self.fail(which_model())
        return part, args

    def error(self, message: str) -> NoReturn:
        """As argparse's; what is not understood is followed by where to look."""
        super().error(f"{message}; --help lists what there is" if "unrecognized arguments" in message else message)

    def fail(self, message: str) -> NoReturn:
        """End with a message about the arguments."""
        self.error(message)


def split_keys(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Cut the KEY VALUE pairs off the end of a command line: (the rest, the pairs)."""
    top_level = set(get_cfg())
    end = len(words)
    while end >= 2 and _KEY.fullmatch(words[end - 2]) and words[end - 2].partition(".")[0] in top_level:
        end -= 2
    return list(words[:end]), list(words[end:])


def peek(argv: Sequence[str] | None) -> argparse.Namespace:
    """What the other options of a command line depend on, the system or the data set: ``--config-file``, ``--model`` and
    ``--dataset``; what ``--import`` names is imported."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-file")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dataset")
    parser.add_argument("--import", dest="modules", action="append", default=[])
    args, _ = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    import_systems(args.modules)
    return args


def system_of(args: argparse.Namespace) -> System | None:
    """The system of ``--model`` or ``--config-file``; None where neither is given."""
    if getattr(args, "model", None) is not None:
        folder = _fetched(str(args.model)) if is_hub_id(args.model) else Path(args.model)
        return system_of_config(find_config(folder / "config.yaml"))
    return system_of_config(find_config(args.config_file)) if args.config_file else None


@functools.cache  # one commit for the whole of a command, which asks several times
def _fetched(model: str) -> Path:
    return find_model(model)


def which_model(prefix: str = "") -> str:
    """What a command says that needs a model and was given none."""
    return f"which model? Give --{prefix}model FOLDER, or --{prefix}config-file FILE and --{prefix}weights FILE"


def add_model_arguments(parser: argparse.ArgumentParser, prefix: str = "") -> None:
    """Which model: ``--model FOLDER``, or ``--config-file`` and ``--weights``; ``prefix`` as in ``--compare-model``."""
    parser.add_argument(
        f"--{prefix}model",
        type=Path,
        metavar="FOLDER",
        help="a finished run, a model that was saved, or hub:OWNER/NAME[@REVISION] on the Hugging Face Hub",
    )
    parser.add_argument(
        f"--{prefix}config-file", metavar="FILE", help="a config: a path, or a name such as coco/alignzeg.yaml"
    )
    parser.add_argument(f"--{prefix}weights", metavar="FILE", help="a checkpoint; default: the model's own in its folder")


def model_config(args: argparse.Namespace, prefix: str = "", opts: Sequence[object] | None = None) -> CfgNode:
    """The config of a trained model that :func:`add_model_arguments` names, with its weights.

    Raises:
        FileNotFoundError: the folder, the config or the weights do not exist.
        ValueError: no model is named, or as :func:`load_config`.
        OSError: a model on the Hub cannot be fetched.
    """
    folder, config, weights = (
        getattr(args, f"{prefix.replace('-', '_')}{key}") for key in ("model", "config_file", "weights")
    )
    if folder is None and config is None:
        raise ValueError(which_model(prefix))
    if folder is not None:
        try:
            folder = _fetched(str(folder)) if is_hub_id(folder) else find_model(folder)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"--{prefix}model {error}") from error
    path = find_config(folder / "config.yaml") if config is None else find_config(config)
    cfg = load_config(path, args.opts if opts is None else opts)
    if weights is None and folder is None and cfg.MODEL.WEIGHTS:
        weights = cfg.MODEL.WEIGHTS
    refuse_address(f"--{prefix}weights", weights)
    weights = weights_in(cfg.OUTPUT_DIR if folder is None else folder) if weights is None else Path(weights)
    if not weights.is_file():
        raise FileNotFoundError(f"--{prefix}weights {weights} do not exist (looked for them from {Path.cwd()})")
    cfg.MODEL.WEIGHTS = str(weights)
    return cfg


def add_vocabulary_arguments(parser: argparse.ArgumentParser) -> None:
    """Which classes."""
    parser.add_argument(
        "--vocabulary",
        help='classes, separated by commas, synonyms by "|": "cat, tree|bush|shrub, sky"; or a .txt file with one per line. '
        "Default: the classes of the config's first test data set, else those in the checkpoint",
    )
    parser.add_argument(
        "--unseen", help="names, separated by commas, that count as unseen although the model was trained on them"
    )
    parser.add_argument("--unseen-only", action="store_true", help="choose among the unseen classes of the vocabulary only")


def set_vocabulary(predictor: Predictor, args: argparse.Namespace) -> ClassSplit:
    """Apply ``--vocabulary``, ``--unseen`` and ``--unseen-only`` to a predictor.

    Raises:
        FileNotFoundError: the .txt file does not exist.
        ValueError: as :meth:`zeroshot_d2.predictor.Predictor.set_vocabulary`, or no class is unseen.
    """
    names = None if args.vocabulary is None else read_names(args.vocabulary)
    split = predictor.set_vocabulary(names, None if args.unseen is None else read_names(args.unseen))
    return predictor.set_vocabulary(split.only_unseen()) if args.unseen_only else split


def folder(text: str) -> Path:
    """An argparse type: a folder that is there or can be made."""
    path = Path(text)
    if not text.strip():
        raise argparse.ArgumentTypeError("must name a folder, got ''")
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise argparse.ArgumentTypeError(f"must name a folder, but {part} is a file")
    return path


def port(text: str) -> int:
    """An argparse type: a port of TCP; 0 takes a free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, got {text!r}")
    return int(text)


def from_zero(text: str) -> int:
    """An argparse type: a whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """An argparse type: a whole number from 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return int(text)
