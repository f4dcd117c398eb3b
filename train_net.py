#!/usr/bin/env python
"""Train and evaluate. Takes Detectron2's own arguments.

    python train_net.py --config-file configs/coco/alignzeg.yaml --num-gpus 8
    python train_net.py --config-file configs/coco/alignzeg.yaml --num-gpus 8 --resume
    python train_net.py --config-file configs/coco/alignzeg.yaml --eval-only MODEL.WEIGHTS model_final.pth

A system of one's own is plugged in by an entry in each of the two look-ups below.
"""

import argparse

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.evaluation import DatasetEvaluator

from alignzeg_d2 import add_alignzeg_config
from alignzeg_d2.dataset_mapper import AlignZegDatasetMapper
from alignzeg_d2.evaluation import OracleEvaluator, ZeroShotSemSegEvaluator
from zeroshot_d2.launch import launch, run
from zeroshot_d2.trainer import Results
from zeroshot_d2.trainer import Trainer as ZeroShotTrainer


def build_sem_seg_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """Evaluator of the protocol that the dataset was registered with, or of the oracle (AlignZeg, Table 6)."""
    if cfg.MODEL.ALIGNZEG.TEST.ORACLE:
        return OracleEvaluator(dataset_name)
    return ZeroShotSemSegEvaluator(dataset_name)


class Trainer(ZeroShotTrainer):
    mappers = {"AlignZeg": AlignZegDatasetMapper}  # by MODEL.META_ARCHITECTURE
    evaluators = {"alignzeg_sem_seg": build_sem_seg_evaluator}  # by the dataset's evaluator_type


def main(args: argparse.Namespace) -> Results:
    return run(args, Trainer, add_alignzeg_config)


if __name__ == "__main__":
    launch(main, default_argument_parser().parse_args())
