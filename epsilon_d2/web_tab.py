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
from zeroshot_d2.vocabulary import parse_names
from zeroshot_d2.web import EVENT, example_photos, explained, photo_input, picture_output, read_upload, table

ATTENTION = {"group_attention": "groups of GPA", "global_attention": "feature blocks of GFP"}
HEADERS = ("label", "in training", "score")

Tags = tuple[list[list[str]], list[ImageArray | None]]
"""Rows under HEADERS, and a picture, if there is one, for each of :data:`ATTENTION`."""


class Labeller:
    """Epsilon behind the page. Safe to call from several threads: the labels go with each call."""

    def __init__(self, cfg: CfgNode, max_pixels: int) -> None:
        self._predictor = EpsilonPredictor(cfg)
        self._max_pixels = max_pixels
        self.default_labels = ", ".join(self._predictor.vocabulary.prompts)
        self.num_labels = len(self._predictor.vocabulary)

    def tag(self, photo: str | None, labels: str, top_k: int, threshold: str = "") -> Tags:
        """
        Args:
            photo: path of the file.
            labels: as typed.
            top_k: how many at most.
            threshold: the least score, as typed; empty for none.

        Raises:
            ValueError: the photo cannot be used, or what was typed is faulty.
        """
        image = read_upload(photo, self._max_pixels)
        least = _number(threshold)
        vocabulary = None if labels == self.default_labels else parse_names(labels)
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


def _number(text: str) -> float | None:
    """None for an empty text."""
    try:
        return float(text) if text.strip() else None
    except ValueError:
        raise ValueError(f"The least score must be a number, got {text!r}.") from None


class TagsTab:
    """See :class:`zeroshot_d2.web.WebTab`."""

    def __init__(self, cfg: CfgNode, max_pixels: int) -> None:
        self.labeller = Labeller(cfg, max_pixels)

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

    @explained
    def on_run(photo: str | None, labels: str, top_k: int, threshold: str) -> list[Any]:
        rows, drawn = labeller.tag(photo, labels, top_k, threshold)
        return [table(HEADERS, rows), *(gr.Image(picture, visible=picture is not None) for picture in drawn)]

    run.click(on_run, [photo, labels, top_k, threshold], [tags, *pictures], **EVENT)
