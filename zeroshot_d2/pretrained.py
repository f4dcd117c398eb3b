"""A model as one folder: ``config.yaml``, ``model.safetensors``, ``README.md``, and what of its texts fits in.

Nothing in it is a pickle, nothing names a path of the machine that wrote it, and whatever was frozen in training is named by
its fingerprint, not contained. The record of :mod:`zeroshot_d2.checkpoint` is in the header of ``model.safetensors``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode
from torch import nn

from .checkpoint import AVERAGE, FINAL, MODEL_FILE, ModelRecord, weights_in, write_model
from .cli import load_config
from .config_file import BESIDE, leaves
from .hub import CARD, CONFIG, TEMPLATES, WORDS, find_model
from .model_card import model_card
from .pictures.command import read_results
from .storage import PathLike, read_text, write_text
from .trainer import RESULTS_FILE
from .vocabulary import is_registered, split_of_dataset
from .word_vectors import WordVectorEmbeddings, write_excerpt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .predictor import Predictor

_RESULTS = "file of results"
_OF_THE_RUN = ("MODEL.WEIGHTS", "OUTPUT_DIR", "MODEL.COMPILE", "SOLVER.WANDB_PROJECT")
"""Keys that say where and how it ran, and nothing of the model."""


# --------------------------------------------------------------------------------------------------------- loading
def config_of(
    model: PathLike, *, revision: str | None = None, device: str | None = None, opts: Sequence[object] = ()
) -> CfgNode:
    """The config of a model's folder, or of a finished run's, with its weights.

    Args:
        model: the folder, or ``hub:OWNER/NAME[@REVISION]``.
        revision: of the Hub's.
        device: MODEL.DEVICE; by default the config's, or the CPU where there is no GPU.
        opts: KEY, VALUE, KEY, VALUE, ...

    Raises:
        FileNotFoundError: the folder is not there or lacks a file; the model needs a file that is not part of it, whose path
            no key of ``opts`` gives.
        ValueError: as :func:`zeroshot_d2.cli.load_config` and :func:`zeroshot_d2.hub.find_model`.
        OSError: as :func:`zeroshot_d2.hub.find_model`.
    """
    folder = find_model(model, revision)
    for file in (folder / CONFIG, weights_in(folder)):
        if not file.is_file():
            raise FileNotFoundError(f"{folder} has no {file.name}: name the folder of a saved model or of a finished run")
    chosen = [] if device is None else ["MODEL.DEVICE", device]
    return load_config(folder / CONFIG, [*opts, *chosen], weights=weights_in(folder))


# ---------------------------------------------------------------------------------------------------------- saving
def save(
    predictor: Predictor[Any],
    folder: PathLike,
    *,
    license: str | None = None,
    results: PathLike | None = None,
    source: str = "",
) -> Path:
    """Write the model of a predictor as one folder; until the weights are there, which come last, it is no model.

    Args:
        predictor: of the model.
        folder: new or empty, or one that was written before.
        license: an identifier of the Hub's, such as "apache-2.0", for the card; None: the card names none.
        results: the results.json whose numbers the card shows; by default the one beside the weights, where they are those
            that it is about.
        source: how the card's example names the model; by default as the folder is called.

    Returns:
        the folder.

    Raises:
        ValueError: the folder holds other files, the model needs more than one list of templates or file of word vectors,
            or the results are no results.json.
        FileNotFoundError: there are no such results.
        OSError: a file cannot be written.
    """
    target, cfg, model = Path(folder), predictor.cfg, predictor.model
    found = results_of(cfg) if results is None else read_results(results, _RESULTS)
    templates, words = _templates(cfg), _word_vectors(model)
    held = {TEMPLATES: templates, WORDS: None if words is None else words.given}
    config = _portable(cfg, {value: name for name, value in held.items() if value is not None})
    record = _portable_record(predictor)
    text = None if templates is None else read_text(templates, "list of templates")
    _make_no_model(target)
    if text is not None:
        write_text(target / TEMPLATES, text)
    if words is not None:
        write_excerpt(words, _labels(cfg, record, predictor), target / WORDS)
    for name, value in held.items():
        if value is None:
            (target / name).unlink(missing_ok=True)
    write_text(target / CONFIG, config.dump())
    name = target.resolve().name
    card = model_card(config, record, found, name=name, source=source or name, license=license)
    write_text(target / CARD, card)
    write_model(target / MODEL_FILE, model.state_dict(), record)
    return target


def results_of(cfg: CfgNode) -> dict[str, Any] | None:
    """The results of the weights in MODEL.WEIGHTS, which their training wrote beside them; None where there are none.

    Those of a training with an average of its weights are about the average.
    """
    weights = Path(cfg.MODEL.WEIGHTS)
    if weights.stem != (AVERAGE if cfg.SOLVER.EMA_DECAY else FINAL):
        return None
    file = weights.with_name(RESULTS_FILE)
    return read_results(file, _RESULTS) if file.is_file() else None


def _make_no_model(folder: Path) -> None:
    """Take the weights out of a folder that was written before; any other must be new or empty."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder for the model")
    others = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if others and MODEL_FILE not in others:
        raise ValueError(f"{folder} holds other files, such as {others[0]}: name a new folder for the model")
    (folder / MODEL_FILE).unlink(missing_ok=True)


def _templates(cfg: CfgNode) -> str | None:
    """The list of templates that a config names as a file."""
    found = {str(value) for key, value in leaves(cfg) if key.endswith(".TEMPLATES") and _is_path(value)}
    if len(found) > 1:
        raise ValueError(f"the model has several lists of templates, {', '.join(sorted(found))}, of which one can be saved")
    return next(iter(found), None)


def _word_vectors(model: nn.Module) -> WordVectorEmbeddings | None:
    """The word vectors that a model makes label vectors of."""
    values = (value for module in model.modules() for value in vars(module).values())
    found = {value.file: value for value in values if isinstance(value, WordVectorEmbeddings)}
    if len(found) > 1:
        files = ", ".join(map(str, sorted(found)))
        raise ValueError(f"the model has several files of word vectors, {files}, of which one can be saved")
    return next(iter(found.values()), None)


def _labels(cfg: CfgNode, record: ModelRecord, predictor: Predictor[Any]) -> set[str]:
    """The texts of the classes that the model knows wherever it is loaded, and of those in use."""
    splits = [split_of_dataset(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if is_registered(name)]
    splits += [split for split in (record.vocabulary, predictor._vocabulary) if split is not None]
    return {text for split in splits for synonyms in split.synonyms for text in synonyms}


# ------------------------------------------------------------------------------------------------------------ paths
def _is_path(value: object) -> bool:
    """Whether a config's value names a file, as against a tag or a name: it is one here, or could be one elsewhere only."""
    if not isinstance(value, str) or not re.search(r"[/\\.]", value):
        return False
    path = Path(value).expanduser()
    return path.is_absolute() or path.is_file()


def _portable(cfg: CfgNode, held: Mapping[str, str]) -> CfgNode:
    """A config without paths of this machine.

    Args:
        cfg: stays as it is.
        held: {value that names a file: its name in the model's folder}; of other files the name alone stays.
    """
    result = cfg.clone()
    result.defrost()
    for key, value in list(leaves(result)):
        if isinstance(value, str) and (value in held or _is_path(value)):
            result.merge_from_list([key, f"{BESIDE}{held.get(value, Path(value).name)}"])
    result.MODEL.DEVICE = result.MODEL.DEVICE.partition(":")[0]  # any GPU, whichever it was here
    for key in _OF_THE_RUN:
        section, _, name = key.rpartition(".")
        (result[section] if section else result).pop(name, None)
    return result


def _portable_record(predictor: Predictor[Any]) -> ModelRecord:
    """The record of a predictor's model, with names in the place of paths."""
    frozen = getattr(predictor.model, "frozen_record", {})
    names = {
        what: {fact: Path(value).name if _is_path(value) else value for fact, value in facts.items()}
        for what, facts in frozen.items()
    }
    record = ModelRecord(
        predictor.cfg.MODEL.META_ARCHITECTURE, predictor.default_vocabulary, tuple(sorted(predictor.trained))
    )
    return replace(record, frozen=names)
