"""A web page: upload a photo, type a vocabulary, move gamma, see the segmentation and its proposals.

    python -m alignzeg_d2.web
    python -m alignzeg_d2.web --config-file configs/coco/alignzeg.yaml --weights model_final.pth \
        --epsilon-config-file configs/nus_wide/epsilon.yaml --epsilon-weights epsilon.pth

Without arguments it shows both systems as `make demo` leaves them; Epsilon's labels are the second tab. It listens on this
machine alone unless --host says otherwise.

Shapes: Q proposals, K classes, (h, w) the masks' grid, (H, W) the image. Images are (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from collections.abc import Callable, Sequence
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
from alignzeg_d2.postprocessing import PBC, class_probabilities
from alignzeg_d2.predictor import AlignZegPredictor, Segmentation, config_from_arguments
from alignzeg_d2.visualization import (
    Colors,
    Correction,
    ImageArray,
    blend_labels,
    changed_proposals,
    class_text,
    corrections_figure,
    label_figure,
)
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.web import (
    EVENT,
    KEPT_SECONDS,
    add_server_arguments,
    build_page,
    captioned,
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

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "demo" / "alignzeg.yaml"
WEIGHTS = Path("output/demo/model_final.pth")
EPSILON_WEIGHTS = Path("output/demo/epsilon/model_final.pth")
MAX_CLASSES = 2000  # of a typed vocabulary: time and memory grow with it; the largest in the paper has 847
NUM_PROPOSALS, NUM_CORRECTIONS = 8, 4
MIN_WEIGHT = 0.01  # a changed proposal that claims less of the photo is counted, but not drawn
THUMBNAIL = 320  # pixels

HEADERS = ("class", "in training", "area (%)", "score")
Captioned = list[tuple[ImageArray, str]]
Results = tuple[ImageArray, list[list[str]], str, Captioned, ImageArray | None]
"""Overlay, rows under HEADERS, a sentence, the heaviest proposals, and a picture of what PBC changed, if it did."""


@dataclass(frozen=True, eq=False)
class Found:
    """What the network found in a photo; another gamma needs nothing more.

    Args:
        image: the photo.
        segmentation: with its proposals, on the CPU.
        colors: (K) RGB.
    """

    image: ImageArray
    segmentation: Segmentation
    colors: Colors


class Segmenter:
    """AlignZeg behind the page. Safe to call from several threads: nothing of one visitor's reaches another's."""

    def __init__(self, cfg: CfgNode, max_pixels: int) -> None:
        self._predictor = AlignZegPredictor(cfg)
        self._lock = threading.Lock()  # a vocabulary is set and used in one go
        self._max_pixels = max_pixels
        self.default_names = ", ".join(self._predictor.vocabulary.prompts)
        # The threshold in effect; None for a model without a class indicator.
        uses_pbc = isinstance(self.model.postprocessor, PBC)
        has_indicator = self.model.class_indicator is not None
        self.gamma: float | None = (self.model.postprocessor.gamma if uses_pbc else OFF) if has_indicator else None

    @property
    def model(self) -> AlignZeg:
        return self._predictor.model

    def find(self, photo: str | None, names: str, unseen: str) -> Found:
        """Run the network.

        Args:
            photo: path of the file.
            names: the vocabulary, as typed.
            unseen: names that count as unseen although training knew them, as typed.

        Raises:
            ValueError: the photo cannot be used, or the vocabulary is faulty.
        """
        image = read_upload(photo, self._max_pixels)
        vocabulary = names_of(names)
        if len(vocabulary) > MAX_CLASSES:
            raise ValueError(f"The vocabulary has {len(vocabulary)} classes, this page takes {MAX_CLASSES}: shorten it.")
        with self._lock:
            # The config's own vocabulary has more than its text shows: colours, and names of its own for display.
            self._predictor.set_vocabulary(None if names == self.default_names else vocabulary, names_of(unseen))
            found = self._predictor(np.ascontiguousarray(image[:, :, ::-1]), proposals=True)
            colors = self._predictor.colors
        assert found.proposals is not None
        on_cpu = {key: None if value is None else value.cpu() for key, value in found.proposals.items()}
        return Found(image, replace(found, proposals=on_cpu), colors)

    def show(self, found: Found, gamma: float) -> Results:
        """Everything that the page shows of a photo, with this threshold."""
        segmentation = with_gamma(self.model, found.segmentation, gamma)
        split, proposals = segmentation.vocabulary, segmentation.proposals
        assert proposals is not None
        rows = [
            [
                class_text(split, entry["index"]),
                "unseen" if entry["unseen"] else "seen",
                f"{100 * entry['area']:.1f}",
                f"{entry['score']:.2f}",
            ]
            for entry in segmentation.classes()
        ]
        overlay = figure_pixels(label_figure(found.image, segmentation.labels, split, found.colors))
        summary, picture = self._corrections(found.image, split, proposals, gamma)
        return overlay, rows, summary, self._heaviest(found.image, split, proposals), picture

    def _corrections(
        self, image: ImageArray, split: ClassSplit, proposals: Proposals, gamma: float
    ) -> tuple[str, ImageArray | None]:
        """A sentence on what PBC changed, and a picture of it if there is something to show."""
        if self.gamma is None:
            return "This model was trained without a class indicator: nothing is corrected.", None
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


def with_gamma(model: AlignZeg, found: Segmentation, gamma: float) -> Segmentation:
    """What the model would have predicted with another threshold, from its proposals (on the CPU) alone.

    As :func:`alignzeg_d2.gamma_sweep.correct_and_segment` says, the outermost pixels may differ from the model's own output
    by less than a cell of the masks' grid. Of a model without a class indicator it is ``found`` as it is.
    """
    proposals = found.proposals
    assert proposals is not None
    if proposals["class_indicator"] is None:
        return found
    corrected, labels, best = correct_and_segment(
        proposals,
        model.seen_mask(found.vocabulary),
        gamma,
        (found.labels.shape[0], found.labels.shape[1]),
        background_in_softmax=model.background_in_softmax,
        chunk_pixels=model.chunk_pixels,
    )
    return replace(found, labels=labels.numpy(), best=best.numpy(), proposals={**proposals, "corrected_logits": corrected})


def _thumbnail(image: ImageArray) -> ImageArray:
    """With a longer side of :data:`THUMBNAIL`; small images keep their pixels sharp."""
    method = Image.Resampling.NEAREST if max(image.shape) < THUMBNAIL else Image.Resampling.LANCZOS
    return np.asarray(ImageOps.contain(Image.fromarray(image), (THUMBNAIL, THUMBNAIL), method))


# -------------------------------------------------------------------------------------------------------- the page


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
                info="Classes that training did not know are unseen in any case. Name others that shall count as unseen.",
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
    found = gr.State(time_to_live=KEPT_SECONDS)

    def show(found: Found, gamma: float) -> list[Any]:
        overlay, rows, summary, heaviest, picture = segmenter.show(found, gamma)
        shown = [overlay, table(HEADERS, rows), summary, captioned(heaviest)]
        return [*shown, gr.Image(picture, visible=picture is not None)]

    @explained
    def on_run(photo: str | None, names: str, unseen: str, gamma: float) -> list[Any]:
        found = segmenter.find(photo, names, unseen)
        return [found, *show(found, gamma)]

    def on_gamma(found: Found | None, gamma: float) -> Any:
        return show(found, gamma) if found is not None else gr.skip()

    run.click(on_run, [photo, names, unseen, gamma], [found, *results], **EVENT)
    # While the slider moves only the last place counts.
    gamma.change(on_gamma, [found, gamma], results, trigger_mode="always_last", **EVENT)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page with command-line arguments ``argv`` until Ctrl+C.

    Raises:
        FileNotFoundError: a config or a checkpoint does not exist.
        ValueError: weights do not fit their config, or only one of the options that go together is given.
    """
    parser = argparse.ArgumentParser(
        prog="python -m alignzeg_d2.web", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", help="of AlignZeg; default: configs/demo/alignzeg.yaml")
    parser.add_argument("--weights", help=f"of AlignZeg; default, with the demo's config: {WEIGHTS}")
    parser.add_argument("--epsilon-config-file", help="of Epsilon; default: configs/demo/epsilon.yaml")
    parser.add_argument("--epsilon-weights", help=f"of Epsilon; default, if no other file is named: {EPSILON_WEIGHTS}")
    add_server_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override AlignZeg's config")
    args = parser.parse_args(argv)
    epsilon_weights = _epsilon_weights(args)
    segmenter = Segmenter(_config(args), args.max_pixels)
    with tempfile.TemporaryDirectory() as folder:
        examples = example_photos(Path(folder))
        tabs: dict[str, Callable[[], None]] = {"Segmentation (AlignZeg)": lambda: segmentation_tab(segmenter, examples)}
        if epsilon_weights is not None:
            # The one place where a system shows the other: the page is for both. Imported only when it is asked for.
            from epsilon_d2.web import load_labeller, tags_tab

            labeller = load_labeller(args.epsilon_config_file, epsilon_weights, args.max_pixels)
            tabs["Tags (Epsilon)"] = lambda: tags_tab(labeller, examples)
        serve(build_page("Zero-shot recognition", tabs), args)


def _config(args: argparse.Namespace) -> CfgNode:
    """AlignZeg's; the demo's where the arguments name no file."""
    if args.weights is None:
        if args.config_file is not None:
            raise ValueError(f"--config-file {args.config_file} needs its --weights")
        if not WEIGHTS.is_file():
            raise FileNotFoundError(
                f"{WEIGHTS} does not exist (looked for it from {Path.cwd()}): run `make demo`, or name --config-file and "
                "--weights"
            )
    named = {"config_file": args.config_file or str(CONFIG), "weights": args.weights or str(WEIGHTS)}
    return config_from_arguments(argparse.Namespace(**{**vars(args), **named}))


def _epsilon_weights(args: argparse.Namespace) -> str | None:
    """None for a page without Epsilon."""
    if args.epsilon_config_file is not None and args.epsilon_weights is None:
        raise ValueError(f"--epsilon-config-file {args.epsilon_config_file} needs its --epsilon-weights")
    if args.epsilon_weights is not None or args.weights is not None:
        return args.epsilon_weights
    if EPSILON_WEIGHTS.is_file():
        return str(EPSILON_WEIGHTS)
    print(f"no tab for Epsilon: {EPSILON_WEIGHTS} does not exist, `python -m epsilon_d2.demo` trains it")
    return None


if __name__ == "__main__":
    main()
