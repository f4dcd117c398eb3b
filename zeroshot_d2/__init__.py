"""What zero-shot recognition needs, whoever's method: class splits, data sets, prototypes, tasks, training, commands."""

from ._require_detectron2 import require_detectron2
from .threads import wait_briefly

wait_briefly()  # before anything below imports torch, which looks only then
require_detectron2()  # before anything below imports it, so that the error is one clear sentence

__version__ = "0.2.0"

from . import datasets, demo_world  # noqa: E402, F401  (they register their data sets)
from .class_split import ClassSplit  # noqa: E402
from .cli import config_file, load_config  # noqa: E402
from .multilabel.registration import register_multilabel  # noqa: E402
from .segmentation.labels import IGNORE_LABEL, LabelTable, label_table, read_label  # noqa: E402
from .segmentation.registration import register_sem_seg  # noqa: E402
from .system import System, register_system  # noqa: E402

__all__ = [
    "IGNORE_LABEL",
    "ClassSplit",
    "LabelTable",
    "System",
    "__version__",
    "config_file",
    "label_table",
    "load_config",
    "read_label",
    "register_multilabel",
    "register_sem_seg",
    "register_system",
]
