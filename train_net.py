#!/usr/bin/env python
"""Train and evaluate. Takes Detectron2's own arguments.

    python train_net.py --config-file configs/coco/alignzeg.yaml --num-gpus 8
    python train_net.py --config-file configs/nus_wide/epsilon.yaml --num-gpus 8
    python train_net.py --config-file configs/coco/alignzeg.yaml --num-gpus 8 --resume
    python train_net.py --config-file configs/coco/alignzeg.yaml --eval-only MODEL.WEIGHTS model_final.pth

A system of one's own is plugged in by an entry in each of the look-ups below.
"""

import argparse
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.evaluation import DatasetEvaluator

from alignzeg_d2 import add_alignzeg_config
from alignzeg_d2.dataset_mapper import AlignZegDatasetMapper
from alignzeg_d2.evaluation import OracleEvaluator, ZeroShotSemSegEvaluator
from epsilon_d2 import add_epsilon_config
from epsilon_d2.dataset_mapper import EpsilonDatasetMapper
from epsilon_d2.evaluation import MultiLabelEvaluator
from zeroshot_d2.launch import launch, run
from zeroshot_d2.trainer import Results
from zeroshot_d2.trainer import Trainer as ZeroShotTrainer


def build_sem_seg_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """Evaluator of the protocol that the dataset was registered with, or of the oracle (AlignZeg, Table 6)."""
    if cfg.MODEL.ALIGNZEG.TEST.ORACLE:
        return OracleEvaluator(dataset_name)
    return ZeroShotSemSegEvaluator(dataset_name)


def build_multilabel_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """Evaluator of the protocol that the dataset was registered with."""
    return MultiLabelEvaluator(dataset_name, top_k=cfg.MODEL.EPSILON.TEST.TOP_K)


# By MODEL.META_ARCHITECTURE.
CONFIG_KEYS: dict[str, Callable[[CfgNode], None]] = {"AlignZeg": add_alignzeg_config, "Epsilon": add_epsilon_config}


class Trainer(ZeroShotTrainer):
    mappers = {"AlignZeg": AlignZegDatasetMapper, "Epsilon": EpsilonDatasetMapper}  # by MODEL.META_ARCHITECTURE
    evaluators = {  # by the dataset's evaluator_type
        "alignzeg_sem_seg": build_sem_seg_evaluator,
        "epsilon_multilabel": build_multilabel_evaluator,
    }


def add_config_keys(cfg: CfgNode, config_file: str) -> None:
    """Add the keys of the system that the file (or its _BASE_) names; without a name, AlignZeg's.

    Raises:
        ValueError: the name is unknown.
    """
    name = CfgNode.load_yaml_with_base(config_file).get("MODEL", {}).get("META_ARCHITECTURE", "AlignZeg")
    if name not in CONFIG_KEYS:
        raise ValueError(f"MODEL.META_ARCHITECTURE of {config_file} is {name!r}; choose one of {sorted(CONFIG_KEYS)}")
    CONFIG_KEYS[name](cfg)


def main(args: argparse.Namespace) -> Results:
    return run(args, Trainer, lambda cfg: add_config_keys(cfg, args.config_file))


if __name__ == "__main__":
    launch(main, default_argument_parser().parse_args())
