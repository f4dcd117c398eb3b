"""The paper's figures for a trained model: Fig. 6 left, Fig. 7, Fig. 8, and Fig. 3 and 4 of the supplement.

Shapes: Q proposals, K classes, D embedding, P cells of the masks' grid (h, w), (H, W) the image.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from detectron2.data import MetadataCatalog
from matplotlib.figure import Figure

from alignzeg_d2.alignzeg import AlignZeg
from alignzeg_d2.gamma_sweep import OFF, GammaSweepEvaluator, Proposals, segment_with_gamma
from alignzeg_d2.modeling.matcher import mask_cost, match
from alignzeg_d2.pictures.corrections import Corrections, class_under_mask, corrections_figure
from alignzeg_d2.pictures.gamma import gamma_figure
from alignzeg_d2.pictures.tsne import MAX_CLASSES_PER_GROUP, EmbeddedFeatures, tsne_figure
from alignzeg_d2.predictor import proposals_of
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.images import ImageArray
from zeroshot_d2.pictures.command import FigureCommand, Record, first_records, load_models, predictions
from zeroshot_d2.predictor import Predictor
from zeroshot_d2.segmentation.figures import (
    add_num_images,
    draw_comparison,
    evaluate,
    example_records,
    qualitative_arguments,
    read_truth,
)
from zeroshot_d2.segmentation.pictures import FloatArray, LabelArray
from zeroshot_d2.segmentation.registration import EVALUATOR_TYPE

# t-SNE shows classes with at least so many matched proposals, and at most so many of each.
MIN_PROPOSALS, MAX_PROPOSALS = 3, 100


def labels_without_pbc(model: AlignZeg, split: ClassSplit, proposals: Proposals, size: tuple[int, int]) -> LabelArray:
    """(H, W): what the model would have predicted without the correction; ``size`` is (H, W)."""
    labels = segment_with_gamma(
        proposals, model.seen_mask(split), OFF, size, background_in_softmax=model.background_in_softmax
    )
    return labels.cpu().numpy()


# ---- Fig. 6 left ----


def draw_gamma_sweep(args: argparse.Namespace) -> Figure:
    """Fig. 6 left."""
    dataset, predictors = load_models(args, EVALUATOR_TYPE)
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
    points = evaluate(predictor, first_records(dataset, args.num_images), evaluator, proposals=True)["gamma_sweep"]
    return gamma_figure(points, predictor.cfg.MODEL.ALIGNZEG.PBC.GAMMA)


# ---- Fig. 7 ----


def draw_qualitative(args: argparse.Namespace) -> Figure:
    """The first images that show unseen classes. Alone, the model is compared with itself without PBC."""
    dataset, predictors = load_models(args, EVALUATOR_TYPE)
    split: ClassSplit = MetadataCatalog.get(dataset).class_split
    records = example_records(dataset, args.num_images)
    columns: dict[str, dict[str, LabelArray]] = {record["file_name"]: {} for record in records}
    images: dict[str, ImageArray] = {}
    for name, predictor in predictors.items():
        model = predictor.model
        wanted = {"proposals": True} if len(predictors) == 1 and getattr(model, "class_indicator", None) is not None else {}
        for record, image, found in predictions(predictor, records, **wanted):
            file_name = record["file_name"]
            images[file_name] = image
            if wanted:
                size = (image.shape[0], image.shape[1])
                columns[file_name]["Without PBC"] = labels_without_pbc(model, split, proposals_of(found), size)
            columns[file_name][name] = found.labels
    return draw_comparison(dataset, records, images, columns)


# ---- Fig. 8 and suppl. Fig. 4 ----


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


def draw_tsne(args: argparse.Namespace) -> Figure:
    """Fig. 8 and suppl. Fig. 4: refined proposal features F_cls of the same random classes, a panel per model."""
    if not 1 <= args.num_classes <= MAX_CLASSES_PER_GROUP:
        raise ValueError(f"--num-classes must be between 1 and {MAX_CLASSES_PER_GROUP}, got {args.num_classes}")
    dataset, predictors = load_models(args, EVALUATOR_TYPE)
    split: ClassSplit = MetadataCatalog.get(dataset).class_split
    records = first_records(dataset, args.num_images)
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
            texts = predictors[name].model.prototypes(split).float().cpu().numpy()[chosen]
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
    dataset, predictors = load_models(args, EVALUATOR_TYPE)
    predictor = predictors[args.name]
    split: ClassSplit = MetadataCatalog.get(dataset).class_split
    gamma = predictor.cfg.MODEL.ALIGNZEG.PBC.GAMMA
    corrections = Corrections(split, background_in_softmax=predictor.model.background_in_softmax)
    for record, image, found in predictions(predictor, first_records(dataset, args.num_images), proposals=True):
        corrections.add(image, read_truth(record), proposals_of(found))
    print(f"At gamma = {gamma:g} {corrections.text()}")
    shown = [*corrections.mended, *corrections.spoiled]
    if not shown:
        raise ValueError(
            f"no proposal on {dataset!r} became right or wrong at gamma {gamma:g}: take more images (--num-images), lower "
            "MODEL.ALIGNZEG.PBC.GAMMA, or take a data set with unseen classes"
        )
    return corrections_figure(shown, split, gamma=gamma)


def _matched_features(predictor: Predictor, records: Sequence[Record], num_classes: int) -> tuple[FloatArray, LabelArray]:
    """F_cls (n, D) and classes (n,) of the matched proposals of all images."""
    features: list[FloatArray] = []
    classes: list[LabelArray] = []
    for record, _, found in predictions(predictor, records, proposals=True):
        proposals = proposals_of(found)
        masks, refined = proposals["mask_logits"], proposals["features"]
        assert masks is not None and refined is not None
        indices, labels = matched_proposals(masks, read_truth(record), num_classes)
        features.append(refined.cpu().numpy()[indices])
        classes.append(labels)
    return np.concatenate(features), np.concatenate(classes)


def _sample(indices: npt.NDArray[np.int64], limit: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    return indices if len(indices) <= limit else generator.choice(indices, limit, replace=False)


def _tsne_arguments(parser: argparse.ArgumentParser) -> None:
    add_num_images(parser)
    parser.add_argument("--num-classes", type=int, default=5, help="of the seen and of the unseen classes each; default: 5")
    parser.add_argument("--prototypes", action="store_true", help="show the text prototypes too")
    parser.add_argument("--seed", type=int, default=0, help="decides on the classes and the layout")


FIGURES = {
    "gamma-sweep": FigureCommand(
        "mIoU and hIoU against the threshold of PBC (Fig. 6 left)", draw_gamma_sweep, add_num_images
    ),
    "qualitative": FigureCommand(
        "image, ground truth and predictions (Fig. 7)", draw_qualitative, qualitative_arguments, compare=True
    ),
    "tsne": FigureCommand("t-SNE of proposal features (Fig. 8, suppl. Fig. 4)", draw_tsne, _tsne_arguments, compare=True),
    "pbc": FigureCommand("proposals before and after the correction (suppl. Fig. 3)", draw_pbc, add_num_images),
}
