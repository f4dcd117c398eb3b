"""Figures that any segmenter can have: IoU per class (AlignZeg's Fig. 5) and image, ground truth and prediction (Fig. 7).

Shapes: K classes, (H, W) the image.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from matplotlib.figure import Figure

from ..class_split import ClassSplit
from ..cli import positive
from ..images import ImageArray
from ..pictures.command import (
    FigureCommand,
    Record,
    check_dataset,
    first_dataset,
    first_records,
    first_wanted,
    load_models,
    predictions,
    read_results,
)
from ..predictor import Predictor
from .evaluation import ZeroShotSemSegEvaluator
from .iou_bars import class_iou_figure
from .labels import read_label
from .pictures import Comparison, LabelArray, comparison_figure
from .registration import EVALUATOR_TYPE

# An example is an image in which unseen classes cover this share of the pixels.
UNSEEN_SHARE = 0.15


def read_truth(record: Record) -> npt.NDArray[np.int64]:
    """(H, W) vocabulary indices of the record's data set; any other value is ignored."""
    table = MetadataCatalog.get(record["dataset_name"]).label_table
    return read_label(record["sem_seg_file_name"], table, photo=record["file_name"]).astype(np.int64)


def shows_unseen(truth: LabelArray, split: ClassSplit) -> bool:
    """Whether unseen classes cover enough of the image for an example."""
    return bool(np.isin(truth, split.unseen_indices).mean() >= UNSEEN_SHARE)


def example_records(dataset: str, count: int) -> list[Record]:
    """The first records that show unseen classes; where they are too few, the first of the others too."""
    split = MetadataCatalog.get(dataset).class_split
    if not split.unseen:
        return first_records(dataset, count)
    return first_wanted(DatasetCatalog.get(dataset), count, lambda record: shows_unseen(read_truth(record), split))


def evaluate(
    predictor: Predictor, records: Sequence[Record], evaluator: ZeroShotSemSegEvaluator, **wanted: bool
) -> dict[str, Any]:
    """What ``evaluator`` says about the predictions; ``wanted`` of the predictor's calls."""
    for record, _, found in predictions(predictor, records, **wanted):
        output: dict[str, Any] = {"sem_seg_labels": torch.from_numpy(found.labels), "proposals": found.proposals}
        evaluator.process([record], [output])
    results = evaluator.report()
    assert results is not None  # this is the only process
    return results


# ---- IoU per class ----


def draw_per_class_iou(args: argparse.Namespace) -> Figure:
    """From result files, or by evaluating."""
    if args.results is not None:
        args.name = args.name or "results"
        dataset = args.dataset or first_dataset(args.results)
        files = {args.compare_name: args.compare_results, args.name: args.results}
        ious = {name: _read_ious(file, dataset) for name, file in files.items() if file is not None}
    elif args.model is None and args.config_file is None:
        raise ValueError("per-class-iou needs a model (--model FOLDER), or --results FILE")
    else:
        dataset, predictors = load_models(args, EVALUATOR_TYPE)
        records = first_records(dataset, args.num_images)
        ious = {
            name: evaluate(predictor, records, ZeroShotSemSegEvaluator(dataset, distributed=False))["IoU"]
            for name, predictor in predictors.items()
        }
    split: ClassSplit = MetadataCatalog.get(dataset).class_split
    if args.classes == "unseen" and not split.unseen:
        raise ValueError(f"no class of {dataset!r} is unseen: use --classes all")
    names = split.unseen if args.classes == "unseen" else (*split.unseen, *split.seen)
    return class_iou_figure(ious, names, split.unseen)


def _read_ious(file: Path, dataset: str) -> dict[str, float | None]:
    """{class: IoU in percent} of a data set, as the trainer writes them."""
    check_dataset(dataset, EVALUATOR_TYPE)
    results = read_results(file)
    ious = results.get(dataset, {}).get("IoU")
    if not isinstance(ious, dict):
        raise ValueError(
            f"{file} has no IoU of classes on {dataset!r}, it has results on {', '.join(results)}: give another"
        )
    for name in MetadataCatalog.get(dataset).class_split.names:
        value = ious.get(name, "nothing")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{file} must have a number or null as the IoU of {name!r} on {dataset!r}, got {value!r}")
    return ious


def _iou_arguments(parser: argparse.ArgumentParser) -> None:
    add_num_images(parser)
    parser.add_argument("--classes", choices=("unseen", "all"), default="unseen")
    parser.add_argument("--results", type=Path, help="a results.json instead of a model")
    parser.add_argument("--compare-results", type=Path, help="a second one, to compare with")


def add_num_images(parser: argparse.ArgumentParser) -> None:
    """``--num-images``, all by default."""
    parser.add_argument("--num-images", type=positive, help="use the first so many images; default: all")


# ---- examples ----


def draw_qualitative(args: argparse.Namespace) -> Figure:
    """The first images that show unseen classes, with the prediction of each model."""
    dataset, predictors = load_models(args, EVALUATOR_TYPE)
    records = example_records(dataset, args.num_images)
    columns: dict[str, dict[str, LabelArray]] = {record["file_name"]: {} for record in records}
    images: dict[str, ImageArray] = {}
    for name, predictor in predictors.items():
        for record, image, found in predictions(predictor, records):
            images[record["file_name"]] = image
            columns[record["file_name"]][name] = found.labels
    return draw_comparison(dataset, records, images, columns)


def draw_comparison(
    dataset: str,
    records: Sequence[Record],
    images: dict[str, ImageArray],
    columns: dict[str, dict[str, LabelArray]],
) -> Figure:
    """Image, ground truth and predictions; ``images`` and ``columns`` by file name."""
    metadata = MetadataCatalog.get(dataset)
    rows = [Comparison(images[record["file_name"]], read_truth(record), columns[record["file_name"]]) for record in records]
    return comparison_figure(rows, metadata.class_split, metadata.stuff_colors)


def qualitative_arguments(parser: argparse.ArgumentParser) -> None:
    """``--num-images`` as rows."""
    parser.add_argument("--num-images", type=positive, default=5, help="rows; default: 5")


FIGURES = {
    "per-class-iou": FigureCommand(
        "IoU of the unseen classes (AlignZeg, Fig. 5)", draw_per_class_iou, _iou_arguments, compare=True, needs_model=False
    ),
    "qualitative": FigureCommand(
        "image, ground truth and predictions (AlignZeg, Fig. 7)", draw_qualitative, qualitative_arguments, compare=True
    ),
}
