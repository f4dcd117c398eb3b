"""A web page: upload a photo, type labels, see the best ones and where the groups look.

    python -m epsilon_d2.web
    python -m epsilon_d2.web --config-file configs/nus_wide/epsilon.yaml --weights model_final.pth

Without arguments it shows the model of `python -m epsilon_d2.demo`. It listens on this machine alone unless --host says
otherwise. `python -m alignzeg_d2.web` shows the same as a second tab.

Shapes: K classes, (H, W) the image. Images are (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from detectron2.config import CfgNode

from epsilon_d2.predict import CONFIG, Predictor, load_config
from epsilon_d2.visualization import ImageArray, attention_figure, best_labels, spoken_labels
from zeroshot_d2.web import (
    EVENT,
    add_server_arguments,
    build_page,
    example_photos,
    explained,
    figure_pixels,
    names_of,
    photo_input,
    picture_output,
    read_upload,
    serve,
    table,
)

ATTENTION = {"group_attention": "groups of GPA", "global_attention": "feature blocks of GFP"}
HEADERS = ("label", "in training", "score")

Tags = tuple[list[list[str]], list[ImageArray | None]]
"""Rows under HEADERS, and a picture, if there is one, for each of :data:`ATTENTION`."""


class Labeller:
    """Epsilon behind the page. Safe to call from several threads: the labels go with each call."""

    def __init__(self, cfg: CfgNode, max_pixels: int) -> None:
        self._predictor = Predictor(cfg)
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
        predictor = copy.copy(self._predictor)  # the same model, labels of its own
        if labels != self.default_labels:
            predictor.set_vocabulary(names_of(labels))
        split = predictor.vocabulary
        found = {key: value.numpy() for key, value in predictor(image).items()}
        scores = found["scores"]
        rows = [
            [f"★ {split.names[k]}", "unseen", f"{scores[k]:.3f}"]
            if split.names[k] in split.unseen
            else [split.names[k], "seen", f"{scores[k]:.3f}"]
            for k in best_labels(scores, min(top_k, len(split)), least)
        ]
        spoken = spoken_labels(found, split)
        pictures = [
            figure_pixels(attention_figure(image, found[key], title=title, labels=spoken)) if key in found else None
            for key, title in ATTENTION.items()
        ]
        return rows, pictures


def _number(text: str) -> float | None:
    """None for an empty text."""
    try:
        return float(text) if text.strip() else None
    except ValueError:
        raise ValueError(f"The least score must be a number, got {text!r}.") from None


def load_labeller(config_file: str | None, weights: str | None, max_pixels: int, opts: Sequence[str] = ()) -> Labeller:
    """The model of a config and a checkpoint; the demo's config, and model_final.pth in the config's OUTPUT_DIR, by default.

    Raises:
        FileNotFoundError: one of the two does not exist.
        ValueError: they do not fit.
    """
    cfg = load_config(config_file or CONFIG, weights or "", opts)
    cfg.MODEL.EPSILON.TEST.RETURN_ATTENTION = True
    return Labeller(cfg, max_pixels)


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


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page with command-line arguments ``argv`` until Ctrl+C.

    Raises:
        FileNotFoundError: the config or the checkpoint does not exist.
        ValueError: they do not fit.
    """
    parser = argparse.ArgumentParser(
        prog="python -m epsilon_d2.web", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", help="default: configs/demo/epsilon.yaml")
    parser.add_argument("--weights", help="default: model_final.pth in the config's OUTPUT_DIR")
    add_server_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the config")
    args = parser.parse_args(argv)
    labeller = load_labeller(args.config_file, args.weights, args.max_pixels, args.opts)
    with tempfile.TemporaryDirectory() as folder:
        examples = example_photos(Path(folder), num_objects=(3, 5))
        page = build_page("Multi-label zero-shot recognition", {"Tags (Epsilon)": lambda: tags_tab(labeller, examples)})
        serve(page, args)


if __name__ == "__main__":
    main()
