"""The proposals that Predictive Bias Correction gave another class (suppl. Fig. 3): found, counted and drawn.

Shapes: Q proposals, K classes, (h, w) the masks' grid, (H, W) the image.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from scipy import ndimage

from alignzeg_d2.inference import class_probabilities
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.images import ImageArray
from zeroshot_d2.pictures.style import INK, MUTED, UNSEEN_COLOR, class_text, finish, new_figure, show_image
from zeroshot_d2.segmentation.pictures import FloatArray, LabelArray, borders, paled

# Proposals that claim less of their image than this are neither shown nor counted.
MIN_WEIGHT = 0.01
NUM_MENDED, NUM_SPOILED = 3, 2


@dataclass(frozen=True, eq=False)
class ChangedProposal:
    """A proposal to which PBC gave another class.

    Args:
        index: its number among the Q proposals.
        before, after: vocabulary indices of its best class without and with the correction.
        indicator: I, the class indicator, in [0, 1].
        mask: (h, w), probabilities.
        probabilities_before, probabilities_after: (K,), the classes' probabilities.
        weight: how much of the image it claims without the correction: mean of the mask times the probability of any
            class at all.
    """

    index: int
    before: int
    after: int
    indicator: float
    mask: FloatArray
    probabilities_before: FloatArray
    probabilities_after: FloatArray
    weight: float


def changed_proposals(proposals: Mapping[str, Any], *, background_in_softmax: bool = True) -> list[ChangedProposal]:
    """Those of an image's proposals whose best class PBC changed, heaviest first.

    Args:
        proposals: "mask_logits" (Q, h, w), "class_logits" and "corrected_logits" (Q, K + 1), "class_indicator" (Q,), as
            the model returns them with MODEL.ALIGNZEG.TEST.RETURN_PROPOSALS.
        background_in_softmax: as in MODEL.ALIGNZEG.TEST.

    Raises:
        ValueError: the proposals come from a model without a class indicator.
    """
    if proposals.get("class_indicator") is None:
        raise ValueError("the proposals have no class indicator: train with MODEL.ALIGNZEG.PBC.POSTPROCESSOR PBC")
    before, after = (
        class_probabilities(proposals[key], background_in_softmax=background_in_softmax).cpu().numpy()
        for key in ("class_logits", "corrected_logits")
    )
    masks = proposals["mask_logits"].sigmoid().cpu().numpy()
    indicator = proposals["class_indicator"].cpu().numpy()
    changed = [
        ChangedProposal(
            index=int(q),
            before=int(before[q].argmax()),
            after=int(after[q].argmax()),
            indicator=float(indicator[q]),
            mask=masks[q],
            probabilities_before=before[q],
            probabilities_after=after[q],
            weight=float(masks[q].mean() * before[q].sum()),
        )
        for q in np.flatnonzero(before.argmax(axis=1) != after.argmax(axis=1))
    ]
    return sorted(changed, key=lambda proposal: (-proposal.weight, proposal.index))


def class_under_mask(mask: FloatArray, truth: LabelArray, num_classes: int) -> int | None:
    """The ground-truth class with the largest soft overlap, as the oracle has it; None without a labelled pixel.

    Args:
        mask: (h, w), probabilities; brought to the size of ``truth``.
        truth: (H, W), vocabulary indices, other values ignored.
        num_classes: K.
    """
    labelled = (truth >= 0) & (truth < num_classes)
    if not labelled.any():
        return None
    overlap = np.bincount(truth[labelled], weights=_zoom(mask, truth.shape)[labelled], minlength=num_classes)
    return int(overlap.argmax())


def _zoom(mask: FloatArray, size: tuple[int, ...]) -> FloatArray:
    """Bilinear, cell borders aligned: (h, w) -> ``size``."""
    factors = (size[0] / mask.shape[0], size[1] / mask.shape[1])
    return np.clip(ndimage.zoom(mask, factors, order=1, grid_mode=True, mode="nearest"), 0, 1)


@dataclass(frozen=True, eq=False)
class Correction:
    """A changed proposal with its image (H, W, 3), and, if known, the ground-truth class that it mostly covers."""

    image: ImageArray
    proposal: ChangedProposal
    truth: int | None = None


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

    def add(self, image: ImageArray, truth: LabelArray, proposals: Mapping[str, Any]) -> None:
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


def corrections_figure(corrections: Sequence[Correction], split: ClassSplit, *, gamma: float, top: int = 4) -> Figure:
    """Proposals that PBC changed, a row each: mask and class indicator, best classes before and after (suppl. Fig. 3).

    Args:
        corrections: the rows.
        split: the K classes.
        gamma: the threshold, for the titles.
        top: number of classes shown.

    Raises:
        ValueError: there is no row.
    """
    if not corrections:
        raise ValueError("corrections_figure needs at least one changed proposal")
    figure = new_figure(8.2, 1.85 * len(corrections) + 0.2)
    grid = figure.subplots(len(corrections), 3, squeeze=False, width_ratios=(1, 1.45, 1.45))
    for row, (correction, axes_row) in enumerate(zip(corrections, grid, strict=True)):
        proposal = correction.proposal
        _draw_mask(axes_row[0], correction.image, proposal.mask)
        axes_row[0].set_title(f"I = {proposal.indicator:.2f} > γ = {gamma:g}", fontsize=8, color=INK)
        if correction.truth is not None:
            unseen = split.names[correction.truth] in split.unseen
            axes_row[0].set_xlabel(
                textwrap.fill(f"truth: {class_text(split, correction.truth)}", 24, break_long_words=False),
                fontsize=6.5,
                color=UNSEEN_COLOR if unseen else INK,
                fontweight="bold" if unseen else "normal",
                labelpad=3,
            )
        sides = (proposal.probabilities_before, proposal.probabilities_after)
        limit = 1.25 * max(float(side.max()) for side in sides)
        for axes, probabilities in zip(axes_row[1:], sides, strict=True):
            _draw_probabilities(axes, probabilities, split, correction.truth, top=top, limit=limit)
        axes_row[2].annotate(
            "",
            xy=(-0.62, 0.5),
            xytext=(-0.74, 0.5),
            xycoords="axes fraction",
            arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.4},
        ).set_in_layout(False)
        if row == 0:
            axes_row[1].set_title("before PBC", fontsize=9, color=INK)
            axes_row[2].set_title("after PBC", fontsize=9, color=INK)
    return finish(figure)


def _draw_mask(axes: Axes, image: ImageArray, mask: FloatArray) -> None:
    """The image, grey and pale outside of the mask, whose border is drawn."""
    zoomed = _zoom(mask, image.shape[:2])
    inside = zoomed[..., None]
    show_image(axes, np.rint(inside * image + (1 - inside) * paled(image)).astype(np.uint8))
    axes.add_collection(
        LineCollection(
            list(borders((zoomed > 0.5).astype(int))), colors=UNSEEN_COLOR, linewidths=1.2, capstyle="projecting"
        ),
        autolim=False,
    )


def _draw_probabilities(
    axes: Axes, probabilities: FloatArray, split: ClassSplit, truth: int | None, *, top: int, limit: float
) -> None:
    """Bars of the ``top`` best classes; the first is bold, a tick marks the true one."""
    best = np.argsort(-probabilities, kind="stable")[:top]
    unseen = [split.names[k] in split.unseen for k in best]
    drawn = axes.barh(
        np.arange(len(best)), probabilities[best], height=0.72, color=[UNSEEN_COLOR if u else "#a7afb9" for u in unseen]
    )
    for patch, k in zip(drawn, best, strict=True):
        axes.annotate(
            f"{probabilities[k]:.2f}" + (" ✓" if k == truth else ""),
            (patch.get_width(), patch.get_y() + patch.get_height() / 2),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=INK,
        )
    axes.set_yticks(np.arange(len(best)), [class_text(split, k) for k in best])
    axes.invert_yaxis()
    axes.set_xlim(0, limit)
    axes.set_xticks([])
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(MUTED)
    axes.tick_params(axis="y", length=0, labelsize=8)
    for rank, (text, is_unseen) in enumerate(zip(axes.get_yticklabels(), unseen, strict=True)):
        text.set(color=UNSEEN_COLOR if is_unseen else INK, fontweight="bold" if rank == 0 else "normal")
