"""The demo: trains Epsilon on the demo world, evaluates it on a seed that nothing was tuned on, and writes a report.

    python -m epsilon_d2.demo
    python -m epsilon_d2.demo --weights output/demo/epsilon/model_final.pth
    python -m epsilon_d2.demo --with-baseline

Writes into the output folder ``results.json`` (as ``train_net.py`` does), ``labels.png`` (Fig. 4), for the first example
``group_attention.png`` and ``global_attention.png`` (Fig. 1), and ``report.html``, which holds them all and needs no
network.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from epsilon_d2 import EpsilonDatasetMapper, add_epsilon_config
from epsilon_d2.evaluation import MultiLabelEvaluator, format_multilabel_table, table_of_results
from epsilon_d2.figures import example_records, predictions
from epsilon_d2.predict import CONFIG, Predictor
from epsilon_d2.visualization import (
    MODULES,
    LabelledImage,
    attention_by_module,
    attention_figure,
    save_figure,
    spoken_labels,
    top_labels_figure,
)
from zeroshot_d2.launch import check_weights, setup
from zeroshot_d2.launch import evaluate as evaluate_weights
from zeroshot_d2.report import Picture, Section, Table, render_report
from zeroshot_d2.trainer import RESULTS_FILE, Results, write_json
from zeroshot_d2.trainer import Trainer as ZeroShotTrainer

TEST_SET = "demo_world_multilabel_held_out"
BASELINE = CONFIG.parent / "epsilon_ablation" / "backbone_only.yaml"
NUM_EXAMPLES = 8


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    return MultiLabelEvaluator(dataset_name, top_k=cfg.MODEL.EPSILON.TEST.TOP_K)


class Trainer(ZeroShotTrainer):
    """The trainer of ``train_net.py``, for Epsilon alone."""

    mappers = {"Epsilon": EpsilonDatasetMapper}
    evaluators = {"epsilon_multilabel": build_evaluator}


def train_or_load(config_file: Path, output: Path, weights: str, opts: Sequence[str]) -> tuple[CfgNode, Results]:
    """Train from the start, or load ``weights``; either way evaluate on TEST_SET and write results.json.

    Returns:
        the config with the weights that came out, and the results.
    """
    options = ["OUTPUT_DIR", str(output), "DATASETS.TEST", f"('{TEST_SET}',)", "MODEL.WEIGHTS", weights]
    as_train_net = argparse.Namespace(
        config_file=str(config_file), opts=[*options, *opts], resume=False, eval_only=bool(weights)
    )
    cfg = setup(as_train_net, add_epsilon_config)
    check_weights(cfg, as_train_net)
    if weights:
        return cfg, evaluate_weights(cfg, Trainer)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    results = trainer.train() or {}
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(output / "model_final.pth")
    return cfg, results


def main(arguments: Sequence[str] | None = None) -> Results:
    """Run the demo with command-line arguments; returns the results by data set.

    Raises:
        FileNotFoundError: the weights do not exist.
    """
    parser = argparse.ArgumentParser(
        prog="python -m epsilon_d2.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo/epsilon"))
    parser.add_argument("--weights", default="", help="draw and evaluate these instead of training")
    parser.add_argument(
        "--with-baseline", action="store_true", help="also train the backbone-only model of Table 3 and show its numbers"
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys to change")
    args = parser.parse_args(arguments)

    start = time.perf_counter()
    cfg, results = train_or_load(CONFIG, args.output, args.weights, args.opts)
    seconds = time.perf_counter() - start
    if args.with_baseline:
        _, baseline = train_or_load(BASELINE, args.output / "baseline", "", args.opts)
        results |= {f"{name} (backbone only)": numbers for name, numbers in baseline.items()}
        write_json(args.output / RESULTS_FILE, results)

    report = args.output / "report.html"
    report.write_text(
        render_report(
            "Epsilon on the demo world",
            _lead(cfg, args.weights, seconds),
            _table(results),
            _EXPLANATIONS,
            [*_picture_sections(cfg, args.output), _next_section(cfg)],
            {"All settings of this run": cfg.dump(), "All numbers": json.dumps(results, indent=2)},
        ),
        encoding="utf-8",
    )
    print(f"\n{format_multilabel_table(results)}\n\nreport: {report} ({time.perf_counter() - start:.0f} s altogether)")
    return results


# ---- the report ----

_EXPLANATIONS = {
    "ZSL": "Labels are ranked among the unseen classes only.",
    "GZSL": "Labels are ranked among all classes, seen and unseen.",
    "image set": "All test images, or those that show at least one unseen class; the literature uses both.",
    "mAP": "Mean over the classes of the average precision with which a class ranks the images.",
    "P, R, F1 @K": "Precision, recall and F1 of the first K labels of every image, counted over all images together.",
}


def _table(results: Results) -> Table:
    """A column less than on the command line, to fit on a page: here every class occurs."""
    headings, rows = table_of_results({name.replace(TEST_SET, "Epsilon"): numbers for name, numbers in results.items()})
    dropped = headings.index("mAP, none = 0")
    first, *others = ([*row[:dropped], *row[dropped + 1 :]] for row in (["model", *headings[1:]], *rows))
    return Table(first, others)


def chance() -> tuple[float, float]:
    """mAP of a random ranking, in percent, for ZSL and GZSL: the mean share of the images that show a class."""
    split = MetadataCatalog.get(TEST_SET).class_split
    records = DatasetCatalog.get(TEST_SET)
    counts = np.bincount(np.concatenate([record["positive_labels"] for record in records]), minlength=len(split))
    share = 100 * counts / len(records)
    return float(share[split.unseen_indices].mean()), float(share.mean())


def _lead(cfg: CfgNode, weights: str, seconds: float) -> list[str]:
    name = cfg.DATASETS.TRAIN[0]
    zsl, gzsl = chance()
    effort = (
        f"The weights were loaded from {weights}."
        if weights
        else f"It was trained for {cfg.SOLVER.MAX_EPOCHS} epochs of {len(DatasetCatalog.get(name))} images, and then "
        f"evaluated, in {seconds:.0f} seconds."
    )
    return [
        "Multi-label zero-shot classification names everything that an image shows, also classes that no training label "
        "ever named. Epsilon (Liu et al., AAAI 2025) turns the tokens of a frozen vision transformer into a few semantic "
        "vectors, by prompts that gather groups of tokens and by weighted sums over all of them, and compares these with "
        "the vectors of the labels. This model was trained on image-level labels of "
        f"{len(MetadataCatalog.get(name).class_split)} classes. {effort}",
        f"Nothing was tuned on the test images, {TEST_SET}. A random ranking would reach an mAP of {zsl:.1f} (ZSL) and "
        f"{gzsl:.1f} (GZSL).",
    ]


def _picture_sections(cfg: CfgNode, output: Path) -> list[Section]:
    """The first test images that show an unseen class: their labels, and where the groups look in the first one."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.EPSILON.TEST.RETURN_ATTENTION = True
    predictor = Predictor(cfg)
    split = predictor.vocabulary
    examples: list[LabelledImage] = []
    attention: list[Picture] = []
    for record, image, found in predictions(predictor, example_records(TEST_SET, split, NUM_EXAMPLES)):
        if not examples:
            for module, groups in attention_by_module(found).items():
                path = output / f"{MODULES[module]}.png"
                title, labels = f"where each group looks: {module}", spoken_labels(found, split)
                save_figure(attention_figure(image, groups, title=title, labels=labels), path)
                attention.append(Picture(path, _ATTENTION_CAPTIONS[module], f"attention of the groups of {module}", 52))
        examples.append(LabelledImage(image, found["scores"], present=record["positive_labels"].tolist()))
    path = output / "labels.png"
    save_figure(top_labels_figure(examples, split, top_k=10), path)
    caption = (
        "The ten best labels of the first test images that show an unseen class, not picked by result (as Fig. 4). Bold: "
        "right. A star marks unseen classes, red those of them that are right. The number is the score."
    )
    return [
        Section("Labels", pictures=[Picture(path, caption, "test images with their ten best labels")]),
        Section("Where the groups look", pictures=attention),
    ]


_ATTENTION_CAPTIONS = {
    "GPA": "Group Prompts Aggregation (Eq. 3): the share of each patch in what a group sees (as Fig. 1). "
    "Under its number stands the best label that a group speaks for (Eq. 9).",
    "GFP": "Global Forward Propagation (Eq. 5): the same for its blocks, averaged over the channels.",
}


def _next_section(cfg: CfgNode) -> Section:
    return Section(
        "Going on",
        ["Labels of an image of your own, the same without the two modules (Table 3), or the page in the browser:"],
        commands=[
            f"python -m epsilon_d2.predict image.png --weights {cfg.MODEL.WEIGHTS}",
            "python -m epsilon_d2.demo --with-baseline",
            "python -m epsilon_d2.web",
        ],
    )


if __name__ == "__main__":
    main()
