"""The demo: trains Epsilon on the demo world, evaluates it on a seed that nothing was tuned on, and draws its pictures.

    python -m epsilon_d2.demo
    python -m epsilon_d2.demo --weights output/demo/epsilon/model_final.pth

Writes into the output folder ``results.json`` (as ``train_net.py`` does), ``labels.png`` (Fig. 4) and, for the first
example, ``group_attention.png`` and ``global_attention.png`` (Fig. 1).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator

from epsilon_d2 import EpsilonDatasetMapper, add_epsilon_config
from epsilon_d2.evaluation import MultiLabelEvaluator, format_multilabel_table
from epsilon_d2.figures import MODULES, attention_by_module, example_records, predictions
from epsilon_d2.predict import CONFIG, Predictor
from epsilon_d2.visualization import LabelledImage, attention_figure, save_figure, top_labels_figure
from zeroshot_d2.launch import check_weights, setup
from zeroshot_d2.launch import evaluate as evaluate_weights
from zeroshot_d2.trainer import Results
from zeroshot_d2.trainer import Trainer as ZeroShotTrainer

TEST_SET = "demo_world_multilabel_held_out"
NUM_EXAMPLES = 8


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    return MultiLabelEvaluator(dataset_name, top_k=cfg.MODEL.EPSILON.TEST.TOP_K)


class Trainer(ZeroShotTrainer):
    """The trainer of ``train_net.py``, for Epsilon alone."""

    mappers = {"Epsilon": EpsilonDatasetMapper}
    evaluators = {"epsilon_multilabel": build_evaluator}


def draw(cfg: CfgNode, output: Path) -> list[Path]:
    """Write the pictures of the first examples of the test set that show an unseen class; gives their paths."""
    predictor = Predictor(cfg)
    split = predictor.vocabulary
    examples: list[LabelledImage] = []
    pictures: list[Path] = []
    for record, image, found in predictions(predictor, example_records(TEST_SET, split, NUM_EXAMPLES)):
        if not examples:
            for module, attention in attention_by_module(found).items():
                pictures.append(output / f"{MODULES[module]}.png")
                save_figure(attention_figure(image, attention, title=f"where each group looks: {module}"), pictures[-1])
        examples.append(LabelledImage(image, found["scores"], present=record["positive_labels"].tolist()))
    pictures.append(output / "labels.png")
    save_figure(top_labels_figure(examples, split, top_k=10), pictures[-1])
    return pictures


def main(arguments: Sequence[str] | None = None) -> Results:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/demo/epsilon"))
    parser.add_argument("--weights", default="", help="draw and evaluate these instead of training")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys to change")
    args = parser.parse_args(arguments)

    options = ["OUTPUT_DIR", str(args.output), "DATASETS.TEST", f"('{TEST_SET}',)", "MODEL.WEIGHTS", args.weights]
    as_train_net = argparse.Namespace(
        config_file=str(CONFIG), opts=[*options, *args.opts], resume=False, eval_only=bool(args.weights)
    )
    cfg = setup(as_train_net, add_epsilon_config)
    check_weights(cfg, as_train_net)
    start = time.perf_counter()
    if args.weights:
        results = evaluate_weights(cfg, Trainer)
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        results = trainer.train() or {}
    seconds = time.perf_counter() - start

    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = args.weights or str(args.output / "model_final.pth")
    cfg.MODEL.EPSILON.TEST.RETURN_ATTENTION = True
    pictures = draw(cfg, args.output)
    print(format_multilabel_table(results))
    print(f"{'evaluated' if args.weights else 'trained and evaluated'} in {seconds:.0f} s; pictures:", *pictures, sep="\n  ")
    return results


if __name__ == "__main__":
    main()
