"""The report of AlignZeg on the demo world: the paper's tables and figures for one training.

Beside ``results.json`` and the report it writes ``gamma_sweep.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset

from alignzeg_d2.alignzeg import AlignZeg
from alignzeg_d2.figures import labels_without_pbc
from alignzeg_d2.gamma_sweep import GammaSweepEvaluator
from alignzeg_d2.oracle import OracleEvaluator
from alignzeg_d2.pictures.corrections import Corrections, corrections_figure
from alignzeg_d2.pictures.gamma import gamma_figure
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.commands.demo import DemoReport, DemoRun
from zeroshot_d2.demo_world import WORLDS
from zeroshot_d2.images import read_image
from zeroshot_d2.pictures.report import Picture, Section, Table
from zeroshot_d2.pictures.style import save_figure
from zeroshot_d2.segmentation.evaluation import format_results_table
from zeroshot_d2.segmentation.figures import UNSEEN_SHARE, read_truth, shows_unseen
from zeroshot_d2.segmentation.iou_bars import unseen_iou_figure
from zeroshot_d2.segmentation.labels import read_label
from zeroshot_d2.segmentation.pictures import Comparison, LabelArray, comparison_figure
from zeroshot_d2.storage import write_json
from zeroshot_d2.trainer import Results, Trainer

NUM_EXAMPLES = 5


class Demo:
    """See :class:`zeroshot_d2.commands.demo.Demo`."""

    CONFIG = "demo/alignzeg.yaml"
    BASELINE = "demo/ablation/baseline.yaml"
    OPTIONS = ("MODEL.ALIGNZEG.TEST.ORACLE", "False")  # the oracle has its own row, from the pass that the pictures need

    @staticmethod
    def report(run: DemoRun) -> DemoReport:
        """
        Raises:
            ValueError: DATASETS.TEST has no data set of protocol GZS3.
        """
        cfg, model = run.cfg, run.model
        assert isinstance(model, AlignZeg)
        dataset_name = next((d for d in cfg.DATASETS.TEST if MetadataCatalog.get(d).get("protocol") == "GZS3"), None)
        if dataset_name is None:
            raise ValueError(f"the pictures need a data set of protocol GZS3; DATASETS.TEST {cfg.DATASETS.TEST} has none")
        gallery, oracle, sweep = _one_more_pass(run, model, dataset_name)
        run.results |= {
            f"{dataset_name} (oracle)": oracle,
            **{f"{name} (baseline)": numbers for name, numbers in run.baseline_results.items()},
        }
        if sweep:
            write_json(run.output / "gamma_sweep.json", sweep)
        return DemoReport(
            f"AlignZeg on {dataset_name}",
            _lead(run, dataset_name),
            _table(run.results),
            _EXPLANATIONS,
            [
                *_training_section(cfg, run.output),
                *_unseen_section(run.results, sweep, dataset_name, run.output),
                *_examples_section(gallery, dataset_name, run.output),
                *_correction_section(gallery, sweep, cfg, dataset_name, run.output),
                _next_section(run),
            ],
            format_results_table(run.results),
        )


def _one_more_pass(run: DemoRun, model: AlignZeg, dataset_name: str) -> tuple[Gallery, dict[str, Any], list[dict[str, Any]]]:
    """The pictures, the oracle's numbers and those of PBC's thresholds, from the proposals of every image."""
    gallery, oracle, sweep = Gallery(model, dataset_name, run.baseline), OracleEvaluator(dataset_name), None
    evaluators: list[DatasetEvaluator] = [oracle, gallery]
    if model.class_indicator is not None:
        seen = model.seen_mask(MetadataCatalog.get(dataset_name).class_split)
        sweep = GammaSweepEvaluator(dataset_name, seen, background_in_softmax=model.background_in_softmax)
        evaluators.append(sweep)
    loader = Trainer.build_test_loader(run.cfg, dataset_name)
    inference_on_dataset(partial(model.inference, proposals=True), loader, DatasetEvaluators(evaluators))
    assert oracle.details is not None  # this is the only process
    return gallery, oracle.details, [] if sweep is None or sweep.details is None else sweep.details["gamma_sweep"]


class Gallery(DatasetEvaluator):
    """Keeps what the pictures show: examples, and the proposals that PBC changed. For a single process."""

    def __init__(self, model: AlignZeg, dataset_name: str, baseline: Any = None) -> None:
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
            image = read_image(record["file_name"])
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


def _lead(run: DemoRun, dataset_name: str) -> list[str]:
    cfg = run.cfg
    split = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).class_split
    effort = (
        f"The weights were loaded from {run.weights}."
        if run.weights is not None
        else f"It was trained for {cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images, and then "
        f"evaluated, in {run.seconds / 60:.1f} minutes on {_device(cfg)}; CLIP stayed frozen."
    )
    world = next((world for name, world in WORLDS.items() if dataset_name.startswith(name)), None)
    lead = [
        "Zero-shot semantic segmentation names regions of classes that no training label ever showed. AlignZeg (Ge et al., "
        "ECCV 2024) proposes masks, classifies them with CLIP, and corrects the bias towards the classes that it was "
        f"trained on. This model was trained on labels of {len(split)} classes. {effort}",
    ]
    if world is not None:
        lead.append(
            f"The images are synthetic: coloured and textured tiles on some ground. {world.about_unseen} The "
            "numbers show that the method works and how its parts behave; they cannot be compared with those on photographs."
        )
    return lead


def _device(cfg: CfgNode) -> str:
    return f"{torch.get_num_threads()} CPU thread(s)" if cfg.MODEL.DEVICE == "cpu" else f"a {cfg.MODEL.DEVICE} device"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f}"


def _training_section(cfg: CfgNode, output: Path) -> list[Section]:
    """What training sees: an image with unseen pixels, which have no label."""
    name = cfg.DATASETS.TRAIN[0]
    metadata = MetadataCatalog.get(name)
    for record in DatasetCatalog.get(name):
        label = read_label(record["sem_seg_file_name"], metadata.label_table, photo=record["file_name"])
        if (label == metadata.ignore_label).mean() >= UNSEEN_SHARE:
            break
    else:
        return []
    image = read_image(record["file_name"])
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
    if cfg.MODEL.ALIGNZEG.PBC.SAMPLES == "overlap":
        paragraphs.append(
            "The class indicator was trained on other samples than the paper's: every proposal that lies on pixels of a "
            "seen class, or that does not (MODEL.ALIGNZEG.PBC.SAMPLES)."
        )
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


def _next_section(run: DemoRun) -> Section:
    return Section(
        "Going on",
        ["Evaluate again, train longer, compare with the baseline of Table 4, or try it in the browser:"],
        commands=[
            f"python train_net.py --config-file {run.output / 'config.yaml'} --eval-only MODEL.WEIGHTS {run.checkpoint}",
            "python -m zeroshot_d2 demo --system AlignZeg --iterations 3000 --output output/longer",
            "python -m zeroshot_d2 demo --system AlignZeg --with-baseline",
            "python -m zeroshot_d2 web",
        ],
    )
