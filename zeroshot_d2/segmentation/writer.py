"""Segmentations as files: overlays, label images and JSON.

For an image photo.jpg: photo_overlay.png, photo_labels.png (vocabulary indices, 8 bits per pixel, or 16 for more than 256
classes) and photo.json (classes present, their area and score); for a video clip.mp4: clip_overlay.mp4, clip_labels/ and
clip.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cli import positive
from ..images import ImageArray, write_image
from ..pictures.style import figure_pixels, save_figure
from ..pictures.texts import PlainTextFigure
from ..predictor import Predictor
from ..storage import write_json
from ..video import VideoWriter
from .pictures import LARGEST_SIDE, SMALLEST_WIDTH, Colors, check_width, draw_labels, label_figure
from .predictor import Segmentation

_SMALLEST_FRAME = 480  # pixels; frames with a shorter side are enlarged, so that names can be read
_FRAME_DPI = 100


class SegmentationWriter:
    """See :class:`zeroshot_d2.commands.predict.Writer`."""

    needs_output = True

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """How large the overlays are."""
        parser.add_argument(
            "--overlay-width",
            type=positive,
            metavar="PIXELS",
            help=f"of the overlays of photos, {SMALLEST_WIDTH} to {LARGEST_SIDE}; default: the photo's, within 800 and 1600",
        )

    def __init__(self, predictor: Predictor, args: argparse.Namespace) -> None:
        """``args.output`` is the folder.

        Raises:
            ValueError: ``--overlay-width`` is out of its range.
        """
        self.folder: Path = args.output
        self.width: int | None = args.overlay_width
        if self.width is not None:
            check_width(self.width)
        self.colors = predictor.colors

    def photo(self, path: Path, name: str, bgr: ImageArray, result: Segmentation) -> None:
        figure = label_figure(bgr[:, :, ::-1], result.labels, result.vocabulary, self.colors, width=self.width)
        save_figure(figure, self.folder / f"{name}_overlay.png")
        write_labels(self.folder / f"{name}_labels.png", result.labels, len(result.vocabulary))
        height, width = result.labels.shape
        content = {"image": str(path), "width": width, "height": height, "classes": result.classes()}
        write_json(self.folder / f"{name}.json", content)

    def video(self, path: Path, name: str, rate: float) -> SegmentedVideo:
        return SegmentedVideo(self.folder, path, name, rate, self.colors)

    def __enter__(self) -> SegmentationWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: Any) -> None:
        pass


class SegmentedVideo:
    """The files of one video."""

    def __init__(self, folder: Path, path: Path, name: str, rate: float, colors: Colors) -> None:
        self.folder, self.path, self.name, self.rate, self.colors = folder, path, name, rate, colors
        self._overlay = VideoWriter(folder / f"{name}_overlay.mp4", rate)
        self._frames: list[dict[str, Any]] = []

    def frame(self, bgr: ImageArray, result: Segmentation) -> None:
        self._overlay.write(draw_frame(bgr, result, self.colors))
        number = len(self._frames)
        labels = self.folder / f"{self.name}_labels" / f"{number:06d}.png"
        write_labels(labels, result.labels, len(result.vocabulary), sync=False)
        self._frames.append({"frame": number, "seconds": number / self.rate, "classes": result.classes()})

    def __enter__(self) -> SegmentedVideo:
        return self

    def __exit__(self, *error: Any) -> None:
        self._overlay.__exit__(*error)
        if error[0] is None:
            content = {"video": str(self.path), "frames_per_second": self.rate, "frames": self._frames}
            write_json(self.folder / f"{self.name}.json", content)


def write_labels(path: Path, labels: npt.NDArray[np.int64], num_classes: int, *, sync: bool = True) -> None:
    """Vocabulary indices (H, W) as a grey PNG of 8 bits, or of 16 for more than 256 classes."""
    write_image(path, labels.astype(np.uint8 if num_classes <= 256 else np.uint16), sync=sync)


def draw_frame(bgr: ImageArray, found: Segmentation, colors: Colors) -> ImageArray:
    """Colours and class names over a frame, without margins or legend; BGR (H, W, 3) -> BGR, both sides even, as video
    codecs want them."""
    height, width = bgr.shape[:2]
    factor = max(1, min(-(-_SMALLEST_FRAME // min(height, width)), LARGEST_SIDE // max(height, width)))
    height, width = (max(2, 2 * (side * factor // 2)) for side in (height, width))
    figure = PlainTextFigure(figsize=(width / _FRAME_DPI, height / _FRAME_DPI), dpi=_FRAME_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    draw_labels(axes, bgr[:, :, ::-1], found.labels, found.vocabulary, colors, font_size=0.018 * height)
    axes.set_aspect("auto")
    return np.ascontiguousarray(figure_pixels(figure, _FRAME_DPI)[:, :, ::-1])
