"""The tab of the web page: upload a photo, type a vocabulary, see the segmentation and what PBC changed in it.

Shapes: K classes, (H, W) the image. Images are (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch.nn.functional as F
from detectron2.config import CfgNode
from PIL import Image, ImageOps

from alignzeg_d2.alignzeg import AlignZeg
from alignzeg_d2.gamma_sweep import OFF, Proposals, correct_and_segment
from alignzeg_d2.inference import PBC, class_probabilities
from alignzeg_d2.pictures.corrections import MIN_WEIGHT, Correction, changed_proposals, corrections_figure
from alignzeg_d2.predictor import AlignZegPredictor
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.images import ImageArray
from zeroshot_d2.pictures.style import class_text, figure_pixels
from zeroshot_d2.segmentation.pictures import Colors, blend_labels, label_figure
from zeroshot_d2.segmentation.predictor import Segmentation
from zeroshot_d2.segmentation.writer import OTHER_COLOR
from zeroshot_d2.web import (
    EVENT,
    answering,
    captioned,
    example_photos,
    photo_input,
    picture_output,
    read_upload,
    table,
    typed_names,
)
from zeroshot_d2.web_server import Limits, Visitor

NUM_PROPOSALS, NUM_CORRECTIONS = 8, 4
THUMBNAIL = 320  # pixels

HEADERS = ("class", "in training", "area (%)", "confidence")
Captioned = list[tuple[ImageArray, str]]
Results = tuple[ImageArray, list[list[str]], str, Captioned, ImageArray | None]
"""Overlay, rows under HEADERS, a sentence, the heaviest proposals, and a picture of what PBC changed, if it did."""


@dataclass(frozen=True, eq=False)
class Found:
    """What the network found in a photo; another gamma needs nothing more.

    Args:
        image: the photo.
        segmentation: with its proposals, on the CPU; None if the photo was seen in windows.
        colors: (K) RGB.
    """

    image: ImageArray
    segmentation: Segmentation
    colors: Colors

    def kept(self) -> Found:
        """Without the maps of pixels, which another gamma replaces: they are most of the memory."""
        labels, confidence = np.empty((0, 0), np.int64), np.empty((0, 0), np.float32)
        return replace(self, segmentation=replace(self.segmentation, labels=labels, confidence=confidence))


class Segmenter:
    """AlignZeg behind the page. Safe to call from several threads: nothing of one visitor's reaches another's."""

    def __init__(self, cfg: CfgNode, limits: Limits) -> None:
        self._predictor = AlignZegPredictor(cfg)
        self.limits = limits
        self.default_names = ", ".join(self._predictor.vocabulary.prompts)
        # The threshold in effect; None for a model without a class indicator, or where there are no proposals to correct.
        corrects = isinstance(self.model.postprocessor, PBC) and self.model.looks.once
        self.gamma: float | None = self._predictor.cfg.MODEL.ALIGNZEG.PBC.GAMMA if corrects else None
        self._predictor(np.zeros((32, 32, 3), np.uint8))  # so that no visitor waits for the vectors of the names

    @property
    def model(self) -> AlignZeg:
        return self._predictor.model

    def find(self, photo: str | None, names: str, unseen: str) -> Found:
        """Run the network.

        Args:
            photo: path of the file.
            names: the vocabulary, as typed.
            unseen: names that count as unseen although the model was trained on them, as typed.

        Raises:
            ValueError: the photo cannot be used, or the vocabulary is faulty.
        """
        image = read_upload(photo, self.limits)
        # The config's own vocabulary has more than its text shows: colours, and other names for display.
        vocabulary = None if names == self.default_names else typed_names(names, self.limits)
        split = self._predictor.marked(vocabulary, typed_names(unseen, self.limits))
        found = self._predictor(np.ascontiguousarray(image[:, :, ::-1]), vocabulary=split, proposals=True)
        colors = self._predictor.colors_of(found.vocabulary)
        if found.proposals is None:
            return Found(image, found, colors)
        on_cpu = {key: None if value is None else value.cpu() for key, value in found.proposals.items()}
        return Found(image, replace(found, proposals=on_cpu), colors)

    def show(self, found: Found, gamma: float, least: float = 0.0) -> Results:
        """Everything that the page shows of a photo.

        Args:
            found: the photo.
            gamma: the threshold of the correction.
            least: pixels of less confidence are of no class of the vocabulary.

        Raises:
            ValueError: there is such a threshold, and the vocabulary has a class "other".
        """
        segmentation = with_gamma(self.model, found, gamma)
        split, proposals, colors = segmentation.vocabulary, segmentation.proposals, list(found.colors)
        if least > 0:
            segmentation = segmentation.with_other(least)
            colors.append(OTHER_COLOR)
        shown = segmentation.vocabulary
        rows = [
            [
                class_text(shown, entry["index"]),
                "" if entry["index"] == len(split) else "unseen" if entry["unseen"] else "seen",
                f"{100 * entry['area']:.1f}",
                f"{entry['score']:.2f}",
            ]
            for entry in segmentation.classes()
        ]
        overlay = figure_pixels(label_figure(found.image, segmentation.labels, shown, colors))
        if proposals is None:
            return overlay, rows, "The photo was seen in several windows or sizes: there are no proposals to show.", [], None
        summary, picture = self._corrections(found.image, split, proposals, gamma)
        return overlay, rows, summary, self._heaviest(found.image, split, proposals), picture

    def _corrections(
        self, image: ImageArray, split: ClassSplit, proposals: Proposals, gamma: float
    ) -> tuple[str, ImageArray | None]:
        """A sentence on what PBC changed, and a picture of it if there is something to show."""
        if self.gamma is None:
            return "This model has no class indicator: nothing is corrected.", None
        if not split.unseen:
            return "The vocabulary has no unseen class: there is no bias to correct.", None
        changed = changed_proposals(proposals, background_in_softmax=self.model.background_in_softmax)
        above = proposals["class_indicator"] > gamma
        summary = (
            f"Of {len(above)} proposals, {int(above.sum())} have a class indicator *I* above γ = {gamma:g}. "
            f"The correction gave {len(changed)} another class."
        )
        rows = [Correction(image, proposal) for proposal in changed[:NUM_CORRECTIONS] if proposal.weight >= MIN_WEIGHT]
        return summary, figure_pixels(corrections_figure(rows, split, gamma=gamma)) if rows else None

    def _heaviest(self, image: ImageArray, split: ClassSplit, proposals: Proposals) -> Captioned:
        """Those that claim most of the image, with their class before and after the correction, and their I."""
        before, after = (
            class_probabilities(proposals[key], background_in_softmax=self.model.background_in_softmax)
            for key in ("class_logits", "corrected_logits")
        )
        masks, indicator = proposals["mask_logits"], proposals["class_indicator"]
        weights = masks.sigmoid().mean(dim=(1, 2)) * before.sum(dim=1)  # as in ChangedProposal
        small = _thumbnail(image)
        pictures = []
        for q in weights.argsort(descending=True, stable=True)[:NUM_PROPOSALS].tolist():
            names = [class_text(split, int(probabilities[q].argmax())) for probabilities in (before, after)]
            caption = " → ".join(dict.fromkeys(names))
            if indicator is not None:
                caption += f"\nI = {indicator[q]:.2f}"
            mask = F.interpolate(masks[None, None, q], size=small.shape[:2], mode="bilinear", align_corners=False)[0, 0]
            outside = np.where(mask.numpy() > 0, -1, 0)  # a label map of one class, which is white
            pictures.append((blend_labels(small, outside, [(255, 255, 255)], alpha=0.8), caption))
        return pictures


def with_gamma(model: AlignZeg, found: Found, gamma: float) -> Segmentation:
    """What the model would have predicted with another threshold, from its proposals (on the CPU) alone.

    As :func:`alignzeg_d2.gamma_sweep.correct_and_segment` says, the outermost pixels may differ from the model's own output
    by less than a cell of the masks' grid. What was seen in windows is returned as it is.
    """
    segmentation, proposals = found.segmentation, found.segmentation.proposals
    if proposals is None:
        return segmentation
    corrected, found_labels = correct_and_segment(
        proposals,
        model.seen_mask(segmentation.vocabulary),
        None if proposals["class_indicator"] is None else gamma,
        (found.image.shape[0], found.image.shape[1]),
        background_in_softmax=model.background_in_softmax,
        chunk_pixels=model.chunk_pixels,
    )
    corrected_proposals = {**proposals, "corrected_logits": corrected}
    labels, confidence = found_labels.labels.numpy(), found_labels.confidence.numpy()
    return replace(segmentation, labels=labels, confidence=confidence, proposals=corrected_proposals)


def _thumbnail(image: ImageArray) -> ImageArray:
    """With a longer side of :data:`THUMBNAIL`; small images keep their pixels sharp."""
    method = Image.Resampling.NEAREST if max(image.shape) < THUMBNAIL else Image.Resampling.LANCZOS
    return np.asarray(ImageOps.contain(Image.fromarray(image), (THUMBNAIL, THUMBNAIL), method))


class SegmentationTab:
    """See :class:`zeroshot_d2.web.WebTab`."""

    def __init__(self, cfg: CfgNode, limits: Limits) -> None:
        self.segmenter = Segmenter(cfg, limits)

    def build(self, folder: Path) -> None:
        segmentation_tab(self.segmenter, example_photos(folder))


def segmentation_tab(segmenter: Segmenter, examples: list[Path]) -> None:
    """Components and events; to be called inside a gr.Blocks."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            photo = photo_input(examples)
            names = gr.Textbox(
                segmenter.default_names,
                label="Vocabulary",
                info='Classes, separated by commas; synonyms of one class by "|", as in: cat, tree|bush|shrub',
                lines=3,
                max_lines=6,
                elem_id="vocabulary",
            )
            unseen = gr.Textbox(
                label="Also unseen",
                info="Classes that the model was not trained on are unseen in any case. Name others that count as unseen.",
                elem_id="unseen",
            )
            gamma = gr.Slider(
                0,
                1,
                OFF if segmenter.gamma is None else segmenter.gamma,
                step=0.01,
                label="γ, the threshold of Predictive Bias Correction",
                info="A proposal whose class indicator I exceeds it takes no seen class. 1 switches the correction off.",
                visible=segmenter.gamma is not None,
                elem_id="gamma",
            )
            least = gr.Slider(
                0,
                1,
                0,
                step=0.01,
                label="Least confidence",
                info='Pixels of less confidence are of none of the classes: they become "other".',
                elem_id="least-confidence",
            )
            run = gr.Button("Segment", variant="primary", elem_id="segment")
        with gr.Column(scale=3, min_width=320):
            gr.Markdown("### Segmentation (★ unseen)")
            overlay = picture_output("overlay", buttons=["download", "fullscreen"])
            classes = gr.HTML(table(HEADERS, []), elem_id="classes", padding=False)
            gr.Markdown("### Proposals with most influence")
            summary = gr.Markdown(elem_id="summary")
            proposals = gr.HTML(elem_id="proposals", padding=False)
            corrections = picture_output("corrections", visible=False)
    results = [overlay, classes, summary, proposals, corrections]

    def show(found: Found, gamma: float, least: float) -> list[Any]:
        overlay, rows, summary, heaviest, picture = segmenter.show(found, gamma, least)
        shown = [overlay, table(HEADERS, rows), summary, captioned(heaviest)]
        return [*shown, gr.Image(picture, visible=picture is not None)]

    def on_run(visitor: Visitor, photo: str | None, names: str, unseen: str, gamma: float, least: float) -> list[Any]:
        found = segmenter.find(photo, names, unseen)
        shown = show(found, gamma, least)
        if found.segmentation.proposals is not None:
            visitor.keep(found.kept())
        return shown

    def on_threshold(visitor: Visitor, gamma: float, least: float) -> list[Any]:
        if visitor.kept is None:
            raise ValueError(f"There is no result, they stay for {segmenter.limits.kept_seconds} seconds: press Segment.")
        return show(visitor.kept, gamma, least)

    run.click(answering(on_run, segmenter.limits), [photo, names, unseen, gamma, least], results, **EVENT)
    # While a slider moves only the last place counts.
    for slider in (gamma, least):
        on_change = answering(on_threshold, segmenter.limits)
        slider.change(on_change, [gamma, least], results, trigger_mode="always_last", **EVENT)
