"""Score saved predictions of any method on a registered data set, or compare two methods.

    python -m zeroshot_d2 score --dataset coco_stuff_164k_val --predictions labels/ --values index --vocabulary all
    python -m zeroshot_d2 score --dataset coco_stuff_164k_val --compare ours/ theirs/ --values release --vocabulary all
    python -m zeroshot_d2 score --dataset nus_wide_test --predictions scores.npz --vocabulary all

Segmentations: a folder of label images or .npy arrays, an .npz, or Detectron2's sem_seg_predictions.json. Scores of labels:
a folder that TEST.SAVE_PREDICTIONS scores has written, an .npz, an .npy or a .csv. `--help` beside a `--dataset` says what
its task takes. Nothing is scored unless every image has its prediction.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate

from ..cli import Parser, folder, from_zero, peek, positive
from ..referee import Referee, Scored
from ..resampling import draw_weights, interval
from ..startup import likely
from ..storage import write_json
from ..system import TASKS, Task, resolve

_MOST_DIFFERENT = 10  # classes that a comparison shows


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the command-line arguments ``argv``.

    Raises:
        FileNotFoundError: predictions or files of the data set are missing.
        ValueError: no such data set; as the task's referee.
    """
    parser = Parser("python -m zeroshot_d2 score", __doc__, takes_keys=False)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="a registered data set")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--predictions", type=Path, metavar="PATH", help="of one method")
    what.add_argument("--compare", type=Path, nargs=2, metavar="PATH", help="of two methods, A and B")
    parser.add_argument(
        "--vocabulary",
        choices=("all", "unseen"),
        help="among which classes of the data set the predictions were made; needed where it has unseen ones",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="the predictions' classes in their order, one a line; default: the data set's",
    )
    parser.add_argument("--resamples", type=positive, default=1000, help="of the comparison's bootstrap; default 1000")
    parser.add_argument("--seed", type=from_zero, default=0, help="of the bootstrap; default 0")
    parser.add_argument("--output", type=folder, help="folder of results.json")
    task = _task_of(argv)
    referee_class = None
    if task is not None:
        referee_class = resolve(task.parts["referee"])
        referee_class.add_arguments(parser)
    args = parser.parse(argv)
    if referee_class is None:
        raise ValueError(
            f"--dataset: no data set {args.dataset!r} can be scored; there are {likely(args.dataset, _scorable())}"
        )
    _check_vocabulary(args)
    referee: Referee = referee_class(args.dataset, args)
    if args.predictions is not None:
        content = _score_one(referee.score(args.predictions, keep_images=False), args)
    else:
        scored = [referee.score(path, keep_images=True) for path in args.compare]
        content = _compare(scored, args)
    if args.output is not None:
        write_json(args.output / "results.json", content)
        print(f"written: {args.output / 'results.json'}")
    return 0


def _task_of(argv: Sequence[str] | None) -> Task | None:
    """The task of ``--dataset``, whose arguments are part of the command line; None where it is not registered."""
    args = peek(argv)
    if args.dataset not in DatasetCatalog:
        return None
    kind = MetadataCatalog.get(args.dataset).get("evaluator_type")
    return next((task for task in TASKS.values() if task.evaluator_type == kind), None)


def _scorable() -> list[str]:
    kinds = {task.evaluator_type for task in TASKS.values()}
    return [name for name in DatasetCatalog if MetadataCatalog.get(name).get("evaluator_type") in kinds]


def _check_vocabulary(args: argparse.Namespace) -> None:
    meta = MetadataCatalog.get(args.dataset)
    if args.vocabulary is None:
        if meta.class_split.unseen:
            raise ValueError(
                f"data set {args.dataset!r} has unseen classes: say among which classes the predictions were made, "
                "--vocabulary all or --vocabulary unseen"
            )
        args.vocabulary = "all"
    if args.vocabulary == "all" and meta.protocol in ("ZS3", "ZSL"):
        raise ValueError(
            f"data set {args.dataset!r} has unseen classes alone: give --vocabulary unseen, or a data set with all"
        )


def _score_one(scored: Scored, args: argparse.Namespace) -> Mapping[str, Any]:
    print(scored.table(args.dataset))
    for name in scored.results:
        rows = [[klass, _percent(value)] for klass, value in scored.per_class(name).items()]
        print(f"\n{name}, {scored.per_class_unit} of each class (*: unseen)")
        print(_table(["class", scored.per_class_unit], _starred(rows, args.dataset)))
    return {"dataset": args.dataset, "predictions": str(args.predictions), "results": scored.results}


def _compare(scored: Sequence[Scored], args: argparse.Namespace) -> Mapping[str, Any]:
    """Print the two methods side by side."""
    a, b = scored
    if a.results.keys() != b.results.keys():
        raise ValueError(
            f"A gives {', '.join(a.results)}, B gives {', '.join(b.results)}: compare labels with labels, scores with scores"
        )
    for letter, path, method in zip("AB", args.compare, scored, strict=True):
        print(f"{letter} = {path}\n{method.table(letter)}\n")
    content: dict[str, Any] = {"dataset": args.dataset, "A": str(args.compare[0]), "B": str(args.compare[1])}
    for name in a.results:
        comparison = _headlines(name, a, b, args)
        rows = [
            [key, *map(_percent, (x["A"], x["B"])), _signed(x["difference"]), _span(x["interval"])]
            for key, x in comparison.items()
        ]
        print(f"{name}: B - A, with its 95 % interval over {args.resamples} paired resamples of {a.num_images} images")
        print(_table(["number", "A", "B", "B - A", "95 % interval"], rows))
        classes = _by_difference(a.per_class(name), b.per_class(name))
        print(f"\n{name}: the classes that differ most (*: unseen)")
        shown = [[klass, *map(_percent, pair), _signed(pair[1] - pair[0])] for klass, pair in classes[:_MOST_DIFFERENT]]
        print(_table(["class", "A", "B", "B - A"], _starred(shown, args.dataset)) + "\n")
        content[name] = {"numbers": comparison, scored[0].per_class_unit: dict(classes)}
    content |= {"resamples": args.resamples, "seed": args.seed}
    return content


def _headlines(name: str, a: Scored, b: Scored, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """{number: A, B, their difference and its interval}."""
    first, second = a.headlines(name), b.headlines(name)
    differences: dict[str, list[npt.NDArray[np.float64]]] = {}
    for weights in draw_weights(a.num_images, args.resamples, args.seed):
        ours, theirs = a.resampled(name, weights), b.resampled(name, weights)
        for key, values in ours.items():
            differences.setdefault(key, []).append(theirs[key] - values)
    return {
        key: {
            "A": first[key],
            "B": second[key],
            "difference": second[key] - first[key],
            "interval": interval(np.concatenate(differences[key])),
        }
        for key in first
        if key in second
    }


def _by_difference(a: Mapping[str, float | None], b: Mapping[str, float | None]) -> list[tuple[str, tuple[float, float]]]:
    """(class, its two numbers), the largest difference first."""
    both = [(name, (x, y)) for name, x in a.items() if x is not None and (y := b[name]) is not None]
    return sorted(both, key=lambda entry: -abs(entry[1][1] - entry[1][0]))


def _starred(rows: Sequence[Sequence[str]], dataset: str) -> list[list[str]]:
    unseen = set(MetadataCatalog.get(dataset).class_split.unseen)
    return [[f"{row[0]} *" if row[0] in unseen else row[0], *row[1:]] for row in rows]


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(rows, headers=headers, tablefmt="github", colalign=align if rows else None, disable_numparse=True)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _signed(value: float) -> str:
    return f"{value:+.2f}"


def _span(value: tuple[float, float] | None) -> str:
    return "-" if value is None else f"[{value[0]:+.2f}, {value[1]:+.2f}]"
