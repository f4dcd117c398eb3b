"""The paper's figures for a trained model, on any registered data set.

    python -m alignzeg_d2.figures per-class-iou --config-file C --weights W --output iou.png     # Fig. 5
    python -m alignzeg_d2.figures per-class-iou --results results.json --output iou.png
    python -m alignzeg_d2.figures gamma-sweep --config-file C --weights W --output gamma.png     # Fig. 6 left
    python -m alignzeg_d2.figures qualitative --config-file C --weights W --output examples.png  # Fig. 7
    python -m alignzeg_d2.figures tsne --config-file C --weights W --output tsne.png             # Fig. 8, suppl. Fig. 4
    python -m alignzeg_d2.figures pbc --config-file C --weights W --output pbc.png               # suppl. Fig. 3

``--compare-config`` and ``--compare-weights`` put a second model beside the first, where the paper has its baseline.

Shapes: Q proposals, K classes, D embedding, P cells of the masks' grid (h, w), (H, W) the image.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog, MetadataCatalog
from matplotlib.figure import Figure
from tqdm import tqdm

from alignzeg_d2.alignzeg import AlignZeg
from alignzeg_d2.evaluation import ZeroShotSemSegEvaluator
from alignzeg_d2.gamma_sweep import OFF, GammaSweepEvaluator, Proposals, segment_with_gamma
from alignzeg_d2.modeling.matcher import mask_cost, match
from alignzeg_d2.predict import batches
from alignzeg_d2.predictor import AlignZegPredictor, Segmentation, config_from_arguments, to_bgr
from alignzeg_d2.visualization import (
    MAX_CLASSES_PER_GROUP,
    Comparison,
    Correction,
    EmbeddedFeatures,
    FloatArray,
    ImageArray,
    LabelArray,
    changed_proposals,
    class_iou_figure,
    class_under_mask,
    comparison_figure,
    corrections_figure,
    gamma_figure,
    tsne_figure,
)
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.datasets.sem_seg import read_label
from zeroshot_d2.figures import add_picture_arguments, check_dataset, first_wanted, prepare_picture, save_figure

# An example is an image in which unseen classes cover this share of the pixels.
UNSEEN_SHARE = 0.15
# Proposals that claim less of their image than this are neither shown nor counted.
MIN_WEIGHT = 0.01
NUM_MENDED, NUM_SPOILED = 3, 2
# t-SNE shows classes with at least so many matched proposals, and at most so many of each.
MIN_PROPOSALS, MAX_PROPOSALS = 3, 100

Record = dict[str, Any]
Predictors = Mapping[str, AlignZegPredictor]

# ---- what the figures show; the demo gathers the same ----


def read_truth(record: Record) -> npt.NDArray[np.int64]:
    """(H, W) vocabulary indices of the record's data set; any other value is ignored."""
    table = MetadataCatalog.get(record["dataset_name"]).label_table
    return read_label(record["sem_seg_file_name"], table).astype(np.int64)


def shows_unseen(truth: LabelArray, split: ClassSplit) -> bool:
    """Whether unseen classes cover enough of the image for an example."""
    return bool(np.isin(truth, split.unseen_indices).mean() >= UNSEEN_SHARE)


def labels_without_pbc(model: AlignZeg, split: ClassSplit, proposals: Proposals, size: tuple[int, int]) -> LabelArray:
    """(H, W): what the model would have predicted without the correction; ``size`` is (H, W)."""
    labels = segment_with_gamma(
        proposals, model.seen_mask(split), OFF, size, background_in_softmax=model.background_in_softmax
    )
    return labels.cpu().numpy()


class Corrections:
    """The proposals that PBC gave another class, counted, and the ones that claim most of their image to be shown.

    Attributes:
        changed: how many, without the tiny ones.
        num_mended, num_spoiled: to how many it gave the right class, and from how many it took it.
        mended, spoiled: the heaviest of these, one per image so that the pictures differ.
    """

    def __init__(self, split: ClassSplit, *, background_in_softmax: bool) -> None:
        self._num_classes = len(split)
        self._background_in_softmax = background_in_softmax
        self.changed = self.num_mended = self.num_spoiled = 0
        self.mended: list[Correction] = []
        self.spoiled: list[Correction] = []

    def add(self, image: ImageArray, truth: LabelArray, proposals: Proposals) -> None:
        """Count the ``proposals`` of an image (H, W, 3); ``truth`` (H, W)."""
        mended: list[Correction] = []
        spoiled: list[Correction] = []
        for proposal in changed_proposals(proposals, background_in_softmax=self._background_in_softmax):
            if proposal.weight < MIN_WEIGHT:
                break  # they come heaviest first
            self.changed += 1
            correction = Correction(image, proposal, class_under_mask(proposal.mask, truth, self._num_classes))
            if proposal.after == correction.truth:
                mended.append(correction)
            elif proposal.before == correction.truth:
                spoiled.append(correction)
        self.num_mended += len(mended)
        self.num_spoiled += len(spoiled)
        self.mended = _heaviest([*self.mended, *mended[:1]], NUM_MENDED)
        self.spoiled = _heaviest([*self.spoiled, *spoiled[:1]], NUM_SPOILED)

    def text(self) -> str:
        """The counts as a sentence."""
        return (
            f"the correction gave another class to {self.changed} proposals that claim at least {MIN_WEIGHT:.0%} of their "
            f"image: {self.num_mended} became right, {self.num_spoiled} became wrong, and "
            f"{self.changed - self.num_mended - self.num_spoiled} were wrong before and after."
        )


def _heaviest(corrections: list[Correction], count: int) -> list[Correction]:
    return sorted(corrections, key=lambda correction: -correction.proposal.weight)[:count]


def matched_proposals(mask_logits: torch.Tensor, truth: LabelArray, num_classes: int) -> tuple[LabelArray, LabelArray]:
    """One proposal per class of the ground truth, by bipartite matching of the masks alone (suppl. Fig. 4).

    Those whose mask mostly covers another class than the one they are left with do not count.

    Args:
        mask_logits: (Q, h, w), covering the image.
        truth: (H, W), vocabulary indices, other values ignored.
        num_classes: K.

    Returns:
        indices of the n proposals and their classes, both (n,).
    """
    present = np.unique(truth[(truth >= 0) & (truth < num_classes)])
    if not len(present):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    labels = torch.from_numpy(truth).to(mask_logits.device)
    regions = (labels == torch.from_numpy(present).to(labels)[:, None, None]).float()  # (T, H, W)
    cells = (mask_logits.shape[-2], mask_logits.shape[-1])
    shares = F.adaptive_avg_pool2d(regions, cells).flatten(1)  # (T, P)
    labelled = shares.sum(dim=0)
    masks = shares / labelled.clamp(min=1e-6)
    rows, columns = match(mask_cost(mask_logits.flatten(1), masks, bce_weight=1.0, dice_weight=1.0, valid=labelled))
    proposals, classes = rows.cpu().numpy(), present[columns.cpu().numpy()]
    probabilities = mask_logits.sigmoid().cpu().numpy()
    covers = [class_under_mask(probabilities[q], truth, num_classes) == k for q, k in zip(proposals, classes, strict=True)]
    return proposals[covers], classes[covers]


def choose_classes(
    counts: Sequence[npt.NDArray[np.int64]], split: ClassSplit, per_group: int, generator: np.random.Generator
) -> list[int]:
    """Classes for t-SNE: up to ``per_group`` of the seen ones and of the unseen ones, at random, ascending.

    Args:
        counts: (K,) for each model, matched proposals per class; all models must have enough of a class.
        split: the K classes.
        per_group: how many.
        generator: decides.

    Raises:
        ValueError: fewer than two classes have enough proposals.
    """
    enough = np.min(counts, axis=0) >= MIN_PROPOSALS
    chosen: list[int] = []
    for group in (split.seen_indices, split.unseen_indices):
        candidates = group[enough[group]]
        chosen += generator.choice(candidates, min(per_group, len(candidates)), replace=False).tolist()
    if len(chosen) < 2:
        raise ValueError(
            f"t-SNE needs two classes with at least {MIN_PROPOSALS} matched proposals each, found {len(chosen)}: "
            "take more images (--num-images) or a model that was trained longer"
        )
    return sorted(chosen)


def embed(features: FloatArray, seed: int) -> FloatArray:
    """t-SNE by cosine distance: (n, D) -> (n, 2). The perplexity is 30, or what so few points allow.

    Raises:
        ValueError: there are fewer than four points.
    """
    from sklearn.manifold import TSNE  # of the extra "demo"; slow to import

    if len(features) < 4:
        raise ValueError(f"t-SNE needs at least four points, got {len(features)}")
    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=seed).fit_transform(features)


def separation(features: FloatArray, classes: LabelArray) -> float:
    """Mean silhouette by cosine distance, in all D dimensions: 1 for classes far apart, 0 for classes that overlap."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(features, classes, metric="cosine"))


# ---- one function per figure ----


def draw_per_class_iou(args: argparse.Namespace) -> Figure:
    """Fig. 5, from result files or by evaluating."""
    if args.results is not None:
        dataset = args.dataset or _first_dataset(args.results)
        files = {args.compare_name: args.compare_results, args.name: args.results}
        ious = {name: _read_ious(file, dataset) for name, file in files.items() if file is not None}
    else:
        dataset, predictors = _load(args)
        records = _records(dataset, args.num_images)
        ious = {}
        for name, predictor in predictors.items():
            evaluated = _evaluate(predictor, records, ZeroShotSemSegEvaluator(dataset, distributed=False))
            ious[name] = evaluated["sem_seg"]["IoU"]
    split: ClassSplit = MetadataCatalog.get(dataset).class_split
    if args.classes == "unseen" and not split.unseen:
        raise ValueError(f"no class of {dataset!r} is unseen: use --classes all")
    names = split.unseen if args.classes == "unseen" else (*split.unseen, *split.seen)
    return class_iou_figure(ious, names, split.unseen)


def draw_gamma_sweep(args: argparse.Namespace) -> Figure:
    """Fig. 6 left."""
    dataset, predictors = _load(args)
    predictor = predictors[args.name]
    metadata, model = MetadataCatalog.get(dataset), predictor.model
    if metadata.protocol != "GZS3":
        raise ValueError(f"gamma-sweep needs a data set of protocol GZS3; {dataset!r} is of {metadata.protocol}")
    evaluator = GammaSweepEvaluator(
        dataset,
        model.seen_mask(metadata.class_split),
        distributed=False,
        background_in_softmax=model.background_in_softmax,
    )
    points = _evaluate(predictor, _records(dataset, args.num_images), evaluator, proposals=True)["gamma_sweep"]
    return gamma_figure(points, predictor.cfg.MODEL.ALIGNZEG.PBC.GAMMA)


def draw_qualitative(args: argparse.Namespace) -> Figure:
    """Fig. 7: the first images that show unseen classes. Alone, the model is compared with itself without PBC."""
    dataset, predictors = _load(args)
    metadata = MetadataCatalog.get(dataset)
    split: ClassSplit = metadata.class_split
    records = _example_records(dataset, args.num_images)
    columns: dict[str, dict[str, LabelArray]] = {record["file_name"]: {} for record in records}
    images: dict[str, ImageArray] = {}
    for name, predictor in predictors.items():
        model = predictor.model
        alone = len(predictors) == 1 and model.class_indicator is not None
        for record, image, found in _segmentations(predictor, records, proposals=alone):
            file_name = record["file_name"]
            images[file_name] = image
            if found.proposals is not None:
                size = (image.shape[0], image.shape[1])
                columns[file_name]["Without PBC"] = labels_without_pbc(model, split, found.proposals, size)
            columns[file_name][name] = found.labels
    rows = [Comparison(images[record["file_name"]], read_truth(record), columns[record["file_name"]]) for record in records]
    return comparison_figure(rows, split, metadata.stuff_colors)


def draw_tsne(args: argparse.Namespace) -> Figure:
    """Fig. 8 and suppl. Fig. 4: refined proposal features F_cls of the same random classes, a panel per model."""
    if not 1 <= args.num_classes <= MAX_CLASSES_PER_GROUP:
        raise ValueError(f"--num-classes must be between 1 and {MAX_CLASSES_PER_GROUP}, got {args.num_classes}")
    dataset, predictors = _load(args)
    split: ClassSplit = MetadataCatalog.get(dataset).class_split
    records = _records(dataset, args.num_images)
    gathered = {name: _matched_features(predictor, records, len(split)) for name, predictor in predictors.items()}
    generator = np.random.default_rng(args.seed)
    counts = [np.bincount(classes, minlength=len(split)) for _, classes in gathered.values()]
    chosen = choose_classes(counts, split, args.num_classes, generator)
    panels = {}
    for name, (features, classes) in gathered.items():
        kept = np.concatenate([_sample(np.flatnonzero(classes == k), MAX_PROPOSALS, generator) for k in chosen])
        features, classes = features[kept], classes[kept]
        texts = np.zeros((0, features.shape[1]))
        if args.prototypes:
            texts = predictors[name].model.text_embeddings(split.prompts).float().cpu().numpy()[chosen]
        positions = embed(np.concatenate([features, texts]).astype(np.float32), args.seed)
        panels[name] = EmbeddedFeatures(
            positions[: len(features)],
            classes,
            dict(zip(chosen, positions[len(features) :], strict=False)),
            f"{len(features)} proposals, silhouette {separation(features, classes):.2f}",
        )
    return tsne_figure(panels, split)


def draw_pbc(args: argparse.Namespace) -> Figure:
    """Suppl. Fig. 3: the heaviest proposals that became right, and below them the heaviest that became wrong."""
    dataset, predictors = _load(args)
    predictor = predictors[args.name]
    split: ClassSplit = MetadataCatalog.get(dataset).class_split
    gamma = predictor.cfg.MODEL.ALIGNZEG.PBC.GAMMA
    corrections = Corrections(split, background_in_softmax=predictor.model.background_in_softmax)
    for record, image, found in _segmentations(predictor, _records(dataset, args.num_images), proposals=True):
        assert found.proposals is not None
        corrections.add(image, read_truth(record), found.proposals)
    print(f"At gamma = {gamma:g} {corrections.text()}")
    shown = [*corrections.mended, *corrections.spoiled]
    if not shown:
        raise ValueError(
            f"no proposal on {dataset!r} became right or wrong at gamma {gamma:g}: take more images (--num-images), lower "
            "MODEL.ALIGNZEG.PBC.GAMMA, or take a data set with unseen classes"
        )
    return corrections_figure(shown, split, gamma=gamma)


# ---- models, records and passes through them ----


def _load(args: argparse.Namespace) -> tuple[str, Predictors]:
    """The data set, and the predictors by name, the one to compare with first."""
    cfg = config_from_arguments(args)
    if not args.dataset and not cfg.DATASETS.TEST:
        raise ValueError("the config has no DATASETS.TEST: name a data set with --dataset")
    dataset = args.dataset or cfg.DATASETS.TEST[0]
    check_dataset(dataset, "alignzeg_sem_seg")
    opts = [*args.opts, "DATASETS.TEST", f"('{dataset}',)"]
    models = {args.name: (args.config_file, args.weights)}
    if getattr(args, "compare_weights", None) is not None:
        models = {args.compare_name: (args.compare_config or args.config_file, args.compare_weights), **models}
    return dataset, {
        name: AlignZegPredictor(
            config_from_arguments(argparse.Namespace(config_file=config_file, weights=weights, opts=opts))
        )
        for name, (config_file, weights) in models.items()
    }


def _records(dataset: str, num_images: int | None) -> list[Record]:
    """The first ``num_images`` records, or all."""
    if num_images is not None and num_images < 1:
        raise ValueError(f"--num-images must be positive, got {num_images}")
    return DatasetCatalog.get(dataset)[:num_images]


def _example_records(dataset: str, num_images: int) -> list[Record]:
    """The first records that show unseen classes; where they are too few, the first of the others too."""
    split = MetadataCatalog.get(dataset).class_split
    records = DatasetCatalog.get(dataset)
    if not split.unseen:
        return _records(dataset, num_images)
    return first_wanted(records, num_images, lambda record: shows_unseen(read_truth(record), split))


def _segmentations(
    predictor: AlignZegPredictor, records: Iterable[Record], *, proposals: bool = False
) -> Iterator[tuple[Record, ImageArray, Segmentation]]:
    """Record, image (H, W, 3) in RGB and prediction, batch by batch."""
    for batch in batches(tqdm(records, unit="image"), predictor.batch_size):
        images = [to_bgr(record["file_name"]) for record in batch]
        for record, bgr, found in zip(batch, images, predictor(images, proposals=proposals), strict=True):
            yield record, bgr[:, :, ::-1], found


def _evaluate(
    predictor: AlignZegPredictor,
    records: Sequence[Record],
    evaluator: ZeroShotSemSegEvaluator,
    *,
    proposals: bool = False,
) -> dict[str, Any]:
    """What ``evaluator`` says about the predictions."""
    for record, _, found in _segmentations(predictor, records, proposals=proposals):
        output: dict[str, Any] = {"sem_seg_labels": torch.from_numpy(found.labels), "proposals": found.proposals}
        evaluator.process([record], [output])
    results = evaluator.evaluate()
    assert results is not None  # this is the only process
    return results


def _matched_features(
    predictor: AlignZegPredictor, records: Sequence[Record], num_classes: int
) -> tuple[FloatArray, LabelArray]:
    """F_cls (n, D) and classes (n,) of the matched proposals of all images."""
    features: list[FloatArray] = []
    classes: list[LabelArray] = []
    for record, _, found in _segmentations(predictor, records, proposals=True):
        assert found.proposals is not None
        masks, refined = found.proposals["mask_logits"], found.proposals["features"]
        assert masks is not None and refined is not None
        indices, labels = matched_proposals(masks, read_truth(record), num_classes)
        features.append(refined.cpu().numpy()[indices])
        classes.append(labels)
    return np.concatenate(features), np.concatenate(classes)


def _sample(indices: npt.NDArray[np.int64], limit: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    return indices if len(indices) <= limit else generator.choice(indices, limit, replace=False)


def _read_results(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"the results {file} do not exist (looked for them from {Path.cwd()})")
    return json.loads(file.read_text(encoding="utf-8"))


def _first_dataset(file: Path) -> str:
    """The first data set of a results.json that is registered here."""
    results = _read_results(file)
    registered = [name for name in results if name in DatasetCatalog.list()]
    if not registered:
        raise ValueError(f"no data set of {file} is registered: {', '.join(results)}; --import the script that does it")
    return registered[0]


def _read_ious(file: Path, dataset: str) -> dict[str, float | None]:
    """{class: IoU in percent} of a data set, as ``train_net.py`` writes them."""
    check_dataset(dataset, "alignzeg_sem_seg")
    results = _read_results(file)
    if "IoU" not in results.get(dataset, {}):
        raise ValueError(f"{file} has no IoU on {dataset!r}; it has results on {', '.join(results)}")
    return results[dataset]["IoU"]


# ---- command line ----

_FIGURES = {
    "per-class-iou": draw_per_class_iou,
    "gamma-sweep": draw_gamma_sweep,
    "qualitative": draw_qualitative,
    "tsne": draw_tsne,
    "pbc": draw_pbc,
}
_ALL_IMAGES = "use the first so many images; default: all"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alignzeg_d2.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    figures = parser.add_subparsers(dest="figure", required=True)

    iou = figures.add_parser("per-class-iou", help="IoU of the unseen classes (Fig. 5)")
    _add_arguments(iou, compare=True, model_required=False)
    iou.add_argument("--num-images", type=int, help=_ALL_IMAGES)
    iou.add_argument("--classes", choices=("unseen", "all"), default="unseen")
    iou.add_argument("--results", type=Path, help="a results.json instead of a model")
    iou.add_argument("--compare-results", type=Path, help="a second one, to compare with")

    gamma = figures.add_parser("gamma-sweep", help="mIoU and hIoU against the threshold of PBC (Fig. 6 left)")
    _add_arguments(gamma)
    gamma.add_argument("--num-images", type=int, help=_ALL_IMAGES)

    qualitative = figures.add_parser("qualitative", help="image, ground truth and predictions (Fig. 7)")
    _add_arguments(qualitative, compare=True)
    qualitative.add_argument("--num-images", type=int, default=5, help="rows; default: 5")

    tsne = figures.add_parser("tsne", help="t-SNE of proposal features (Fig. 8, suppl. Fig. 4)")
    _add_arguments(tsne, compare=True)
    tsne.add_argument("--num-images", type=int, help=_ALL_IMAGES)
    tsne.add_argument("--num-classes", type=int, default=5, help="of the seen and of the unseen classes each; default: 5")
    tsne.add_argument("--prototypes", action="store_true", help="show the text prototypes too")
    tsne.add_argument("--seed", type=int, default=0, help="decides on the classes and the layout")

    pbc = figures.add_parser("pbc", help="proposals before and after the correction (suppl. Fig. 3)")
    _add_arguments(pbc)
    pbc.add_argument("--num-images", type=int, help=_ALL_IMAGES)
    for figure in figures.choices.values():
        figure.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the config")
    return parser


def _add_arguments(parser: argparse.ArgumentParser, *, compare: bool = False, model_required: bool = True) -> None:
    """Model, data set and picture."""
    parser.add_argument("--config-file", required=model_required, help="the config that the checkpoint was trained with")
    parser.add_argument("--weights", required=model_required, help="the checkpoint")
    parser.add_argument("--name", default="AlignZeg", help="what the picture calls the model; default: AlignZeg")
    if compare:
        parser.add_argument("--compare-config", help="config of a second model; default: --config-file")
        parser.add_argument("--compare-weights", help="checkpoint of a second model")
        parser.add_argument("--compare-name", default="Baseline", help="default: Baseline")
    parser.add_argument("--dataset", help="a registered data set; default: the first of DATASETS.TEST, or of the results")
    add_picture_arguments(parser)


def main(argv: Sequence[str] | None = None) -> Path:
    """Draw a figure by command-line arguments ``argv``; gives the path of the picture.

    Raises:
        FileNotFoundError: a config, checkpoint, result file or script does not exist.
        ValueError: the data set, the model or an argument does not fit the figure.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if getattr(args, "results", None) is None and None in (args.config_file, args.weights):
        parser.error("per-class-iou needs --config-file and --weights, or --results")
    if getattr(args, "compare_config", None) is not None and args.compare_weights is None:
        parser.error("--compare-config needs --compare-weights")
    if getattr(args, "compare_name", None) == args.name:
        parser.error(f"--name and --compare-name are both {args.name!r}")
    path = prepare_picture(args, args.figure)
    save_figure(_FIGURES[args.figure](args), path)
    print(f"written: {path}")
    return path


if __name__ == "__main__":
    main()
