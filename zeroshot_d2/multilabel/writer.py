"""Tags on the screen and as files: JSON for each photo, files of all photos, and pictures.

For an image photo.jpg: photo.json (the best labels and their scores) and, with ``--pictures``, photo_tags.png; for a video
clip.mp4: clip.json. Of all photos, by ``--format``:

    csv            tags.csv, a row per label of every photo
    json           tags.json, a list of what the photos' JSON files hold
    label-studio   label_studio/: pre-annotations, see :mod:`zeroshot_d2.label_studio`
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..cli import positive
from ..images import ImageArray
from ..json_stream import write_json_array
from ..label_studio import IMAGE, add_prefix_argument, interface, task, write_project
from ..pictures.style import save_figure, starred
from ..predictor import Predictor
from ..results import RUN_KEY, Source, finished, write_record
from ..storage import whole_file
from ..thresholds import thresholds
from .pictures import LabelledImage, top_labels_figure
from .predictor import Tags

FORMATS = CSV, JSON, LABEL_STUDIO = ("csv", "json", "label-studio")
CSV_FILE = "tags.csv"
JSON_FILE = "tags.json"
COLUMNS = ("image", "rank", "index", "name", "unseen", "score")
CONTROL = "tags"  # of Label Studio's interface

Content = dict[str, Any]
"""Of a photo's JSON file."""


class TagWriter:
    """See :class:`zeroshot_d2.commands.predict.Writer`."""

    needs_output = False
    reserved = (Path(CSV_FILE).stem, Path(JSON_FILE).stem)

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """How many labels, what to write of all photos, and pictures."""
        parser.add_argument("--top-k", type=positive, help="labels per image; default: 10, or all of a smaller vocabulary")
        parser.add_argument(
            "--threshold",
            type=thresholds,
            help="only labels of at least this score; or a thresholds.json that `calibrate` wrote, with one for each class",
        )
        parser.add_argument(
            "--format", nargs="+", choices=FORMATS, default=[CSV], help=f"files of all photos, in --output; default: {CSV}"
        )
        add_prefix_argument(parser)
        parser.add_argument("--pictures", action="store_true", help="also draw the labels under each photo")

    def __init__(self, predictor: Predictor, args: argparse.Namespace, sources: Sequence[Source], run: str) -> None:
        """``args.output`` is the folder; None: to the screen alone.

        Raises:
            ValueError: ``--top-k`` is larger than the vocabulary, pictures go nowhere, or an option is for a format that is
                not written.
        """
        self.folder: Path | None = args.output
        self.pictures: bool = args.pictures
        self.num_classes = len(predictor.vocabulary)
        self.top_k: int = min(10, self.num_classes) if args.top_k is None else args.top_k
        if self.top_k > self.num_classes:
            raise ValueError(f"--top-k {self.top_k} is larger than the vocabulary of {self.num_classes} classes: lower it")
        if self.pictures and self.folder is None:
            raise ValueError("--pictures needs --output FOLDER")
        if args.image_prefix is not None and LABEL_STUDIO not in args.format:
            raise ValueError(f"--image-prefix is for --format {LABEL_STUDIO}: add it, or leave the option out")
        self.args, self.sources, self.run = args, sources, run
        self._predictor = predictor
        self.vocabulary = predictor.vocabulary
        self.threshold = None if args.threshold is None else args.threshold.for_vocabulary(self.vocabulary)

    def own(self, source: Source) -> None:
        """None: photos of tags fit into memory."""

    def finished(self, source: Source, *, is_video: bool) -> bool:
        """Whether the results of an input are there already, from the same settings."""
        return self._content(source, pictures=self.pictures and not is_video) is not None

    def _content(self, source: Source, *, pictures: bool = False) -> Content | None:
        if self.folder is None:
            return None
        files = [self.folder / f"{source.name}_tags.png"] if pictures else []
        return finished(self.folder / f"{source.name}.json", source, self.run, files)

    def photo(self, source: Source, bgr: ImageArray, result: Tags) -> None:
        """Print the results of a photo, and write its files."""
        classes = result.classes(self.top_k, self.threshold)
        lines = [f"  {entry['score']:8.3f}  {starred(entry['name'], entry['unseen'])}" for entry in classes]
        print("\n".join([str(source.path), *lines]))
        if self.folder is None:
            return
        if self.pictures:
            example = LabelledImage(bgr[:, :, ::-1], result.scores, title=source.path.name)
            figure = top_labels_figure([example], result.vocabulary, top_k=self.top_k, threshold=self.threshold)
            save_figure(figure, self.folder / f"{source.name}_tags.png")
        content = {"image": str(source.path), "classes": classes}
        write_record(self.folder / f"{source.name}.json", content, self.run)

    def video(self, source: Source, rate: float) -> TaggedVideo:
        """Where the frames of a video go."""
        return TaggedVideo(self, source, rate)

    def collect(self) -> None:
        """Write the files that are about all photos, of those whose results are whole."""
        if self.folder is None:
            return
        if CSV in self.args.format:
            with whole_file(self.folder / CSV_FILE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                rows = csv.writer(file)
                rows.writerow(COLUMNS)
                for _, content in self._photos():
                    rows.writerows(_rows(content))
        if JSON in self.args.format:
            contents = ({k: v for k, v in content.items() if k != RUN_KEY} for _, content in self._photos())
            write_json_array(self.folder / JSON_FILE, contents)
        if LABEL_STUDIO in self.args.format:
            names = self._predictor.vocabulary.names
            xml = interface("Choices", "Choice", CONTROL, ' choice="multiple"', names, self._predictor.colors)
            tasks = (self._task(source, content) for source, content in self._photos())
            write_project(self.folder / "label_studio", xml, tasks)

    def _photos(self) -> Iterator[tuple[Source, Content]]:
        for source in self.sources:
            content = self._content(source)
            if content is not None and "image" in content:
                yield source, content

    def _task(self, source: Source, content: Content) -> dict[str, Any]:
        classes = content["classes"]
        best = max((entry["score"] for entry in classes if entry["score"] is not None), default=0.0)
        value = {"choices": [entry["name"] for entry in classes]}
        region = {"id": CONTROL, "type": "choices", "from_name": CONTROL, "to_name": IMAGE, "score": best, "value": value}
        model = self._predictor.cfg.MODEL.META_ARCHITECTURE
        return task(source.file_name, self.args.image_prefix, model, best, [region] if classes else [])

    def __enter__(self) -> TagWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


def _rows(content: Content) -> Iterator[list[Any]]:
    for rank, entry in enumerate(content["classes"], start=1):
        score = "nan" if entry["score"] is None else f"{entry['score']:.6g}"
        yield [content["image"], rank, entry["index"], entry["name"], int(entry["unseen"]), score]


class TaggedVideo:
    """The file of one video."""

    def __init__(self, writer: TagWriter, source: Source, rate: float) -> None:
        self.writer, self.source, self.rate = writer, source, rate
        self._frames: list[dict[str, Any]] = []

    def frame(self, bgr: ImageArray, result: Tags) -> None:
        number = len(self._frames)
        classes = result.classes(self.writer.top_k, self.writer.threshold)
        self._frames.append({"frame": number, "seconds": number / self.rate, "classes": classes})

    def __enter__(self) -> TaggedVideo:
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None and self.writer.folder is not None:
            content = {"video": str(self.source.path), "frames_per_second": self.rate, "frames": self._frames}
            write_record(self.writer.folder / f"{self.source.name}.json", content, self.writer.run)
