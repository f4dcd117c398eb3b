"""The card of a model's folder: README.md, as the Hugging Face Hub reads and shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from huggingface_hub import EvalResult, ModelCardData
from tabulate import tabulate

from .checkpoint import ModelRecord
from .cli import BUILT_IN
from .config_file import BESIDE, leaves
from .hub import TEMPLATES, WORDS
from .metrics import numbers_only
from .system import System, find_system

_TASKS = {"segmentation": "image-segmentation", "multilabel": "image-classification"}  # the Hub's names
_WHAT = {"segmentation": "zero-shot semantic segmentation", "multilabel": "multi-label zero-shot classification"}
_LIBRARY = "alignzeg-epsilon-d2"
_COUNT = "num_images"


def model_card(
    config: CfgNode,
    record: ModelRecord,
    results: Mapping[str, Mapping[str, Any]] | None,
    *,
    name: str,
    source: str,
    license: str | None = None,
) -> str:
    """The text of a README.md.

    Args:
        config: as it is saved.
        record: as it is saved.
        results: {data set: {metric: value}}.
        name: of the model.
        source: where it can be loaded from.
        license: an identifier of the Hub's.
    """
    system = find_system(record.system)
    parts = [
        f"# {name}",
        f"A model of {system.name} ({_WHAT[system.task]}) for Detectron2, written by {_LIBRARY}. No file here is a pickle.",
        _use(system, source),
        _needs(config, record),
        _classes(record),
        *([_results(results)] if results else []),
    ]
    front = _front_matter(system, results or {}, name, license)
    return f"---\n{front}\n---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(system: System, results: Mapping[str, Mapping[str, Any]], name: str, license: str | None) -> str:
    task = _TASKS[system.task]
    evaluations = [
        EvalResult(task, dataset, dataset, metric, value, task_name=_WHAT[system.task], metric_name=metric)
        for dataset, numbers in results.items()
        for metric, value in _percentages(numbers).items()
    ]
    card = ModelCardData(
        library_name=_LIBRARY,
        license=license,
        model_name=name,
        pipeline_tag=task,
        tags=["detectron2", "zero-shot", "open-vocabulary", system.name.lower()],
        eval_results=evaluations or None,
    )
    return card.to_yaml().strip()


def _use(system: System, source: str) -> str:
    own = "" if system.package in BUILT_IN else f"import {system.package}  # registers {system.name}\n"
    return (
        f"## Use\n\n```python\n{own}from zeroshot_d2.predictor import Predictor\n\n"
        f'predictor = Predictor.from_pretrained("{source}")\n'
        'print(predictor("photo.jpg").classes())\n```'
    )


def _needs(config: CfgNode, record: ModelRecord) -> str:
    lines = ["## What it needs"]
    if record.frozen:
        rows = [
            [
                what,
                facts.get("name", "-"),
                facts.get("pretrained", facts.get("file", "-")) or "random",
                facts.get("sha256", "-"),
            ]
            for what, facts in record.frozen.items()
        ]
        headers = ["part", "name", "weights", "fingerprint"]
        lines.append(
            "These parts were frozen in training. Their weights are not in this folder: they are found by name and tag, and "
            "compared with the fingerprint (SHA-256)."
        )
        lines.append(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    for key, value in leaves(config):
        if not isinstance(value, str) or not value.startswith(BESIDE):
            continue
        file = value.removeprefix(BESIDE)
        if file == WORDS:
            lines.append(
                f"`{WORDS}` has the word vectors of the classes below. Any other class needs the whole file: give its path "
                f"as `{key}`."
            )
        elif file == TEMPLATES:
            lines.append(f"`{TEMPLATES}` has the texts that a class's name is put into.")
        else:
            lines.append(f'`{file}` is not in this folder: give its path, `opts=["{key}", "path/to/{file}"]`.')
    return "\n\n".join(lines)


def _classes(record: ModelRecord) -> str:
    lines = [
        "## Classes",
        f"The model was trained on {len(record.trained)} names of classes. Any others can be given in words.",
    ]
    if record.vocabulary is not None:
        unseen = set(record.vocabulary.unseen)
        names = ", ".join(f"{name}*" if name in unseen else name for name in record.vocabulary.names)
        lines.append(
            f"Its own vocabulary has {len(record.vocabulary)} classes, {len(unseen)} of them unseen (\\*): {_plain(names)}."
        )
    return "\n\n".join(lines)


def _results(results: Mapping[str, Mapping[str, Any]]) -> str:
    numbers = {dataset: _percentages(metrics) for dataset, metrics in results.items()}
    names = dict.fromkeys(name for values in numbers.values() for name in values)
    rows = [
        *([key, *(metrics.get(key, "-") for metrics in results.values())] for key in ("protocol", _COUNT)),
        *([name, *(f"{values[name]:.2f}" if name in values else "-" for values in numbers.values())] for name in names),
    ]
    table = tabulate(rows, ["", *results], tablefmt="github", disable_numparse=True)
    return f"## Results\n\nIn percent, as the evaluation behind the training wrote them to results.json.\n\n{table}"


def _percentages(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {key: round(value, 2) for key, value in numbers_only(metrics).items() if key != _COUNT}


def _plain(text: str) -> str:
    """Names as they are, whatever signs Markdown has."""
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>|#" else sign for sign in text)
