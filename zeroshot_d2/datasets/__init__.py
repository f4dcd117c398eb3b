"""Zero-shot data sets as ordinary Detectron2 data sets; nothing here reads the disk before a data set is used."""

from .builtin import register_all
from .multilabel import LabelColumns, MultiLabelDataset, register_multilabel
from .sem_seg import IGNORE_LABEL, LabelTable, label_table, read_label, register_sem_seg

register_all()

__all__ = [
    "IGNORE_LABEL",
    "LabelColumns",
    "LabelTable",
    "MultiLabelDataset",
    "label_table",
    "read_label",
    "register_multilabel",
    "register_sem_seg",
]
