"""Write a model as ONNX or torch.export, with its vocabulary baked in or as an input.

    python -m zeroshot_d2 export --model output/demo --vocabulary "plain red tile, dark water" --output model.onnx
    python -m zeroshot_d2 export --model output/demo/epsilon --format torch_export --output tags.pt2

The file is then run beside the model itself, and the two are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ..cli import Parser, add_model_arguments, add_vocabulary_arguments, model_config, set_vocabulary
from ..export import FORMATS, OPSETS, check_opset, check_path
from ..predictor import build_predictor


class Exporter(Protocol):
    """The "exporter" part of a system."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """The system's own arguments."""

    @staticmethod
    def export(predictor: Any, args: argparse.Namespace) -> str:
        """Write ``args.output`` in ``args.format`` and ``args.opset``; a sentence on how far it is from the model.

        Raises:
            ValueError: the file does not do what the model does.
        """
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the command-line arguments ``argv``.

    Raises:
        FileNotFoundError: the config or the weights do not exist.
        ValueError: the system cannot be exported, the vocabulary is faulty, or the file differs from the model.
    """
    parser = Parser("python -m zeroshot_d2 export", __doc__)
    parser.add_argument("--format", choices=list(FORMATS), default="onnx")
    parser.add_argument("--output", required=True, type=Path, help="the file, ending with .onnx or .pt2")
    parser.add_argument(
        "--vocabulary-input", action="store_true", help="make the vocabulary an input instead of baking it in"
    )
    parser.add_argument(
        "--opset",
        type=int,
        metavar="N",
        help=f"ONNX's set of operators, {OPSETS[0]} to {OPSETS[-1]}; by default {OPSETS[0]}, which most runtimes know",
    )
    add_model_arguments(parser)
    add_vocabulary_arguments(parser)
    exporter, args = parser.parse_with_part(argv, "exporter")
    check_path(args.output, args.format)
    check_opset(args.opset, args.format)
    cfg = model_config(args)
    cfg.MODEL.COMPILE = False  # what is exported is the model itself
    predictor = build_predictor(cfg)
    split = set_vocabulary(predictor, args)
    said = exporter.export(predictor, args)
    print(f"{args.output}: {len(split)} classes {'as input' if args.vocabulary_input else 'baked in'}; {said}")
    return 0
