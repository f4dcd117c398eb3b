"""Which settings a run may change when it is resumed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import yaml
from detectron2.config import CfgNode

from .class_split import ClassSplit
from .config_file import leaves
from .vocabulary import is_registered, split_of_dataset

logger = logging.getLogger(__name__)

# Keys that may differ: they change where and for how long a run trains, what it writes and how it is tested, but neither
# its samples nor its steps.
HARMLESS = (
    *("VERSION", "OUTPUT_DIR", "VIS_PERIOD", "CUDNN_BENCHMARK", "MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.COMPILE"),
    *("DATALOADER.NUM_WORKERS", "DATASETS.TEST", "TEST.*", "MODEL.*.TEST.*"),
    *("INPUT.*_TEST", "INPUT.MAX_PIXELS", "INPUT.SKIP_UNREADABLE"),
    *("SOLVER.MAX_ITER", "SOLVER.MAX_EPOCHS", "SOLVER.CHECKPOINT_*", "SOLVER.WANDB_PROJECT"),
)


@dataclass(frozen=True)
class RunState:
    """What a checkpoint says about the run that wrote it.

    Args:
        config: its settings, as YAML.
        splits: {training data set: its classes}.
    """

    config: str
    splits: Mapping[str, ClassSplit] = field(default_factory=dict)

    @classmethod
    def of_config(cls, cfg: CfgNode) -> RunState:
        """That of a run that trains with ``cfg``."""
        return cls(cfg.dump(), {name: split_of_dataset(name) for name in cfg.DATASETS.TRAIN if is_registered(name)})

    def to_dict(self) -> dict[str, Any]:
        """Texts, lists and dicts; :meth:`from_dict` reads them."""
        return {"config": self.config, "splits": {name: split.to_dict() for name, split in self.splits.items()}}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RunState:
        """The inverse of :meth:`to_dict`."""
        return cls(content["config"], {name: ClassSplit.from_dict(split) for name, split in content["splits"].items()})

    @property
    def settings(self) -> dict[str, Any]:
        """{key: value} of the config, the keys with dots."""
        return dict(leaves(yaml.safe_load(self.config)))


def check_resumed(saved: RunState, now: RunState, *, force: bool = False) -> bool:
    """Compare a run with the one that it goes on from; True where they differ in what changes its course.

    Differences in :data:`HARMLESS` keys are logged.

    Args:
        saved: of the checkpoint.
        now: of this run.
        force: warn about other differences instead.

    Raises:
        ValueError: another key or the classes of a training data set differ, and ``force`` is not set.
    """
    before, after = saved.settings, now.settings
    changed = [key for key in after if key in before and before[key] != after[key]]
    harmless = [key for key in changed if any(fnmatch(key, pattern) for pattern in HARMLESS)]
    if harmless:
        logger.info("resumed with other settings: %s", _listed(harmless, before, after))
    problems = []
    other = [key for key in changed if key not in harmless]
    if other:
        problems.append(_listed(other, before, after))
    for name, split in now.splits.items():
        if name in saved.splits and saved.splits[name] != split:
            names = [set(part.names) for part in (saved.splits[name], split)]
            different = sorted(names[0] ^ names[1])
            what = f"such as {different[0]!r}" if different else "in order, prompts or unseen names"
            problems.append(f"the classes of {name!r} differ ({what})")
    if problems and not force:
        raise ValueError(
            f"--resume goes on with a run of other settings: {'; '.join(problems)}. Set them as they were (config.yaml in "
            "OUTPUT_DIR), start anew in another OUTPUT_DIR, or let --force-resume go on with the new ones"
        )
    if problems:
        logger.warning("resumed by force with other settings: %s", "; ".join(problems))
    return bool(problems)


def _listed(keys: list[str], before: Mapping[str, Any], after: Mapping[str, Any], limit: int = 5) -> str:
    shown = [f"{key} was {_short(before[key])}, is {_short(after[key])}" for key in keys[:limit]]
    return "; ".join([*shown, *([f"and {len(keys) - limit} more"] if len(keys) > limit else [])])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
