"""Serve a web page: photos in, results out, a tab for each model.

    python -m zeroshot_d2 web                                       # what `make demo` has trained
    python -m zeroshot_d2 web --model output/demo --model output/coco/alignzeg
    python -m zeroshot_d2 web --config-file configs/voc/alignzeg.yaml --weights model_final.pth

It listens on this machine alone unless --host says otherwise. Ctrl+C ends it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from detectron2.config import CfgNode

from ..cli import Parser, config_keys, find_config, load_config, model_config, system_of
from ..system import System, all_systems, find_system


def model_configs(args: argparse.Namespace) -> dict[str, CfgNode]:
    """{title of the tab: config with weights}; the demos' models where the arguments name none.

    Raises:
        FileNotFoundError: a model does not exist, or none is named and the demos have not run.
        ValueError: an option lacks the one that goes with it.
    """
    if args.weights is not None and args.config_file is None:
        raise ValueError(f"--weights {args.weights} needs its --config-file")
    named = [argparse.Namespace(model=folder, config_file=None, weights=None) for folder in args.model]
    if args.config_file is not None:
        named.append(argparse.Namespace(model=None, config_file=args.config_file, weights=args.weights))
    for system in all_systems() if not named else ():
        if system.has("demo") and system.has("web_tab"):
            config = find_config(system.part("demo").CONFIG)
            weights = Path(load_config(config).OUTPUT_DIR) / "model_final.pth"
            if weights.is_file():
                named.append(argparse.Namespace(model=None, config_file=config, weights=weights))
            else:
                print(f"no tab for {system.name}: {weights} does not exist, `python -m zeroshot_d2 demo` trains it")
    if not named:
        raise FileNotFoundError(
            f"there is no model to show (looked for the demos' from {Path.cwd()}): run `make demo`, or name --model FOLDER"
        )
    shared = _shared_out(args.opts, [system_of(arguments) for arguments in named])
    configs = [model_config(arguments, opts=opts) for arguments, opts in zip(named, shared, strict=True)]
    titles: dict[str, CfgNode] = {}
    for cfg in configs:
        name = cfg.MODEL.META_ARCHITECTURE
        kind = {"segmentation": "Segmentation", "multilabel": "Tags"}[find_system(name).task]
        title = f"{kind} ({name})"
        number = 2
        while title in titles:
            title, number = f"{kind} ({name}, {number})", number + 1
        titles[title] = cfg
    return titles


def _shared_out(opts: Sequence[str], systems: Sequence[System | None]) -> list[list[str]]:
    """The KEY VALUE pairs for each of the models: those whose keys its system has.

    Raises:
        ValueError: no system has a key.
    """
    known = [set() if system is None else config_keys(system.default_config()) for system in systems]
    for key in opts[::2]:
        if not any(key in keys for keys in known):
            raise ValueError(f"no model on the page has a key {key}")
    pairs = list(zip(opts[::2], opts[1::2], strict=True))
    return [[word for key, value in pairs if key in keys for word in (key, value)] for keys in known]


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page with command-line arguments ``argv`` until Ctrl+C.

    Raises:
        FileNotFoundError: a config, a checkpoint or the file of passwords does not exist.
        ValueError: weights do not fit their config, a system offers no tab, or --auth is faulty.
    """
    from .. import web_server  # gradio takes seconds, and --help of the other commands needs none of it

    parser = Parser("python -m zeroshot_d2 web", __doc__)
    parser.add_argument(
        "--model",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="a finished run; may be repeated, a tab each",
    )
    parser.add_argument("--config-file", metavar="FILE", help="a config, with its --weights")
    parser.add_argument(
        "--weights", metavar="FILE", help="a checkpoint; default: model_final.pth in the config's OUTPUT_DIR"
    )
    web_server.add_server_arguments(parser)
    args = parser.parse(argv)
    auth = None if args.auth is None else web_server.accounts(args.auth)
    limits = web_server.limits_of(args)
    with web_server.private_folder() as folder:
        tabs: dict[str, Callable[[], None]] = {}
        for number, (title, cfg) in enumerate(model_configs(args).items()):
            tab = find_system(cfg.MODEL.META_ARCHITECTURE).part("web_tab")(cfg, limits)
            examples = folder / "examples" / str(number)
            examples.mkdir(parents=True)
            tabs[title] = lambda tab=tab, examples=examples: tab.build(examples)  # type: ignore[misc]
        page = web_server.build_page("Zero-shot recognition", tabs, limits)
        web_server.serve(page, folder, args, auth)
    return 0
