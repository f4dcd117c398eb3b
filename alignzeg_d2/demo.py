"""The demo: trains AlignZeg on the demo world, evaluates it, draws the paper's figures and writes a report.

    python -m alignzeg_d2.demo
    python -m alignzeg_d2.demo --iterations 3000 --output output/longer
    python -m alignzeg_d2.demo --weights output/demo/model_final.pth
    python -m alignzeg_d2.demo --with-baseline

Writes into the output folder ``results.json`` (as ``train_net.py`` does, and the oracle's row), ``gamma_sweep.json``,
the pictures as PNG, and ``report.html``, which holds them all and needs no network.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset

from alignzeg_d2 import AlignZeg, AlignZegDatasetMapper, add_alignzeg_config
from alignzeg_d2.evaluation import OracleEvaluator, ZeroShotSemSegEvaluator, format_results_table
from alignzeg_d2.figures import UNSEEN_SHARE, Corrections, labels_without_pbc, read_truth, shows_unseen
from alignzeg_d2.gamma_sweep import GammaSweepEvaluator
from alignzeg_d2.visualization import (
    Comparison,
    LabelArray,
    comparison_figure,
    corrections_figure,
    gamma_figure,
    save_figure,
    unseen_iou_figure,
)
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.datasets.sem_seg import read_label
from zeroshot_d2.launch import check_weights, setup
from zeroshot_d2.report import Picture, Section, Table, render_report
from zeroshot_d2.trainer import RESULTS_FILE, Results, write_json
from zeroshot_d2.trainer import Trainer as ZeroShotTrainer

logger = logging.getLogger(__name__)

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "demo"
NUM_EXAMPLES = 5


class DemoTrainer(ZeroShotTrainer):
    """The trainer of ``train_net.py``, for AlignZeg alone."""

    mappers = {"AlignZeg": AlignZegDatasetMapper}
    evaluators = {"alignzeg_sem_seg": lambda cfg, dataset_name: ZeroShotSemSegEvaluator(dataset_name)}


def train_or_load(cfg: CfgNode, weights: str | None) -> tuple[AlignZeg, Results]:
    """Train from the start, or load ``weights``; either way evaluate on DATASETS.TEST and write results.json."""
    if weights is None:
        trainer = DemoTrainer(cfg)
        results = trainer.train() or {}
        return trainer.model, results
    model = DemoTrainer.build_model(cfg)
    DetectionCheckpointer(model).load(weights)
    return model, DemoTrainer.test(cfg, model)


class Gallery(DatasetEvaluator):
    """Keeps what the pictures show: examples, and the proposals that PBC changed. For a single process."""

    def __init__(self, model: AlignZeg, dataset_name: str, baseline: AlignZeg | None = None) -> None:
        """
        Args:
            model: whose outputs are processed.
            dataset_name: the data set.
            baseline: a model in evaluation mode, to be compared with.
        """
        self._model, self._baseline = model, baseline
        self._split: ClassSplit = MetadataCatalog.get(dataset_name).class_split
        self.reset()

    def reset(self) -> None:
        self.examples: list[Comparison] = []
        self.corrections = Corrections(self._split, background_in_softmax=self._model.background_in_softmax)

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        for record, output in zip(inputs, outputs, strict=True):
            truth = read_truth(record)
            image = read_image(record["file_name"], format="RGB")
            if len(self.examples) < NUM_EXAMPLES and shows_unseen(truth, self._split):
                self.examples.append(Comparison(image, truth, self._predictions(record, output)))
            if output["proposals"]["class_indicator"] is not None:
                self.corrections.add(image, truth, output["proposals"])

    def _predictions(self, record: dict[str, Any], output: dict[str, Any]) -> dict[str, LabelArray]:
        """Label maps of the columns: the model's, and left of it the baseline's or the model's own without PBC."""
        ours = _labels(output)
        if self._baseline is not None:
            return {"Baseline": _labels(self._baseline([record])[0]), "AlignZeg": ours}
        if output["proposals"]["class_indicator"] is None:
            return {"AlignZeg": ours}
        size = (ours.shape[0], ours.shape[1])
        return {"Without PBC": labels_without_pbc(self._model, self._split, output["proposals"], size), "AlignZeg": ours}


def _labels(output: dict[str, Any]) -> np.ndarray:
    """(H, W) vocabulary indices, from either form of output."""
    labels = output["sem_seg_labels"] if "sem_seg_labels" in output else output["sem_seg"].argmax(dim=0)
    return labels.cpu().numpy()


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the demo with command-line arguments ``argv``; returns the path of the report.

    Raises:
        ValueError: DATASETS.TEST has no data set of protocol GZS3, or ``--iterations`` is not positive.
        FileNotFoundError: the config or the weights do not exist.
    """
    args = _parser().parse_args(argv)
    start = time.monotonic()
    cfg = _config(args)
    dataset_name = next((d for d in cfg.DATASETS.TEST if MetadataCatalog.get(d).get("protocol") == "GZS3"), None)
    if dataset_name is None:
        raise ValueError(f"the pictures need a data set of protocol GZS3; DATASETS.TEST {cfg.DATASETS.TEST} has none")

    model, results = train_or_load(cfg, args.weights)
    trained_seconds = time.monotonic() - start
    baseline, baseline_results = train_or_load(_baseline_config(cfg, args), None) if args.with_baseline else (None, {})

    logger.info("one more pass over %s for the oracle, the thresholds of PBC and the pictures", dataset_name)
    model.return_proposals = True
    gallery = Gallery(model, dataset_name, baseline.eval() if baseline is not None else None)
    evaluators: list[DatasetEvaluator] = [OracleEvaluator(dataset_name), gallery]
    if model.class_indicator is not None:
        seen = model.seen_mask(MetadataCatalog.get(dataset_name).class_split)
        evaluators.append(GammaSweepEvaluator(dataset_name, seen, background_in_softmax=model.background_in_softmax))
    found = inference_on_dataset(model, DemoTrainer.build_test_loader(cfg, dataset_name), DatasetEvaluators(evaluators))
    results = {
        **results,
        f"{dataset_name} (oracle)": found["sem_seg"],
        **{f"{name} (baseline)": numbers for name, numbers in baseline_results.items()},
    }
    sweep = found.get("gamma_sweep", [])
    output = Path(cfg.OUTPUT_DIR)
    write_json(output / RESULTS_FILE, results)
    if sweep:
        write_json(output / "gamma_sweep.json", sweep)

    sections = [
        *_training_section(cfg, output),
        *_unseen_section(results, sweep, dataset_name, output),
        *_examples_section(gallery, dataset_name, output),
        *_correction_section(gallery, sweep, cfg, dataset_name, output),
        _next_section(args, output),
    ]
    report = output / "report.html"
    report.write_text(
        render_report(
            "AlignZeg on the demo world",
            _lead(cfg, args, trained_seconds),
            _table(results),
            _EXPLANATIONS,
            sections,
            {"All settings of this run": cfg.dump(), "All numbers": json.dumps(results, indent=2)},
        ),
        encoding="utf-8",
    )
    print(f"\n{format_results_table(results)}\n\nreport: {report} ({time.monotonic() - start:.0f} s altogether)")
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alignzeg_d2.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default=str(CONFIGS / "alignzeg.yaml"), help="default: configs/demo/alignzeg.yaml")
    parser.add_argument("--output", help="folder of everything that is written; default: the config's OUTPUT_DIR")
    parser.add_argument("--iterations", type=int, help="length of the training; default: the config's SOLVER.MAX_ITER")
    parser.add_argument("--weights", help="a checkpoint to evaluate instead of training")
    parser.add_argument(
        "--with-baseline", action="store_true", help="also train the baseline of Table 4 and show it beside AlignZeg"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the config")
    return parser


def _config(args: argparse.Namespace) -> CfgNode:
    if args.iterations is not None and args.iterations < 1:
        raise ValueError(f"--iterations must be positive, got {args.iterations}")
    options = _options(args)
    if args.output is not None:
        options += ["OUTPUT_DIR", args.output]
    if args.weights is not None:
        options += ["MODEL.WEIGHTS", args.weights]
    as_train_net = argparse.Namespace(
        config_file=args.config_file, opts=options, resume=False, eval_only=args.weights is not None
    )
    cfg = setup(as_train_net, add_alignzeg_config)
    check_weights(cfg, as_train_net)
    return cfg


def _options(args: argparse.Namespace) -> list[str]:
    """What the command line overrides in any config."""
    length = [] if args.iterations is None else ["SOLVER.MAX_ITER", str(args.iterations)]
    # The oracle has a row of its own, from the pass that the pictures need.
    return [*args.opts, *length, "MODEL.ALIGNZEG.TEST.ORACLE", "False"]


def _baseline_config(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """The baseline of Table 4 with the options, device and seed of ``cfg``; logging is set up already."""
    baseline = get_cfg()
    add_alignzeg_config(baseline)
    baseline.merge_from_file(str(CONFIGS / "ablation" / "baseline.yaml"))
    output = Path(cfg.OUTPUT_DIR) / "baseline"
    output.mkdir(parents=True, exist_ok=True)
    baseline.merge_from_list(_options(args))
    baseline.merge_from_list(["OUTPUT_DIR", str(output), "MODEL.DEVICE", cfg.MODEL.DEVICE, "SEED", cfg.SEED])
    baseline.freeze()
    return baseline


# ---- the report ----

_COLUMNS = {"pAcc": "pAcc", "mIoU_seen": "mIoU(S)", "mIoU_unseen": "mIoU(U)", "hIoU": "hIoU", "mIoU": "mIoU"}
_EXPLANATIONS = {
    "GZS3": "The model chooses among all classes, seen and unseen. mIoU(S) and mIoU(U) are the means over the seen and the "
    "unseen classes, hIoU is their harmonic mean, pAcc the share of all pixels that is right.",
    "ZS3": "The model chooses among the unseen classes only, and only their pixels count; hence the higher numbers.",
    "GZS3 (oracle)": "Every mask is given the class of the ground truth (Table 6): how good the masks alone are.",
}


def _table(results: Results) -> Table:
    rows = [
        [name, numbers["protocol"], *(numbers.get(key) for key in _COLUMNS), numbers.get("num_images")]
        for name, numbers in results.items()
    ]
    return Table(["data set", "protocol", *_COLUMNS.values(), "images"], rows)


def _lead(cfg: CfgNode, args: argparse.Namespace, seconds: float) -> list[str]:
    split = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).class_split
    effort = (
        f"The weights were loaded from {args.weights}."
        if args.weights is not None
        else f"It was trained for {cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images, and then "
        f"evaluated, in {seconds / 60:.1f} minutes on {_device(cfg)}; CLIP stayed frozen."
    )
    return [
        "Zero-shot semantic segmentation names regions of classes that no training label ever showed. AlignZeg (Ge et al., "
        "ECCV 2024) proposes masks, classifies them with CLIP, and corrects the bias towards the classes that it was "
        f"trained on. This model was trained on labels of {len(split)} classes. {effort}",
        "The demo world is synthetic: coloured and textured tiles on some ground. Every unseen class is a new combination "
        "of attributes that occur among the seen ones. The numbers show that the method works and how its parts behave; "
        "they cannot be compared with those on photographs.",
    ]


def _device(cfg: CfgNode) -> str:
    return f"{torch.get_num_threads()} CPU thread(s)" if cfg.MODEL.DEVICE == "cpu" else f"a {cfg.MODEL.DEVICE} device"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f}"


def _training_section(cfg: CfgNode, output: Path) -> list[Section]:
    """What training sees: an image with unseen pixels, which have no label."""
    name = cfg.DATASETS.TRAIN[0]
    metadata = MetadataCatalog.get(name)
    for record in DatasetCatalog.get(name):
        label = read_label(record["sem_seg_file_name"], metadata.label_table)
        if (label == metadata.ignore_label).mean() >= UNSEEN_SHARE:
            break
    else:
        return []
    image = read_image(record["file_name"], format="RGB")
    path = output / "training_labels.png"
    row = Comparison(image, None, {"Labels in training": label})
    save_figure(comparison_figure([row], metadata.class_split, metadata.stuff_colors, ignored_name="no label"), path)
    caption = (
        "A training image with its labels: the grey part shows an unseen class. The network sees these pixels, "
        "but is told neither their class nor that there is one."
    )
    return [Section("What training sees", pictures=[Picture(path, caption, "a training image and its labels", 32)])]


def _unseen_section(results: Results, sweep: list[dict[str, Any]], dataset_name: str, output: Path) -> list[Section]:
    split = MetadataCatalog.get(dataset_name).class_split
    models = {}
    if f"{dataset_name} (baseline)" in results:
        models["Baseline"] = results[f"{dataset_name} (baseline)"]["IoU"]
    elif sweep:
        models["Without PBC"] = sweep[-1]["IoU"]
    models["AlignZeg"] = results[dataset_name]["IoU"]
    path = output / "unseen_iou.png"
    save_figure(unseen_iou_figure(models, split.unseen), path)
    caption = "IoU of each unseen class on the validation images, and the mean, mIoU(U), as a dashed line (as Fig. 5)."
    return [Section("Unseen classes", pictures=[Picture(path, caption, "bars: IoU of the unseen classes", 42)])]


def _examples_section(gallery: Gallery, dataset_name: str, output: Path) -> list[Section]:
    if not gallery.examples:
        return []
    metadata = MetadataCatalog.get(dataset_name)
    path = output / "segmentation.png"
    save_figure(comparison_figure(gallery.examples, metadata.class_split, metadata.stuff_colors), path)
    caption = (
        f"The first validation images in which unseen classes cover at least {UNSEEN_SHARE:.0%} of the pixels, not picked "
        "by result (as Fig. 7). Unseen classes have a star and a red name."
    )
    return [Section("Segmentations", pictures=[Picture(path, caption, "image, ground truth and predictions")])]


def _correction_section(
    gallery: Gallery, sweep: list[dict[str, Any]], cfg: CfgNode, dataset_name: str, output: Path
) -> list[Section]:
    """What Predictive Bias Correction does, in numbers and pictures; nothing for a model without it."""
    if not sweep:
        return []
    metadata = MetadataCatalog.get(dataset_name)
    gamma = cfg.MODEL.ALIGNZEG.PBC.GAMMA
    path = output / "gamma.png"
    save_figure(gamma_figure(sweep, gamma), path)
    best = max(sweep, key=lambda point: point["hIoU"] or 0.0)
    caption = (
        "The threshold of Predictive Bias Correction: a proposal whose class indicator exceeds it is taken as unseen, and "
        f"its scores of seen classes are suppressed (as Fig. 6). Without it hIoU is {_percent(sweep[-1]['hIoU'])}; "
        f"the best of these thresholds on these images is {best['gamma']:g} with {_percent(best['hIoU'])}. "
        "All points come from one pass."
    )
    pictures = [Picture(path, caption, "curves: mIoU(S), mIoU(U) and hIoU against the threshold", 38)]
    corrections = gallery.corrections
    paragraphs = [f"At γ = {gamma:g} {corrections.text()}"] if corrections.changed else []
    shown = [*corrections.mended, *corrections.spoiled]
    if shown:
        path = output / "corrections.png"
        save_figure(corrections_figure(shown, metadata.class_split, gamma=gamma), path)
        caption = (
            f"{len(corrections.mended)} proposals that became right and {len(corrections.spoiled)} that became wrong, of "
            "each those that claim most of their image, one per image. Mask, class indicator I, and "
            "the probabilities before and after (as Fig. 3 of the supplement). A tick marks the true class."
        )
        pictures.append(Picture(path, caption, "proposals before and after the correction", 52))
    return [Section("Predictive Bias Correction", paragraphs, pictures)]


def _next_section(args: argparse.Namespace, output: Path) -> Section:
    weights = args.weights or output / "model_final.pth"
    return Section(
        "Going on",
        ["Evaluate again, train longer, compare with the baseline of Table 4, or try it in the browser:"],
        commands=[
            f"python train_net.py --config-file configs/demo/alignzeg.yaml --eval-only MODEL.WEIGHTS {weights}",
            "python -m alignzeg_d2.demo --iterations 3000 --output output/longer",
            "python -m alignzeg_d2.demo --with-baseline",
            "python -m alignzeg_d2.web",
        ],
    )


if __name__ == "__main__":
    main()
