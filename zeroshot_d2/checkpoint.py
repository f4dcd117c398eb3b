"""Checkpoints: weights, and a record of what they are for, so that a checkpoint can be used without its data sets.

The record says which system and which vocabulary the weights belong to, which classes they were trained on, and which frozen
weights they were learnt upon. Loading a checkpoint on top of others is an error instead of a model whose scores mean
nothing.
"""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import nn

from .class_split import ClassSplit
from .frozen import FrozenRecord
from .storage import PathLike, whole_file, write_text
from .vocabulary import is_registered, split_of_dataset

logger = logging.getLogger(__name__)

ENTRY = "zeroshot_d2"
"""Name of the record among a checkpoint's entries."""


# -------------------------------------------------------------------------------------------------------- knowledge
@dataclass(frozen=True)
class Knowledge:
    """What a model knows of classes.

    Args:
        trained: names and prompt texts of the classes that it was trained on.
        vocabulary: the classes that it chooses among unless told otherwise; None where nothing says.
    """

    trained: frozenset[str]
    vocabulary: ClassSplit | None

    @classmethod
    def of_config(cls, cfg: CfgNode, frozen: FrozenRecord | None = None) -> Knowledge:
        """From the record of MODEL.WEIGHTS, where that is a checkpoint with one, and the registered data sets.

        What a checkpoint was trained on is said by its record alone. The vocabulary is that of the first of DATASETS.TEST
        where it is registered, else the record's.

        Args:
            cfg: of the model.
            frozen: what its frozen weights are, to be compared with the record here, whatever loads the checkpoint later
                (Detectron2's own DefaultPredictor compares nothing).

        Raises:
            ValueError: a data set is not registered and the weights do not make up for it, or as :func:`check_record`.
        """
        record = _record_of_weights(cfg)
        if frozen is not None and record is not None:
            check_record(record, frozen, cfg.MODEL.WEIGHTS)
        tests = list(cfg.DATASETS.TEST)[:1]
        if record is None:
            trained = frozenset(text for name in cfg.DATASETS.TRAIN for text in split_of_dataset(name).texts)
            return cls(trained, split_of_dataset(tests[0]) if tests else None)
        registered = bool(tests) and is_registered(tests[0])
        return cls(frozenset(record.trained), split_of_dataset(tests[0]) if registered else record.vocabulary)


@dataclass(frozen=True)
class ModelRecord:
    """The record in a checkpoint.

    Args:
        system: MODEL.META_ARCHITECTURE.
        vocabulary: that of the first test data set, else of the first training data set.
        trained: names and prompt texts of the classes that the model was trained on, sorted.
        frozen: what its frozen weights are.
    """

    system: str
    vocabulary: ClassSplit | None = None
    trained: tuple[str, ...] = ()
    frozen: FrozenRecord = field(default_factory=dict)

    @classmethod
    def for_training(cls, cfg: CfgNode, model: nn.Module) -> ModelRecord:
        """That of a model which is trained with ``cfg``: it knows the classes of DATASETS.TRAIN, and those that its weights
        knew before."""
        names = [name for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN) if is_registered(name)]
        known = {text for name in cfg.DATASETS.TRAIN if is_registered(name) for text in split_of_dataset(name).texts}
        before = _record_of_weights(cfg)
        known |= set(before.trained) if before is not None else set()
        return cls(
            cfg.MODEL.META_ARCHITECTURE,
            split_of_dataset(names[0]) if names else None,
            tuple(sorted(known)),
            getattr(model, "frozen_record", {}),
        )

    def to_dict(self) -> dict[str, Any]:
        """Text, lists and dicts: what a checkpoint may hold beside tensors."""
        return {
            "system": self.system,
            "vocabulary": None if self.vocabulary is None else self.vocabulary.to_dict(),
            "trained": list(self.trained),
            "frozen": {what: dict(facts) for what, facts in self.frozen.items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ModelRecord:
        """The inverse of :meth:`to_dict`."""
        vocabulary = content["vocabulary"]
        return cls(
            content["system"],
            None if vocabulary is None else ClassSplit.from_dict(vocabulary),
            tuple(content["trained"]),
            content["frozen"],
        )


# ---------------------------------------------------------------------------------------------------------- files
def refuse_address(name: str, path: object) -> None:
    """Raise ValueError where the path that ``name`` gives is an address: nothing is downloaded and run unseen."""
    if "://" in str(path):
        raise ValueError(f"{name} {path} is an address: download the file, look it over, and give its path")


def read_checkpoint(path: PathLike, *, mapped: bool = False) -> dict[str, Any]:
    """The entries of a checkpoint, weights on the CPU; no code in it is run.

    Args:
        path: a .pth file.
        mapped: leave the weights on the disk until they are used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint or damaged; the file is named, with the way out.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"the checkpoint {file} does not exist (looked for it from {Path.cwd()})")
    if file.suffix == ".pkl":
        raise ValueError(
            f"the checkpoint {file} is a pickle, which can run code: convert it with a program you trust to a .pth file "
            'of {"model": {name: tensor}}'
        )
    head = file.open("rb").read(64)
    if not head:
        raise ValueError(f"the checkpoint {file} is empty: the run or the download was cut off, take another one")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"the checkpoint {file} is only a pointer of Git LFS: fetch the file itself with `git lfs pull`")
    if head.lstrip()[:1] == b"<":
        raise ValueError(f"the checkpoint {file} is a web page: the download asked for a login or the link is dead")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"the checkpoint {file} holds more than tensors, numbers and texts, or is no checkpoint; nothing in it was run"
        ) from error
    # A damaged archive: RuntimeError and OSError from torch's reader, the others from the unpickler.
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(
            f"the checkpoint {file} is damaged or cut off: take another one ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"the checkpoint {file} holds a {type(content).__name__}, not named weights")
    if not isinstance(content.get("model", {}), dict):
        raise ValueError(f"the checkpoint {file} holds a {type(content['model']).__name__} as its model, not named weights")
    if "frozen_record" in content.get("model", {}):
        raise ValueError(f"the checkpoint {file} was written by version 0.1.0: train again, or use that version")
    if "model" not in content:  # bare weights, as torch.save(model.state_dict(), file) leaves them
        content = {"model": content}
    return content


def read_record(path: PathLike) -> ModelRecord | None:
    """The record in a checkpoint; None where it has none.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_checkpoint`.
    """
    return _record_in(read_checkpoint(path, mapped=True), path)


def _record_in(content: Mapping[str, Any], path: PathLike) -> ModelRecord | None:
    if ENTRY not in content:
        return None
    try:
        return ModelRecord.from_dict(content[ENTRY])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"the record in the checkpoint {path} is not one that this version writes ({type(error).__name__}: {error})"
        ) from error


def _record_of_weights(cfg: CfgNode) -> ModelRecord | None:
    weights = cfg.MODEL.WEIGHTS
    return read_record(weights) if weights and Path(weights).is_file() and not weights.endswith(".pkl") else None


def check_record(record: ModelRecord | None, frozen: FrozenRecord, source: PathLike) -> None:
    """Compare the frozen weights that a checkpoint was trained with and those of a model.

    Weights without a record, such as a mean of checkpoints, are taken on trust, with a warning.

    Raises:
        ValueError: they differ.
    """
    if record is None:
        if frozen:
            logger.warning(
                "%s does not say which %s it was trained with: make sure that it is this one", source, " and ".join(frozen)
            )
        return
    for what, ours in frozen.items():
        theirs = record.frozen.get(what, {})
        if theirs.get("sha256") != ours["sha256"]:
            raise ValueError(
                f"the checkpoint was trained with the {what} {_described(theirs)}, this model has {_described(ours)}: its "
                "scores would be meaningless. Set the config as it was in training (the config.yaml beside the checkpoint)"
            )


def _described(entry: Mapping[str, str]) -> str:
    facts = {key: value for key, value in entry.items() if key != "sha256"}
    return f"{facts or 'unknown'} ({entry.get('sha256', 'not recorded')[:12]})"


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with a record in every file, which loading compares; files are whole or absent."""

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, record: ModelRecord | None = None, **checkpointables: Any
    ) -> None:
        """
        Args:
            model: possibly wrapped for several processes.
            save_dir: where checkpoints go.
            record: written into them.
            checkpointables: as for Detectron2's.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.record = record

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``save_dir/name.pth`` and name it in ``last_checkpoint``; on the main process only."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **{key: obj.state_dict() for key, obj in self.checkpointables.items()}}
        if self.record is not None:
            data[ENTRY] = self.record.to_dict()
        file = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", file)
        with whole_file(file) as temporary:
            torch.save({**data, **kwargs}, temporary)
        self.tag_last_checkpoint(file.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_text(Path(self.save_dir) / "last_checkpoint", last_filename_basename)

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = read_checkpoint(filename)
        check_record(_record_in(content, filename), getattr(self.model, "frozen_record", {}), filename)
        content.pop(ENTRY, None)
        return {**content, "matching_heuristics": False}
