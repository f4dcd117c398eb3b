"""What Predictive Bias Correction brings, and what any correction could: the same trained weights with and without Eq. 7.

    python -m benchmarks.correction --model output/near/alignzeg_seed1 --model output/near/alignzeg_seed2 \\
        --dataset demo_near_held_out --output output/near_correction

One pass of each model over a data set of GZS3 gives its bias report (``alignzeg_d2/bias_report.py``), the numbers of GZS3
at every threshold gamma, and how well a linear probe on the proposal features F, which the class indicator reads, tells each
unseen class from the two seen classes whose text prototypes are nearest to its own. Printed are means over the models with
sample standard deviations, and differences within each model with 95 % intervals; drawn is what Eq. 7 brings at every
threshold (Fig. 6 left). Reports that are there already are not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import MetadataCatalog
from matplotlib.figure import Figure
from torch import Tensor

from alignzeg_d2.bias_report import (
    BOTH,
    NO_CORRECTION,
    OWN,
    PERFECT,
    BiasCounts,
    area_under_curve,
    pure_ones,
)
from alignzeg_d2.gamma_sweep import DEFAULT_GAMMAS, OFF, GammaSweepEvaluator
from alignzeg_d2.predictor import proposals_of
from alignzeg_d2.proposal_segmenter import ProposalSegmenter
from benchmarks.runs import interval, mean_and_deviation, paired
from zeroshot_d2.checkpoint import weights_in
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.cli import Parser, folder, load_config, positive
from zeroshot_d2.pictures.command import first_records, predictions
from zeroshot_d2.pictures.style import INK, SERIES_COLORS, UNSEEN_COLOR, finish, new_figure, plain_axes, save_figure
from zeroshot_d2.predictor import build_predictor
from zeroshot_d2.segmentation.figures import read_truth
from zeroshot_d2.storage import read_json, write_json, write_text

FloatArray = npt.NDArray[np.float64]
NUM_NEIGHBOURS = 2


# --------------------------------------------------------------------------------------------------- the linear probe


def neighbours(prototypes: Tensor, seen: Tensor, count: int = NUM_NEIGHBOURS) -> dict[int, list[int]]:
    """{unseen class: the ``count`` seen classes whose prototypes (K, D) have the greatest cosine with its own}."""
    cosine = torch.nn.functional.normalize(prototypes, dim=-1) @ torch.nn.functional.normalize(prototypes, dim=-1).T
    cosine[:, ~seen] = -torch.inf
    return {k: cosine[k].topk(count).indices.tolist() for k in torch.nonzero(~seen).flatten().tolist()}


def probe(features: FloatArray, positive: npt.NDArray[np.bool_], folds: npt.NDArray[np.int64]) -> float | None:
    """AUC in percent of a linear probe, ridge regression on standardised features, tested on the fold that it did not see.

    Args:
        features: (N, D).
        positive: (N,) what to tell from the rest.
        folds: (N,) 0 or 1.

    Returns:
        the mean over both folds; None where a fold lacks a kind.
    """
    values = []
    for fold in (0, 1):
        train, test = folds != fold, folds == fold
        if len(set(positive[train])) < 2:
            return None
        mean, spread = features[train].mean(axis=0), features[train].std(axis=0) + 1e-6
        x = (features - mean) / spread
        target = positive[train] - positive[train].mean()
        side = x.shape[1]
        weights = np.linalg.solve(x[train].T @ x[train] + 0.01 * train.sum() * np.eye(side), x[train].T @ target)
        auc = area_under_curve(x[test] @ weights, positive[test])
        if auc is None:
            return None
        values.append(auc)
    return float(np.mean(values))


# ------------------------------------------------------------------------------------------------------- one model


def report_on(model_folder: Path, dataset: str, num_images: int | None) -> dict[str, Any]:
    """{"bias": the bias report, "gamma_sweep": points, "probe": {unseen class: AUC or None}, "neighbours"}.

    Raises:
        ValueError: the model has no class indicator.
    """
    cfg = load_config(str(model_folder / "config.yaml"), ["MODEL.WEIGHTS", str(weights_in(model_folder))])
    predictor = build_predictor(cfg)
    split: ClassSplit = MetadataCatalog.get(dataset).class_split
    predictor.set_vocabulary(split)
    model = predictor.model
    if not isinstance(model, ProposalSegmenter) or model.class_indicator is None:
        raise ValueError(f"{model_folder} has no class indicator: train AlignZeg or a method with PBC")
    seen = model.seen_mask(split)
    gamma = model.postprocessor.gamma
    counts = BiasCounts(split, seen, gamma, background_in_softmax=model.background_in_softmax)
    sweep = GammaSweepEvaluator(
        dataset, seen, sorted({*DEFAULT_GAMMAS, gamma}), background_in_softmax=model.background_in_softmax
    )
    sweep.reset()
    read: list[Tensor] = []  # what the class indicator reads: F (Q, D)
    features: list[FloatArray] = []
    classes: list[npt.NDArray[np.int64]] = []
    images: list[npt.NDArray[np.int64]] = []
    hook = model.class_indicator.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        for number, (record, _, found) in enumerate(
            predictions(predictor, first_records(dataset, num_images), proposals=True)
        ):
            truth = read_truth(record)
            truth = np.where(truth < len(split), truth, len(split))
            proposals = proposals_of(found)
            pure, classes_of_pure = pure_ones(counts.add(proposals, truth))
            sweep.process([record], [{"proposals": proposals}])
            features.append(read.pop(0)[pure].double().numpy())
            classes.append(classes_of_pure.numpy())
            images.append(np.full(int(pure.sum()), number % 2))
    finally:
        hook.remove()
    near = neighbours(model.prototypes(split).cpu(), seen)
    all_features, all_classes, folds = np.concatenate(features), np.concatenate(classes), np.concatenate(images)
    aucs = {}
    for k, others in near.items():
        chosen = np.isin(all_classes, [k, *others])
        aucs[split.names[k]] = probe(all_features[chosen], all_classes[chosen] == k, folds[chosen])
    points = sweep.report()
    assert points is not None
    return {
        "dataset": dataset,
        "bias": counts.report(),
        "gamma_sweep": [{key: value for key, value in point.items() if key != "IoU"} for point in points["gamma_sweep"]],
        "probe": aucs,
        "neighbours": {split.names[k]: [split.names[other] for other in others] for k, others in near.items()},
    }


# ------------------------------------------------------------------------------------------------------- all of them


def _shown(values: Sequence[float | None]) -> str:
    """Mean and sample standard deviation of what is known."""
    known = [value for value in values if value is not None]
    return mean_and_deviation(known) if known else "-"


def best_gamma(reports: Sequence[Mapping[str, Any]]) -> float:
    """The threshold with the highest hIoU, on average over the models."""
    points = [point["gamma"] for point in reports[0]["gamma_sweep"]]
    values = np.array([[point["hIoU"] for point in report["gamma_sweep"]] for report in reports])
    return float(points[int(values.mean(axis=0).argmax())])


def summary(reports: Sequence[Mapping[str, Any]], gammas: Sequence[float] = ()) -> str:
    """Markdown: the numbers of GZS3 by correction, with Eq. 7 at the thresholds ``gammas`` too, and what they say.

    Raises:
        ValueError: a threshold that was not tried.
    """
    keys = {"pAcc": "pAcc", "mIoU_seen": "mIoU(S)", "mIoU_unseen": "mIoU(U)", "hIoU": "hIoU"}
    bias = [report["bias"] for report in reports]
    lines = ["| | " + " | ".join(keys.values()) + " | hIoU over none [95 %] |", "|---|" + "---|" * (len(keys) + 1)]
    rows = {name: [found["corrections"][name] for found in bias] for name in (NO_CORRECTION, OWN, PERFECT, BOTH)}
    for gamma in gammas:
        rows[f"Eq. 7 at {gamma:g}"] = [_at(report["gamma_sweep"], gamma) for report in reports]
    none = [one["hIoU"] for one in rows[NO_CORRECTION]]
    for name, numbers in rows.items():
        cells = [_shown([one[key] for one in numbers]) for key in keys]
        step = "" if name == NO_CORRECTION else paired([one["hIoU"] for one in numbers], none)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {step} |")
    gain, room = (np.mean([one["corrections"][name]["hIoU"] for one in bias]) - np.mean(none) for name in (OWN, PERFECT))
    indicator = [found["indicator"] for found in bias]
    probes = [value for report in reports for value in report["probe"].values() if value is not None]
    facts = {
        "best threshold, of those that were tried": f"{best_gamma(reports):g}",
        "ZS3 mIoU, without correction": _shown([found["ZS3_mIoU"] for found in bias]),
        "pixels of unseen classes given to seen ones, %": _shown([x["unseen_pixels_to_seen"] for x in bias]),
        "pixels of seen classes given to unseen ones, %": _shown([x["seen_pixels_to_unseen"] for x in bias]),
        "share of the perfect indicator's gain that the own one brings, %": f"{100 * gain / room:.0f}" if room > 0 else "-",
        "AUC of the indicator, %": _shown([one["AUC"] for one in indicator]),
        f"flagged at {indicator[0]['gamma']:g}, of unseen proposals, %": _shown(
            [one["flagged_of_unseen"] for one in indicator]
        ),
        f"flagged at {indicator[0]['gamma']:g}, of seen proposals, %": _shown([one["flagged_of_seen"] for one in indicator]),
        "AUC of a linear probe on F, unseen against its two nearest, %": f"{np.mean(probes):.1f}, least {min(probes):.1f}"
        if probes
        else "-",
    }
    lines += ["", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
    return "\n".join(lines) + "\n"


def _at(points: Sequence[Mapping[str, Any]], gamma: float) -> Mapping[str, Any]:
    for point in points:
        if point["gamma"] == gamma:
            return point
    tried = ", ".join(f"{point['gamma']:g}" for point in points)
    raise ValueError(f"--gamma {gamma:g} was not tried; the thresholds are {tried}")


def gain_figure(reports: Sequence[Mapping[str, Any]]) -> Figure:
    """What Eq. 7 changes at every threshold, with the 95 % interval where there are several models."""
    figure = new_figure(5.6, 3.4)
    axes = figure.subplots()
    gammas = [point["gamma"] for point in reports[0]["gamma_sweep"]]
    series = {"mIoU_seen": ("mIoU(S)", SERIES_COLORS[0]), "mIoU_unseen": ("mIoU(U)", UNSEEN_COLOR)}
    for key, (name, color) in {**series, "hIoU": ("hIoU", SERIES_COLORS[1])}.items():
        values = np.array([[point[key] for point in report["gamma_sweep"]] for report in reports])
        gains = values - values[:, [gammas.index(OFF)]]
        axes.plot(gammas, gains.mean(axis=0), color=color, marker="o", markersize=4, linewidth=1.8, label=name)
        if len(reports) > 1:
            bounds = np.array([interval(column) for column in gains.T.tolist()])
            axes.fill_between(gammas, bounds[:, 0], bounds[:, 1], color=color, alpha=0.18, linewidth=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    gamma = reports[0]["bias"]["indicator"]["gamma"]
    axes.axvline(gamma, color=INK, linestyle="--", linewidth=1, label=f"γ = {gamma:g}")
    axes.set_xlabel("threshold γ of Predictive Bias Correction (1: off)", fontsize=9, color=INK)
    axes.set_ylabel("points above no correction", fontsize=9, color=INK)
    plain_axes(axes, grid="y")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return finish(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("python -m benchmarks.correction", __doc__, takes_keys=False)
    parser.add_argument(
        "--model", type=Path, action="append", required=True, metavar="FOLDER", help="a finished run; one for each seed"
    )
    parser.add_argument("--dataset", required=True, help="a data set of GZS3")
    parser.add_argument(
        "--gamma", type=float, nargs="+", default=[], help="list these thresholds too, of those of the sweep"
    )
    parser.add_argument("--num-images", type=positive, metavar="N", help="only the first N images")
    parser.add_argument("--output", type=folder, default=Path("output/correction"))
    args: argparse.Namespace = parser.parse(argv)
    reports = []
    for model_folder in args.model:
        file = args.output / f"{model_folder.name}_{args.dataset}.json"
        if not file.is_file():
            write_json(file, report_on(model_folder, args.dataset, args.num_images))
        reports.append(read_json(file, "report"))
    text = summary(reports, args.gamma)
    write_text(args.output / f"{args.dataset}.md", text)
    save_figure(gain_figure(reports), args.output / f"{args.dataset}.png")
    print(text)


if __name__ == "__main__":
    main()
