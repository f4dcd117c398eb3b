"""Segmentations as files: overlays, label images and JSON, and what annotation tools read.

``--format labels`` writes for an image photo.jpg: photo_overlay.png, photo_labels.png (vocabulary indices, 8 bits per pixel,
or 16 for more than 256 classes) and photo.json (classes present, their area and score); for a video clip.mp4:
clip_overlay.mp4, clip_labels/ and clip.json. With ``--stream`` a TIFF is read in parts, and its labels are scene_labels.tif.
The other formats (:mod:`zeroshot_d2.segmentation.formats`) have a folder each,
and take the frames of a video, which are written to clip_frames/, as images.

With ``--threshold`` pixels that the model is not sure enough of get a further class, the last one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cli import positive
from ..images import ImageArray, write_image
from ..pictures.style import figure_pixels, save_figure
from ..pictures.texts import PlainTextFigure
from ..predictor import Predictor
from ..results import Source, finished, write_record
from ..thresholds import thresholds
from ..video import VideoWriter
from .formats import FORMATS
from .formats.base import Entry, Format, Settings, stem_of
from .pictures import LARGEST_SIDE, SMALLEST_WIDTH, Colors, check_width, draw_labels, label_figure
from .predictor import OTHER, Segmentation, with_other
from .streamed import SUFFIXES, need_rasterio, segment_file

LABELS = "labels"
"""The format for people and for evaluation, which has no folder of its own."""

RECORDS = "records"
"""The folder of what each input adds to a format's files of all images."""

OTHER_COLOR = (128, 128, 128)
LONGEST_OVERLAY = 1600  # pixels of the picture of a streamed file

_SMALLEST_FRAME = 480  # pixels; frames with a shorter side are enlarged, so that names can be read
_FRAME_DPI = 100


class SegmentationWriter:
    """See :class:`zeroshot_d2.commands.predict.Writer`."""

    needs_output = True
    reserved = ()

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Which formats, their options, and how large the overlays are."""
        parser.add_argument(
            "--format",
            nargs="+",
            choices=(LABELS, *FORMATS),
            default=[LABELS],
            help=f"what to write; default: {LABELS}, which is overlays, label images and JSON",
        )
        for format_class in FORMATS.values():
            format_class.add_arguments(parser)
        parser.add_argument(
            "--overlay-width",
            type=positive,
            metavar="PIXELS",
            help=f"of the overlays of photos, {SMALLEST_WIDTH} to {LARGEST_SIDE}; default: the photo's, within 800 and 1600",
        )
        parser.add_argument(
            "--threshold",
            type=thresholds,
            metavar="CONFIDENCE",
            help=f"0 to 1, or a thresholds.json that `calibrate` wrote: pixels of less confidence get the class '{OTHER}'; "
            "default: all pixels are labelled",
        )
        parser.add_argument("--other", metavar="NAME", help=f"what that class is called; default: {OTHER}")
        parser.add_argument(
            "--stream",
            action="store_true",
            help="read TIFF files in parts, which need not fit into memory, and write their labels as TIFF with the same "
            "georeference; needs rasterio",
        )

    def __init__(self, predictor: Predictor, args: argparse.Namespace, sources: Sequence[Source], run: str) -> None:
        """``args.output`` is the folder.

        Raises:
            ValueError: ``--overlay-width`` or ``--threshold`` is out of its range, an option is for a format that is not
                written or needs another option, or a format cannot hold the vocabulary or the inputs.
        """
        self.folder: Path = args.output
        self.width: int | None = args.overlay_width
        if self.width is not None:
            check_width(self.width)
        _check_options(args)
        self.sources, self.run, self.colors = sources, run, list(predictor.colors)
        self.vocabulary = predictor.vocabulary
        self.threshold: float | None = None if args.threshold is None else args.threshold.threshold
        if args.threshold is not None and args.threshold.of_class:
            raise ValueError("--threshold: a segmentation has one for all classes, and this file has one for each")
        self.other: str = OTHER if args.other is None else args.other
        if self.threshold is not None:
            self.vocabulary = with_other(predictor.vocabulary, self.threshold, self.other)
            self.colors.append(OTHER_COLOR)
        self.stream: bool = args.stream
        if self.stream:
            need_rasterio()
        self.labels = LABELS in args.format
        self.formats: dict[str, Format] = {
            name: FORMATS[name](
                Settings(
                    self.folder / name.replace("-", "_"),
                    self.vocabulary,
                    self.colors,
                    predictor.cfg.MODEL.META_ARCHITECTURE,
                    args,
                )
            )
            for name in dict.fromkeys(args.format)
            if name != LABELS
        }
        for name, form in self.formats.items():
            _check_stems(name, form, sources)

    def finished(self, source: Source, *, is_video: bool) -> bool:
        """Whether the results of an input are there already, from the same settings."""
        if self.labels:
            names = ("_overlay.mp4", "_labels") if is_video else ("_overlay.png", self._labels_of(source))
            files = [self.folder / f"{source.name}{name}" for name in names]
            if finished(self.folder / f"{source.name}.json", source, self.run, files) is None:
                return False
        return all(self._entries_of(name, source) is not None for name in self.formats)

    def _labels_of(self, source: Source) -> str:
        return "_labels.png" if self.own(source) is None else "_labels.tif"

    def own(self, source: Source) -> Callable[[Predictor], None] | None:
        """With ``--stream``, what segments a TIFF file part by part."""
        return partial(self._streamed, source) if self.stream and source.path.suffix.lower() in SUFFIXES else None

    def _streamed(self, source: Source, predictor: Predictor) -> None:
        """Read, segment and write a TIFF file part by part."""
        labels = self.folder / f"{source.name}{self._labels_of(source)}"
        found = segment_file(
            predictor,
            source.path,
            labels,
            self.colors,
            threshold=self.threshold,
            other=self.other,
            longest=self.width or LONGEST_OVERLAY,
        )
        figure = label_figure(found.image, found.labels, found.vocabulary, self.colors, width=self.width)
        save_figure(figure, self.folder / f"{source.name}_overlay.png")
        self._write_record(source, found.size, found.classes)

    def _write_record(self, source: Source, size: tuple[int, int], classes: list[dict[str, Any]]) -> None:
        content = {"image": str(source.path), "width": size[1], "height": size[0], "classes": classes}
        write_record(self.folder / f"{source.name}.json", content, self.run)

    def with_other(self, result: Segmentation) -> Segmentation:
        """A result with the class of all other pixels, if there is a threshold."""
        return result if self.threshold is None else result.with_other(self.threshold, self.other)

    def photo(self, source: Source, bgr: ImageArray, result: Segmentation) -> None:
        """Write the results of a photo."""
        result = self.with_other(result)
        for name, form in self.formats.items():
            self._write_entries(name, source, "image", [_entry(form, source.file_name, result)])
        if not self.labels:
            return
        name = source.name
        figure = label_figure(bgr[:, :, ::-1], result.labels, result.vocabulary, self.colors, width=self.width)
        save_figure(figure, self.folder / f"{name}_overlay.png")
        write_labels(self.folder / f"{name}_labels.png", result.labels, len(result.vocabulary))
        height, width = result.labels.shape
        self._write_record(source, (height, width), result.classes())

    def video(self, source: Source, rate: float) -> VideoSinks:
        """Where the frames of a video go."""
        sinks: list[Any] = [FramesAsImages(self, source)] if self.formats else []
        if self.labels:
            sinks.append(SegmentedVideo(self.folder, source, rate, self.colors, self.run))
        return VideoSinks(sinks, self.with_other)

    def collect(self) -> None:
        """Write the files that are about all inputs, of those whose results are whole."""
        for name, form in self.formats.items():
            form.collect(partial(self._all_entries, name))

    def _record(self, name: str, source: Source) -> Path:
        return self.folder / RECORDS / name.replace("-", "_") / f"{source.name}.json"

    def _write_entries(self, name: str, source: Source, kind: str, entries: Sequence[Entry]) -> None:
        write_record(self._record(name, source), {kind: str(source.path), "entries": entries}, self.run)

    def _entries_of(self, name: str, source: Source) -> list[Entry] | None:
        """What a format's files of all images need of an input; None where its results are not whole."""
        content = finished(self._record(name, source), source, self.run)
        if content is None:
            return None
        files = [self.formats[name].path_of(entry["file_name"]) for entry in content["entries"]]
        return content["entries"] if all(file is None or file.exists() for file in files) else None

    def _all_entries(self, name: str) -> Iterator[Entry]:
        for source in self.sources:
            yield from self._entries_of(name, source) or ()

    def __enter__(self) -> SegmentationWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: Any) -> None:
        pass


def _check_options(args: argparse.Namespace) -> None:
    """Raise ValueError where an option has no effect."""
    for name, format_class in FORMATS.items():
        given = [option for option in format_class.options if getattr(args, option) is not None]
        if given and name not in args.format:
            raise ValueError(f"--{given[0].replace('_', '-')} is for --format {name}: add it, or leave the option out")
    if args.overlay_width is not None and LABELS not in args.format:
        raise ValueError(f"--overlay-width is for --format {LABELS}: add it, or leave the option out")
    if args.other is not None and args.threshold is None:
        raise ValueError(f"--other {args.other} names the class of pixels below a --threshold: give one")
    if args.stream and args.format != [LABELS]:
        raise ValueError(f"--stream writes labels as TIFF, and no other format than {LABELS}: leave --format out")


def _check_stems(name: str, form: Format, sources: Sequence[Source]) -> None:
    """Raise ValueError where two inputs would be one in a format that knows images by their paths without ending."""
    if form.file_of_each is None:
        return
    known: dict[str, Source] = {}
    for source in sources:
        other = known.setdefault(stem_of(source.file_name).lower(), source)
        if other is not source:
            raise ValueError(
                f"--format {name} knows images without the ending of their files, and {other.path} and {source.path} differ "
                "in nothing else: rename one"
            )


def _entry(form: Format, file_name: str, result: Segmentation) -> dict[str, Any]:
    height, width = result.labels.shape
    return {"file_name": file_name, "width": width, "height": height, **form.image(file_name, result)}


class VideoSinks:
    """All places where the frames of one video go."""

    def __init__(self, sinks: Sequence[Any], change: Callable[[Segmentation], Segmentation]) -> None:
        """``change`` is applied to every result."""
        self._sinks, self._change = sinks, change
        self._open = ExitStack()

    def frame(self, bgr: ImageArray, result: Segmentation) -> None:
        """Take the next frame."""
        result = self._change(result)
        for sink in self._sinks:
            sink.frame(bgr, result)

    def __enter__(self) -> VideoSinks:
        for sink in self._sinks:
            self._open.enter_context(sink)
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)


class FramesAsImages:
    """The frames of a video as images, for the formats that know no videos."""

    def __init__(self, writer: SegmentationWriter, source: Source) -> None:
        self._writer, self._source = writer, source
        self._entries: dict[str, list[Entry]] = {name: [] for name in writer.formats}
        self._number = 0

    def frame(self, bgr: ImageArray, result: Segmentation) -> None:
        file_name = f"{self._source.name}_frames/{self._number:06d}.png"
        write_image(self._writer.folder / file_name, np.ascontiguousarray(bgr[:, :, ::-1]), sync=False)
        for name, form in self._writer.formats.items():
            self._entries[name].append(_entry(form, file_name, result))
        self._number += 1

    def __enter__(self) -> FramesAsImages:
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            for name, entries in self._entries.items():
                self._writer._write_entries(name, self._source, "video", entries)


class SegmentedVideo:
    """The overlays, label images and JSON of one video."""

    def __init__(self, folder: Path, source: Source, rate: float, colors: Colors, run: str) -> None:
        self.folder, self.source, self.rate, self.colors, self.run = folder, source, rate, colors, run
        self._overlay = VideoWriter(folder / f"{source.name}_overlay.mp4", rate)
        self._frames: list[dict[str, Any]] = []

    def frame(self, bgr: ImageArray, result: Segmentation) -> None:
        self._overlay.write(draw_frame(bgr, result, self.colors))
        number = len(self._frames)
        labels = self.folder / f"{self.source.name}_labels" / f"{number:06d}.png"
        write_labels(labels, result.labels, len(result.vocabulary), sync=False)
        self._frames.append({"frame": number, "seconds": number / self.rate, "classes": result.classes()})

    def __enter__(self) -> SegmentedVideo:
        return self

    def __exit__(self, *error: Any) -> None:
        self._overlay.__exit__(*error)
        if error[0] is None:
            content = {"video": str(self.source.path), "frames_per_second": self.rate, "frames": self._frames}
            write_record(self.folder / f"{self.source.name}.json", content, self.run)


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
