"""Checkpoints: weights, and a record of what they are for, so that a checkpoint can be used without its data sets.

The record says which system and which vocabulary the weights belong to, which classes they were trained on, and which frozen
weights they were learnt upon. Loading a checkpoint on top of others is an error instead of a model whose scores mean
nothing.
"""

from __future__ import annotations

import errno
import json
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from .class_split import ClassSplit
from .frozen import FrozenRecord
from .resume import RunState
from .storage import PathLike, whole_file, write_text
from .vocabulary import is_registered, split_of_dataset
from .weights import SAFETENSORS, check_checksums, check_tensors, read_texts, read_weights, write_safetensors

logger = logging.getLogger(__name__)

ENTRY = "zeroshot_d2"
"""Name of the record among a checkpoint's entries."""

RUN_ENTRY = "run"
"""Name of the state of the run that wrote it."""

LAST_CHECKPOINT = "last_checkpoint"
"""The file that names the newest checkpoint of a folder, as in Detectron2."""

FINAL, BEST, AVERAGE = "model_final", "model_best", "model_average"
"""Names of the files that people take away, which are written as safetensors too. No run goes on from the last two, which
hold weights alone."""

MODEL_FILE = f"model{SAFETENSORS}"
"""The weights of a model's folder, see :mod:`zeroshot_d2.pretrained`."""


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
        """The inverse of :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: ``content`` is no record.
        """
        system, vocabulary, trained, frozen = (content[key] for key in ("system", "vocabulary", "trained", "frozen"))
        if not isinstance(system, str):
            raise ValueError(f"the system must be a text, got {system!r}")
        if not isinstance(trained, list | tuple) or not all(isinstance(text, str) for text in trained):
            raise ValueError(f"the trained classes must be a list of texts, got {trained!r}")
        if not isinstance(frozen, dict) or not all(isinstance(facts, dict) for facts in frozen.values()):
            raise ValueError(f"the frozen parts must be {{what: facts}}, got {frozen!r}")
        return cls(system, None if vocabulary is None else ClassSplit.from_dict(vocabulary), tuple(trained), frozen)


# ---------------------------------------------------------------------------------------------------------- files
def refuse_address(name: str, path: object) -> None:
    """Raise ValueError where the path that ``name`` gives is an address: nothing is downloaded and run unseen."""
    if "://" in str(path):
        raise ValueError(f"{name} {path} is an address: download the file, look it over, and give its path")


def read_checkpoint(path: PathLike, *, mapped: bool = False) -> dict[str, Any]:
    """The entries of a checkpoint, weights on the CPU; no code in it is run.

    Args:
        path: a .pth file, or one of safetensors, which holds the model and its record alone.
        mapped: leave the weights on the disk until they are used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint or damaged; the file is named, with the way out.
    """
    content = read_weights(path, mapped=mapped)
    if Path(path).suffix == SAFETENSORS:
        content = {"model": content, **_record_text(read_texts(path), path)}
    if not isinstance(content.get("model", {}), dict):
        kind = type(content["model"]).__name__
        raise ValueError(f"the checkpoint {path} holds a {kind} as its model, not named weights: take another one")
    if "frozen_record" in content.get("model", {}):
        raise ValueError(f"the checkpoint {path} was written by version 0.1.0: train again, or use that version")
    if "model" not in content:  # bare weights, as torch.save(model.state_dict(), file) leaves them
        content = {"model": content}
    # The names that torch.compile gives to what it wraps.
    content["model"] = {str(name).replace("_orig_mod.", ""): value for name, value in content["model"].items()}
    if not mapped:
        check_tensors(content["model"], f"the checkpoint {path}")
    return content


def read_record(path: PathLike) -> ModelRecord | None:
    """The record in a checkpoint; None where it has none.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_checkpoint`.
    """
    return _record_in(read_checkpoint(path, mapped=True), path)


def _record_text(texts: Mapping[str, str], path: PathLike) -> dict[str, Any]:
    """The record among the texts of a file of safetensors, as an entry; none where it has none."""
    try:
        return {ENTRY: json.loads(texts[ENTRY])} if ENTRY in texts else {}
    except (ValueError, RecursionError) as error:
        raise _no_record(path, error) from error


def _record_in(content: Mapping[str, Any], path: PathLike) -> ModelRecord | None:
    if ENTRY not in content:
        return None
    try:
        return ModelRecord.from_dict(content[ENTRY])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _no_record(path, error) from error


def _no_record(path: PathLike, error: Exception) -> ValueError:
    return ValueError(
        f"the record in the checkpoint {path} is not one that this version writes ({type(error).__name__}: {error}): "
        "take the file as it was written"
    )


def write_model(path: PathLike, weights: Mapping[str, torch.Tensor], record: ModelRecord | None) -> None:
    """Write weights as safetensors with their record in the header, as JSON.

    Raises:
        OSError: as :func:`zeroshot_d2.weights.write_safetensors`.
    """
    write_safetensors(path, weights, {} if record is None else {ENTRY: json.dumps(record.to_dict(), ensure_ascii=False)})


def weights_in(folder: PathLike) -> Path:
    """The file that the model of a folder is loaded from, there or not: model.safetensors of one that was saved, else
    model_final.pth of a run, else model_final.safetensors."""
    usual = Path(folder) / f"{FINAL}.pth"
    files = (Path(folder) / MODEL_FILE, usual, usual.with_suffix(SAFETENSORS))
    return next((file for file in files if file.is_file()), usual)


def read_run(path: PathLike) -> RunState | None:
    """What a checkpoint says about the run that wrote it; None where it says nothing.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_checkpoint`.
    """
    content = read_checkpoint(path, mapped=True)
    try:
        return RunState.from_dict(content[RUN_ENTRY]) if RUN_ENTRY in content else None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the settings in the checkpoint {path} are not as this version writes them: {error}") from error


def checkpoints_in(folder: PathLike) -> list[Path]:
    """The checkpoints that trainings in ``folder`` go on from, whole or not, the newest last."""
    files = Path(folder).glob("model_*.pth")
    return sorted((file for file in files if file.stem not in (BEST, AVERAGE)), key=_age)


def newest_whole_checkpoint(folder: PathLike) -> Path | None:
    """The checkpoint that a run in ``folder`` goes on from; None where there is none.

    It is the one that ``last_checkpoint`` names, or one that was written after it (a run can be killed in between). Where
    that is damaged, the newest that is not; those passed over are logged.

    Raises:
        ValueError: there are checkpoints, and none is whole.
    """
    files = checkpoints_in(folder)
    tag = Path(folder) / LAST_CHECKPOINT
    # The name alone: a tag cannot lead out of the folder, nor to another kind of file.
    named = tag.read_text(encoding="utf-8", errors="replace").strip() if tag.is_file() else ""
    last = next((file for file in files if file.name == named), None)
    if tag.is_file() and last is None:
        logger.warning("%s names %r, which is no checkpoint in that folder: it is passed over", tag, named[:80])
    if last is not None:  # files of an earlier run may have higher numbers, files of a copied folder any age
        later = [file for file in files if _age(file) > _age(last) and file.stem > last.stem]  # "model_final" is the last
        files = [*(file for file in files if file != last and file not in later), last, *later]
    passed_over: list[str] = []
    for file in reversed(files):
        problem = damage_of(file)
        if not problem:
            for text in passed_over:
                logger.warning("passed over: %s", text)
            return file
        passed_over.append(problem)
    if passed_over:
        raise ValueError(
            f"none of the {len(passed_over)} checkpoints in {folder} can be resumed from: {passed_over[0]}. Start anew, "
            "without --resume, in another OUTPUT_DIR"
        )
    return None


def _age(file: Path) -> tuple[int, str]:
    """Sorts files by when they were written."""
    return file.stat().st_mtime_ns, file.name


def damage_of(file: Path) -> str:
    """What keeps a run from going on from this checkpoint; "" where nothing does."""
    try:
        content = read_checkpoint(file, mapped=True)
        if zipfile.is_zipfile(file):
            check_checksums(file)
    except (ValueError, zipfile.BadZipFile) as error:
        return str(error)
    return "" if "iteration" in content else f"the checkpoint {file} holds weights alone, not the state of a training"


def _record_of_weights(cfg: CfgNode) -> ModelRecord | None:
    weights = cfg.MODEL.WEIGHTS
    return read_record(weights) if weights and Path(weights).is_file() else None


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
                f"{source}: the checkpoint was trained with the {what} {_described(theirs)}, this model has "
                f"{_described(ours)}: its scores would be meaningless. Set the config as it was in training (the config.yaml"
                f" beside the checkpoint), of the system {record.system}"
            )


def _described(entry: Mapping[str, str]) -> str:
    facts = {key: value for key, value in entry.items() if key != "sha256"}
    return f"{facts or 'unknown'} ({entry.get('sha256', 'not recorded')[:12]})"


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with a record in every file, which loading compares; files are whole or absent."""

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        record: ModelRecord | None = None,
        run: RunState | None = None,
        keep: int = 0,
        **checkpointables: Any,
    ) -> None:
        """
        Args:
            model: possibly wrapped for several processes.
            save_dir: where checkpoints go.
            record: written into them.
            run: what a resumed run is compared with; written into them.
            keep: how many of the periodic ones stay; 0: all.
            checkpointables: as for Detectron2's.

        Raises:
            ValueError: ``keep`` is negative.
        """
        super().__init__(model, save_dir, **checkpointables)
        if keep < 0:
            raise ValueError(f"SOLVER.CHECKPOINT_KEEP must be 0 (all) or a number of checkpoints, got {keep}")
        self.record, self.run, self.keep = record, run, keep

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``save_dir/name.pth`` and name it in ``last_checkpoint``; on the main process only.

        Beside :data:`FINAL` the weights are also written as safetensors; so they are by :meth:`save_weights`.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        state = {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        if self.run is not None:
            state[RUN_ENTRY] = self.run.to_dict()
        file = self._write(name, {**state, **kwargs})
        self.tag_last_checkpoint(file.name)
        if self.keep:
            periodic = sorted(Path(self.save_dir).glob("model_" + "[0-9]" * 7 + ".pth"), key=_age)
            for old in periodic[: -self.keep]:
                old.unlink()

    def save_weights(self, name: str) -> None:
        """Write ``save_dir/name.pth`` with the model alone, which no run goes on from; on the main process only."""
        if self.save_dir and self.save_to_disk:
            self._write(name, {})

    def _write(self, name: str, state: Mapping[str, Any]) -> Path:
        data = {"model": self.model.state_dict(), **state}
        if name in (FINAL, BEST, AVERAGE):
            # First, so that it is there whenever the other is: no resumed run writes it again.
            write_model(Path(self.save_dir) / f"{name}{SAFETENSORS}", data["model"], self.record)
        if self.record is not None:
            data[ENTRY] = self.record.to_dict()
        file = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", file)
        with whole_file(file) as temporary:
            try:
                torch.save(data, temporary)
            except RuntimeError as error:  # how torch's writer says that the disk is full
                raise OSError(errno.EIO, f"writing failed, is the disk full? ({error})") from error
        return file

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_text(Path(self.save_dir) / LAST_CHECKPOINT, last_filename_basename)

    def newest(self) -> Path | None:
        """The checkpoint to resume from, the same on all processes; see :func:`newest_whole_checkpoint`."""
        found = newest_whole_checkpoint(self.save_dir) if self.save_to_disk and self.save_dir else None
        return comm.all_gather(found)[0]

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the newest whole checkpoint in ``save_dir`` with everything in it, or else the weights ``path`` alone.

        Returns:
            the entries that nothing took.
        """
        newest = self.newest() if resume else None
        return self.load(path, checkpointables=[]) if newest is None else self.load(str(newest))

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As Detectron2's; what does not fit the model is said with the file's name."""
        try:
            return super().load(path, *args, **kwargs)
        except ValueError as error:
            if path in str(error):
                raise
            raise ValueError(f"{path}: {error}") from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = read_checkpoint(filename)
        check_record(_record_in(content, filename), getattr(self.model, "frozen_record", {}), filename)
        content.pop(ENTRY, None)
        content.pop(RUN_ENTRY, None)
        rounded = {v.dtype for v in content["model"].values() if isinstance(v, torch.Tensor) and v.is_floating_point()}
        rounded.discard(torch.float32)
        if rounded:
            logger.warning("%s holds weights in %s: they are used in float32", filename, ", ".join(map(str, rounded)))
        return {**content, "matching_heuristics": False}
