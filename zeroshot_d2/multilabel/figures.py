"""Figures that any tagger can have: first labels of images (Epsilon's Fig. 4), mAP against a hyper-parameter (Fig. 3).

Shapes: K classes, (H, W) the image.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog
from matplotlib.figure import Figure

from ..class_split import ClassSplit
from ..config_file import leaves, read_yaml
from ..pictures.command import FigureCommand, Record, first_wanted, load_models, predictions, read_results
from ..trainer import RESULTS_FILE
from .pictures import LabelledImage, sweep_figure, top_labels_figure
from .registration import EVALUATOR_TYPE

TOP_K = 10
METRICS = {"ZSL": "ZSL_mAP", "GZSL": "GZSL_mAP"}


def example_records(dataset: str, split: ClassSplit, count: int) -> list[Record]:
    """The first records with an unseen label; where they are too few, the first of the others too."""
    return first_wanted(
        DatasetCatalog.get(dataset), count, lambda record: bool(split.unseen_mask[record["positive_labels"]].any())
    )


# ---- the first labels ----


def draw_top10(args: argparse.Namespace) -> Figure:
    """The first labels of the first images that show an unseen class."""
    dataset, predictors = load_models(args, EVALUATOR_TYPE)
    predictor = predictors[args.name]
    split = predictor.vocabulary
    examples = [
        LabelledImage(image, tags.scores, present=record["positive_labels"].tolist())
        for record, image, tags in predictions(predictor, example_records(dataset, split, args.num_images))
    ]
    return top_labels_figure(examples, split, top_k=min(TOP_K, len(split)))


def _top10_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-images", type=int, default=8, help="default: 8")


# ---- mAP against a hyper-parameter ----


def draw_sweep(args: argparse.Namespace) -> Figure:
    """From the folders of finished runs."""
    return sweep_figure(sweep_points(args.results, args.key, args.dataset), args.label or args.key)


def _sweep_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, nargs="+", required=True, help="folders of finished runs")
    parser.add_argument("--key", required=True, help="the config key that they vary, such as MODEL.EPSILON.NUM_GROUPS")
    parser.add_argument("--label", help="what the axis is called; default: the key")


def sweep_points(folders: Sequence[Path], key: str, dataset: str | None = None) -> dict[Any, dict[str, list[float]]]:
    """mAP of finished runs by the value that a config key has in them.

    Args:
        folders: each with the ``config.yaml`` and ``results.json`` of a run.
        key: such as "MODEL.EPSILON.NUM_GROUPS".
        dataset: whose results; default: the first in the first folder.

    Returns:
        {value: {"ZSL" and "GZSL": mAP in percent of each run}}.

    Raises:
        FileNotFoundError: a folder lacks one of the files.
        ValueError: a run lacks the key or the numbers, or two runs differ in more than the key, the seed, the folder and the
            weights that they began with.
    """
    points: dict[Any, dict[str, list[float]]] = {}
    first: dict[str, Any] | None = None
    for folder in folders:
        config = dict(leaves(read_yaml(folder / "config.yaml", "config of a finished run")))
        if key not in config:
            raise ValueError(f"{folder}/config.yaml has no key {key}: correct it, or the folder")
        first = config if first is None else first
        varying = {key, "SEED", "OUTPUT_DIR", "MODEL.WEIGHTS"}  # the ablation's runs each begin with a file of their own
        others = sorted(k for k in config.keys() | first.keys() if k not in varying and config.get(k) != first.get(k))
        if others:
            raise ValueError(f"{folder} and {folders[0]} differ in {', '.join(others)} too: a sweep varies {key} alone")
        results = read_results(folder / RESULTS_FILE)
        dataset = next(iter(results), "any data set") if dataset is None else dataset
        numbers = results.get(dataset, {})
        missing = [metric for metric in METRICS.values() if not isinstance(numbers.get(metric), int | float)]
        if missing:
            raise ValueError(
                f"{folder}/{RESULTS_FILE} has no {', '.join(missing)} on {dataset!r}; it has results on "
                f"{', '.join(results) or 'nothing'}: give another run"
            )
        point = points.setdefault(config[key], {series: [] for series in METRICS})
        for series, metric in METRICS.items():
            point[series].append(numbers[metric])
    return points


FIGURES = {
    "top10": FigureCommand("the first 10 labels of images (Epsilon, Fig. 4)", draw_top10, _top10_arguments),
    "sweep": FigureCommand(
        "mAP of finished runs against a hyper-parameter (Epsilon, Fig. 3)", draw_sweep, _sweep_arguments, needs_model=False
    ),
}
