"""The paper's figures for a trained model, on any registered multi-label data set.

    python -m epsilon_d2.figures top10 --config-file C --weights W --output labels.png                     # Fig. 4
    python -m epsilon_d2.figures attention --config-file C --weights W --output attention.png              # Fig. 1
    python -m epsilon_d2.figures sweep --results FOLDERS --key MODEL.EPSILON.NUM_GROUPS --output groups.png  # Fig. 3

Each folder of ``sweep`` is a finished run of ``train_net.py``, as ``benchmarks/epsilon_ablation.py --sweeps`` leaves them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from matplotlib.figure import Figure

from epsilon_d2.predict import Predictor, load_config
from epsilon_d2.visualization import (
    AttendedImage,
    ImageArray,
    LabelledImage,
    attention_by_module,
    attentions_figure,
    spoken_labels,
    sweep_figure,
    top_labels_figure,
)
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.figures import add_picture_arguments, check_dataset, first_wanted, prepare_picture, save_figure
from zeroshot_d2.trainer import RESULTS_FILE

TOP_K = 10
METRICS = {"ZSL": "ZSL_mAP", "GZSL": "GZSL_mAP"}
AXIS_LABELS = {
    "MODEL.EPSILON.NUM_GROUPS": "number of groups $M$",
    "MODEL.EPSILON.LOSS.LAMBDA": "weight $\\lambda$ of the regularizer",
}

Record = dict[str, Any]

# ---- what the figures show; the demo gathers the same ----


def example_records(dataset: str, split: ClassSplit, count: int) -> list[Record]:
    """The first records with an unseen label; where they are too few, the first of the others too."""
    return first_wanted(
        DatasetCatalog.get(dataset), count, lambda record: bool(split.unseen_mask[record["positive_labels"]].any())
    )


def predictions(predictor: Predictor, records: Iterable[Record]) -> Iterator[tuple[Record, ImageArray, dict[str, Any]]]:
    """Record, image (H, W, 3) in RGB, and what the model says, arrays on the CPU."""
    for record in records:
        image = read_image(record["file_name"], format="RGB")
        yield record, image, {key: value.numpy() for key, value in predictor(image).items()}


# ---- one function per figure ----


def draw_top10(args: argparse.Namespace) -> Figure:
    """Fig. 4: the first labels of the first images that show an unseen class."""
    dataset, predictor = _load(args)
    split = predictor.vocabulary
    examples = [
        LabelledImage(image, output["scores"], present=record["positive_labels"].tolist())
        for record, image, output in predictions(predictor, example_records(dataset, split, args.num_images))
    ]
    return top_labels_figure(examples, split, top_k=min(TOP_K, len(split)))


def draw_attention(args: argparse.Namespace) -> Figure:
    """Fig. 1: where the groups of GPA and the feature blocks of GFP look in the same images."""
    dataset, predictor = _load(args)
    split = predictor.vocabulary
    examples = [
        AttendedImage(image, attention_by_module(output), spoken_labels(output, split))
        for _, image, output in predictions(predictor, example_records(dataset, split, args.num_images))
    ]
    return attentions_figure(examples)


def draw_sweep(args: argparse.Namespace) -> Figure:
    """Fig. 3."""
    return sweep_figure(sweep_points(args.results, args.key, args.dataset), AXIS_LABELS.get(args.key, args.key))


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
        ValueError: a run lacks the key or the numbers, or two runs differ in more than the key and the seed.
    """
    points: dict[Any, dict[str, list[float]]] = {}
    first: dict[str, Any] | None = None
    for folder in folders:
        config = dict(_leaves(yaml.safe_load(_read(folder / "config.yaml"))))
        if key not in config:
            raise ValueError(f"{folder}/config.yaml has no key {key}")
        first = config if first is None else first
        varying = {key, "SEED", "OUTPUT_DIR"}
        others = sorted(k for k in config.keys() | first.keys() if k not in varying and config.get(k) != first.get(k))
        if others:
            raise ValueError(f"{folder} and {folders[0]} differ in {', '.join(others)} too: a sweep varies {key} alone")
        results = json.loads(_read(folder / RESULTS_FILE))
        dataset = next(iter(results)) if dataset is None else dataset
        numbers = results.get(dataset, {})
        missing = [metric for metric in METRICS.values() if numbers.get(metric) is None]
        if missing:
            raise ValueError(
                f"{folder}/{RESULTS_FILE} has no {', '.join(missing)} on {dataset!r}; it has results on {', '.join(results)}"
            )
        point = points.setdefault(config[key], {series: [] for series in METRICS})
        for series, metric in METRICS.items():
            point[series].append(numbers[metric])
    return points


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("MODEL.EPSILON.NUM_GROUPS", 8), ..."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read(file: Path) -> str:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: {file.parent} must be the folder of a finished run")
    return file.read_text(encoding="utf-8")


# ---- command line ----

_FIGURES = {"top10": draw_top10, "attention": draw_attention, "sweep": draw_sweep}


def _load(args: argparse.Namespace) -> tuple[str, Predictor]:
    """The data set and the model; the vocabulary is that of the data set."""
    cfg = load_config(args.config_file, args.weights, args.opts)
    if not args.dataset and not cfg.DATASETS.TEST:
        raise ValueError("the config has no DATASETS.TEST: name a data set with --dataset")
    dataset = args.dataset or cfg.DATASETS.TEST[0]
    check_dataset(dataset, "epsilon_multilabel")
    cfg.DATASETS.TEST = (dataset,)
    cfg.MODEL.EPSILON.TEST.RETURN_ATTENTION = args.figure == "attention"
    return dataset, Predictor(cfg)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m epsilon_d2.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    figures = parser.add_subparsers(dest="figure", required=True)
    for name, default, text in (
        ("top10", 8, "the first 10 labels of images (Fig. 4)"),
        ("attention", 3, "where the groups look (Fig. 1)"),
    ):
        figure = figures.add_parser(name, help=text)
        figure.add_argument("--config-file", type=Path, required=True, help="the config of the checkpoint")
        figure.add_argument("--weights", required=True, help="the checkpoint")
        figure.add_argument("--dataset", help="a registered data set; default: the first of DATASETS.TEST")
        figure.add_argument("--num-images", type=int, default=default, help=f"default: {default}")
        add_picture_arguments(figure)
        figure.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the config")
    sweep = figures.add_parser("sweep", help="mAP against a hyper-parameter (Fig. 3)")
    sweep.add_argument("--results", type=Path, nargs="+", required=True, help="folders of finished runs")
    sweep.add_argument("--key", default="MODEL.EPSILON.NUM_GROUPS", help="the config key that they vary")
    sweep.add_argument("--dataset", help="whose results; default: the first in results.json")
    add_picture_arguments(sweep)
    return parser


def main(arguments: Sequence[str] | None = None) -> Path:
    """Draw a figure by command-line arguments; gives the path of the picture.

    Raises:
        FileNotFoundError: a config, checkpoint, run or script does not exist.
        ValueError: the data set, the model, a run or an argument does not fit the figure.
    """
    args = _parser().parse_args(arguments)
    path = prepare_picture(args, args.figure)
    save_figure(_FIGURES[args.figure](args), path)
    print(f"written: {path}")
    return path


if __name__ == "__main__":
    main()
