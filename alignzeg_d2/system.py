"""AlignZeg as a system of the house: what this paper plugs in."""

from __future__ import annotations

from detectron2.config import CfgNode

from alignzeg_d2.config import add_alignzeg_config
from alignzeg_d2.oracle import OracleEvaluator
from zeroshot_d2.segmentation import evaluation
from zeroshot_d2.segmentation.evaluation import ZeroShotSemSegEvaluator
from zeroshot_d2.system import System


def build_evaluator(cfg: CfgNode, dataset_name: str) -> ZeroShotSemSegEvaluator:
    """The evaluator of the data set's protocol, or of the oracle (Table 6)."""
    test = cfg.MODEL.ALIGNZEG.TEST
    if cfg.TEST.SAVE_PREDICTIONS == "scores" and (test.OUTPUT == "labels" or test.ORACLE):
        raise ValueError(
            "TEST.SAVE_PREDICTIONS scores needs scores: set MODEL.ALIGNZEG.TEST.OUTPUT scores, ORACLE False; or save labels"
        )
    kind = OracleEvaluator if test.ORACLE else ZeroShotSemSegEvaluator
    return evaluation.build_evaluator(cfg, dataset_name, kind)


SYSTEM = System(
    name="AlignZeg",
    task="segmentation",
    add_config=add_alignzeg_config,
    evaluator=build_evaluator,
    parts={
        "predictor": "alignzeg_d2.predictor:AlignZegPredictor",
        "exporter": "alignzeg_d2.export:Exporter",
        "figures": "alignzeg_d2.figures:FIGURES",
        "web_tab": "alignzeg_d2.web_tab:SegmentationTab",
        "demo": "alignzeg_d2.demo:Demo",
    },
    verbs={"bias-report": "alignzeg_d2.bias_report:main"},
)
