"""What "zero-shot" means for both systems: class splits, data sets that carry them, text prototypes and metrics."""

from ._require_detectron2 import require_detectron2

require_detectron2()  # before anything below imports it, so that the error is one clear sentence

from .class_split import ClassSplit  # noqa: E402
from .datasets import (  # noqa: E402
    IGNORE_LABEL,
    LabelTable,
    label_table,
    read_label,
    register_multilabel,
    register_sem_seg,
)

__all__ = [
    "IGNORE_LABEL",
    "ClassSplit",
    "LabelTable",
    "label_table",
    "read_label",
    "register_multilabel",
    "register_sem_seg",
]
