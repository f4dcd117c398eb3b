"""The tab of the web page: upload a photo, type labels, see the best ones and where the groups look.

Shapes: K classes, (H, W) the image. Images are (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from detectron2.config import CfgNode

from epsilon_d2.pictures.attention import attention_figure, spoken_labels
from epsilon_d2.predictor import EpsilonPredictor
from zeroshot_d2.images import ImageArray
from zeroshot_d2.pictures.style import figure_pixels, starred
from zeroshot_d2.web import EVENT, answering, example_photos, photo_input, picture_output, read_upload, table, typed_names
from zeroshot_d2.web_server import Limits, Visitor

ATTENTION = {"group_attention": "groups of GPA", "global_attention": "feature blocks of GFP"}
HEADERS = ("label", "in training", "score")

Tags = tuple[list[list[str]], list[ImageArray | None]]
"""Rows under HEADERS, and a picture, if there is one, for each of :data:`ATTENTION`."""


class Labeller:
    """Epsilon behind the page. Safe to call from several threads: the labels go with each call."""

    def __init__(self, cfg: CfgNode, limits: Limits) -> None:
        self._predictor = EpsilonPredictor(cfg)
        self.limits = limits
        self.default_labels = ", ".join(self._predictor.vocabulary.prompts)
        self.num_labels = len(self._predictor.vocabulary)
        self._predictor(np.zeros((32, 32, 3), np.uint8))  # so that no visitor waits for the labels' vectors

    def tag(self, photo: str | None, labels: str, top_k: int, threshold: str | None = "") -> Tags:
        """
        Args:
            photo: path of the file.
            labels: as typed.
            top_k: how many at most.
            threshold: the least score, as typed; empty for none.

        Raises:
            ValueError: the photo cannot be used, or what was typed is faulty.
        """
        image = read_upload(photo, self.limits)
        least = _number(threshold)
        vocabulary = None if labels == self.default_labels else typed_names(labels, self.limits)
        tags = self._predictor(np.ascontiguousarray(image[:, :, ::-1]), vocabulary=vocabulary, attention=True)
        rows = [
            [starred(entry["name"], entry["unseen"]), "unseen" if entry["unseen"] else "seen", f"{entry['score']:.3f}"]
            for entry in tags.classes(min(top_k, len(tags.scores)), least)
        ]
        spoken, attention = spoken_labels(tags), tags.attention or {}
        pictures = [
            figure_pixels(attention_figure(image, attention[key], title=title, labels=spoken)) if key in attention else None
            for key, title in ATTENTION.items()
        ]
        return rows, pictures


def _number(text: str | None) -> float | None:
    """None for an empty text."""
    try:
        return float(text) if text and text.strip() else None
    except ValueError:
        raise ValueError(f"The least score must be a number, got {text!r}.") from None


class TagsTab:
    """See :class:`zeroshot_d2.web.WebTab`."""

    def __init__(self, cfg: CfgNode, limits: Limits) -> None:
        self.labeller = Labeller(cfg, limits)

    def build(self, folder: Path) -> None:
        tags_tab(self.labeller, example_photos(folder, num_objects=(3, 5)))


def tags_tab(labeller: Labeller, examples: list[Path]) -> None:
    """Components and events; to be called inside a gr.Blocks."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            photo = photo_input(examples)
            labels = gr.Textbox(
                labeller.default_labels,
                label="Labels",
                info='Separated by commas; synonyms of one label by "|", as in: cat, tree|bush|shrub',
                lines=3,
                max_lines=6,
                elem_id="labels",
            )
            top_k = gr.Slider(
                1,
                labeller.num_labels,
                min(10, labeller.num_labels),
                step=1,
                precision=0,
                label="Labels shown, at most",
                elem_id="top-k",
            )
            threshold = gr.Textbox(
                label="Least score",
                info="Empty: no limit. A score ranks labels, it is no probability.",
                elem_id="threshold",
            )
            run = gr.Button("Tag", variant="primary", elem_id="tag")
        with gr.Column(scale=3, min_width=320):
            tags = gr.HTML(table(HEADERS, []), elem_id="tags", padding=False)
            gr.Markdown("### Where the groups look", elem_id="attention")
            pictures = [picture_output(key, buttons=["fullscreen"], visible=False) for key in ATTENTION]

    def on_run(visitor: Visitor, photo: str | None, labels: str, top_k: int, threshold: str) -> list[Any]:
        rows, drawn = labeller.tag(photo, labels, top_k, threshold)
        return [table(HEADERS, rows), *(gr.Image(picture, visible=picture is not None) for picture in drawn)]

    run.click(answering(on_run, labeller.limits), [photo, labels, top_k, threshold], [tags, *pictures], **EVENT)
