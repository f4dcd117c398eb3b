"""Write a model as one folder: config, weights as safetensors, a card; no pickle.

    python -m zeroshot_d2 save-pretrained --model output/demo --output models/demo --license apache-2.0

The folder is a model for --model of every command and for Predictor.from_pretrained. What was frozen in training, such as
CLIP, is named in it and not contained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cli import Parser, add_model_arguments, folder, model_config
from ..predictor import build_predictor


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    """What the card says."""
    parser.add_argument("--license", metavar="NAME", help="an identifier of the Hub's, such as apache-2.0; default: none")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="the results.json that the card shows; default: the one beside the weights, where it is about them",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the command-line arguments ``argv``.

    Raises:
        FileNotFoundError: the config, the weights or the results do not exist.
        ValueError: the model is faulty, or the folder holds other files.
    """
    parser = Parser("python -m zeroshot_d2 save-pretrained", __doc__)
    add_model_arguments(parser)
    parser.add_argument("--output", type=folder, required=True, help="the folder, new or empty")
    add_card_arguments(parser)
    args = parser.parse(argv)
    written = build_predictor(model_config(args)).save_pretrained(args.output, license=args.license, results=args.results)
    print(f"written: {', '.join(str(path) for path in sorted(written.iterdir()))}")
    return 0
