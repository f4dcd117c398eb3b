"""What can be known before a run starts is checked before it starts: data sets, their evaluation, the warm-up."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from .ranges import check_ranges
from .system import TASKS, System, find_system

logger = logging.getLogger(__name__)


def check_datasets(cfg: CfgNode) -> None:
    """Look at what a config trains and evaluates on, before anything is built.

    Raises:
        ValueError: a key is out of its range; a data set is not registered, or is for another task than the config's system.
    """
    check_ranges(cfg)
    system = find_system(cfg.MODEL.META_ARCHITECTURE)
    if cfg.TEST.AUG.ENABLED and "SLIDE" not in cfg.TEST:  # what looks at images in several ways has both keys
        raise ValueError(f"TEST.AUG.ENABLED True: {system.name} sees each image once and at one size; set it to False")
    for key, names in (("DATASETS.TRAIN", cfg.DATASETS.TRAIN), ("DATASETS.TEST", cfg.DATASETS.TEST)):
        for name in names:
            if name not in DatasetCatalog:
                raise ValueError(
                    f"{key}: no data set {name!r} is registered: `--import FILE` runs the file that registers it; there are "
                    f"{likely(name, fitting_datasets(system))}"
                )
            kind = MetadataCatalog.get(name).get("evaluator_type")
            if kind != TASKS[system.task].evaluator_type:
                raise ValueError(
                    f"{key}: the data set {name!r} is of type {kind!r}, {system.name} is for {system.task}; it takes "
                    f"{likely(name, fitting_datasets(system))}"
                )


def check_training(cfg: CfgNode) -> None:
    """As :func:`check_datasets`, for a run that trains.

    Raises:
        ValueError: as there; DATASETS.TRAIN is empty.
    """
    check_datasets(cfg)
    if not cfg.DATASETS.TRAIN:
        known = fitting_datasets(find_system(cfg.MODEL.META_ARCHITECTURE))
        raise ValueError(f"DATASETS.TRAIN is (): name a data set to train on, such as {likely('', known)}")


def likely(name: str, known: Sequence[str], most: int = 5) -> str:
    """Some of the ``known`` names, those like ``name`` first, and how to see all."""
    close = difflib.get_close_matches(name, known, n=most)
    shown = [*close, *(other for other in sorted(known) if other not in close)]
    rest = ", ... (`python -m zeroshot_d2 datasets list`)" if len(shown) > most else ""
    return ", ".join(shown[:most]) + rest


def fitting_datasets(system: System) -> list[str]:
    """The registered data sets of a system's task."""
    wanted = TASKS[system.task].evaluator_type
    return [name for name in DatasetCatalog if MetadataCatalog.get(name).get("evaluator_type") == wanted]


def check_evaluation(cfg: CfgNode, build_evaluator: Callable[[CfgNode, str], Any]) -> None:
    """Build the evaluators of DATASETS.TEST once and look for the photos, so that neither fails after hours of training.

    Raises:
        FileNotFoundError: photos of a test data set are missing.
        ValueError: as the evaluator, for example where TEST.TOP_K does not fit the classes.
    """
    system = find_system(cfg.MODEL.META_ARCHITECTURE)
    reads_files = system.mapper is None and "mapper" not in system.parts  # a mapper of its own may read an archive
    for name in cfg.DATASETS.TEST:
        build_evaluator(cfg, name)
        if not comm.is_main_process() or not reads_files:
            continue
        files = [record["file_name"] for record in DatasetCatalog.get(name) if "file_name" in record]
        missing = [file for file in files if not Path(file).is_file()]
        if missing:
            raise FileNotFoundError(
                f"DATASETS.TEST: {len(missing)} of the {len(files)} photos of {name!r} are missing, such as {missing[0]}; "
                f"`python -m zeroshot_d2 check {name}` lists them. To train without evaluation: DATASETS.TEST '()'"
            )


def check_warmup(cfg: CfgNode) -> None:
    """Warn where the learning rate would never reach SOLVER.BASE_LR."""
    if 0 < cfg.SOLVER.MAX_ITER <= cfg.SOLVER.WARMUP_ITERS:
        logger.warning(
            "SOLVER.WARMUP_ITERS %d is not below SOLVER.MAX_ITER %d: the learning rate never reaches SOLVER.BASE_LR %g",
            *(cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR),
        )
