"""What a picture of a trained model needs, as a command: which figure, which models, which data set and which images.

A task and a system offer figures as ``{name: FigureCommand}``; ``python -m zeroshot_d2 figures NAME`` draws one.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from detectron2.data import DatasetCatalog, MetadataCatalog
from matplotlib.figure import Figure
from tqdm import tqdm

from ..cli import add_model_arguments, model_config
from ..images import ImageArray, read_image
from ..predictor import Predictor, batches, build_predictor
from ..storage import PathLike, read_json
from .style import FORMATS

Record = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class FigureCommand:
    """A figure.

    Args:
        summary: what it shows, with the figure of the paper.
        draw: arguments -> figure.
        add_arguments: the figure's own arguments.
        compare: whether a second model may stand beside the first.
        needs_model: False where other files can take the place of a model.
    """

    summary: str
    draw: Callable[[argparse.Namespace], Figure]
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    compare: bool = False
    needs_model: bool = True

    def add_all_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Model, data set, picture and the figure's own."""
        add_model_arguments(parser)
        parser.add_argument("--name", help="what the picture calls the model; default: its system's name")
        if self.compare:
            add_model_arguments(parser, "compare-")
            parser.add_argument("--compare-name", default="Baseline", help="default: Baseline")
        parser.add_argument(
            "--dataset", help="a registered data set; default: the first of DATASETS.TEST, or of the results"
        )
        parser.add_argument(
            "--output", type=Path, required=True, help="the picture, .png, .pdf or .svg; or a folder, which gets a .png"
        )
        self.add_arguments(parser)


def picture_path(output: Path, name: str) -> Path:
    """The path of the picture: ``output``, or NAME.png in it where it is a folder.

    Raises:
        ValueError: the ending is not one of :data:`zeroshot_d2.pictures.style.FORMATS`.
    """
    if output.suffix.lower() in FORMATS:
        return output
    if output.suffix and not output.is_dir():
        raise ValueError(f"--output {output} must end in {', '.join(FORMATS)}, or be a folder")
    return output / f"{name}.png"


# ---------------------------------------------------------------------------------------------------- models and data
def load_models(args: argparse.Namespace, evaluator_type: str) -> tuple[str, dict[str, Predictor]]:
    """The data set, and the predictors by name, the one to compare with first; their vocabulary is that of the data set.

    Raises:
        FileNotFoundError, ValueError: as :func:`zeroshot_d2.cli.model_config` and :func:`check_dataset`.
    """
    cfg = model_config(args)
    dataset = args.dataset or next(iter(cfg.DATASETS.TEST), None)
    if dataset is None:
        raise ValueError("the config has no DATASETS.TEST: name a data set with --dataset")
    check_dataset(dataset, evaluator_type)
    opts = [*args.opts, "DATASETS.TEST", f"('{dataset}',)"]
    args.name = args.name or cfg.MODEL.META_ARCHITECTURE
    models = {args.name: model_config(args, opts=opts)}
    if getattr(args, "compare_model", None) is not None or getattr(args, "compare_weights", None) is not None:
        if args.compare_model is None and args.compare_config_file is None:
            args.compare_config_file = args.config_file if args.model is None else args.model / "config.yaml"
        if args.compare_name == args.name:
            raise ValueError(f"--name and --compare-name are both {args.name!r}")
        models = {args.compare_name: model_config(args, "compare-", opts=opts), **models}
    elif getattr(args, "compare_config_file", None) is not None:
        raise ValueError("--compare-config-file needs --compare-weights")
    return dataset, {name: build_predictor(config) for name, config in models.items()}


def check_dataset(name: str, evaluator_type: str) -> None:
    """Raise ValueError where ``name`` is no registered data set of this type."""

    def fits(other: str) -> bool:
        return MetadataCatalog.get(other).get("evaluator_type") == evaluator_type

    if name not in DatasetCatalog.list() or not fits(name):
        state = "has labels of another kind" if name in DatasetCatalog.list() else "is not registered"
        fitting = list(filter(fits, DatasetCatalog.list()))
        shown = ", ".join([*difflib.get_close_matches(name, fitting), *fitting][:5])
        raise ValueError(
            f"the data set {name!r} {state}; choose another, such as {shown} (`python -m zeroshot_d2 datasets list` shows "
            "all), or --import your own"
        )


def first_records(dataset: str, count: int | None) -> list[Record]:
    """The first ``count`` records of a data set, or all.

    Raises:
        ValueError: ``count`` is not positive.
    """
    if count is not None and count < 1:
        raise ValueError(f"--num-images must be positive, got {count}")
    records = DatasetCatalog.get(dataset)
    return [records[index] for index in range(len(records) if count is None else min(count, len(records)))]


def first_wanted(items: Iterable[T], count: int, wanted: Callable[[T], bool]) -> list[T]:
    """The first ``count`` items that are wanted; where there are fewer, the first of the others fill the list up.

    Raises:
        ValueError: ``count`` is not positive.
    """
    if count < 1:
        raise ValueError(f"the number of images must be positive, got {count}")
    chosen: list[T] = []
    others: list[T] = []
    for item in items:
        (chosen if wanted(item) else others).append(item)
        if len(chosen) == count:
            break
    return [*chosen, *others][:count]


def predictions(predictor: Predictor, records: Sequence[Record], **wanted: Any) -> Iterator[tuple[Record, ImageArray, Any]]:
    """Record, image (H, W, 3) in RGB and the predictor's result, batch by batch."""
    for batch in batches(tqdm(records, unit="image"), predictor.batch_size):
        images = [read_image(record["file_name"], max_pixels=predictor.max_pixels) for record in batch]
        found = predictor([image[:, :, ::-1] for image in images], **wanted)
        yield from zip(batch, images, found, strict=True)


# ------------------------------------------------------------------------------------------------------- result files
def read_results(file: PathLike, what: str = "results") -> dict[str, Any]:
    """A ``results.json``: {data set: {metric: value}}; ``what`` it is to the reader of a message.

    Raises:
        FileNotFoundError, ValueError: as :func:`zeroshot_d2.storage.read_json`; it is no such file.
    """
    results = read_json(file, what)
    if not isinstance(results, dict) or not all(isinstance(numbers, dict) for numbers in results.values()):
        raise ValueError(
            f"the {what} {file} is no results.json of an evaluation: it must hold {{data set: {{metric: value}}}}, as a "
            f"training writes it, got {str(results)[:60]}"
        )
    return results


def first_dataset(file: PathLike) -> str:
    """The first data set of a ``results.json`` that is registered here.

    Raises:
        ValueError: there is none.
    """
    results = read_results(file)
    registered = [name for name in results if name in DatasetCatalog.list()]
    if not registered:
        raise ValueError(f"no data set of {file} is registered: {', '.join(results)}; --import the script that does it")
    return registered[0]
