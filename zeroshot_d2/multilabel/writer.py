"""Tags on the screen and as files: JSON for each photo, one CSV for all, and pictures.

For an image photo.jpg: photo.json (the best labels and their scores) and, with ``--pictures``, photo_tags.png; for a video
clip.mp4: clip.json. tags.csv has a row per label of every photo.
"""

from __future__ import annotations

import argparse
import csv
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..cli import positive
from ..images import ImageArray
from ..pictures.style import save_figure, starred
from ..predictor import Predictor
from ..storage import whole_file, write_json
from .pictures import LabelledImage, top_labels_figure
from .predictor import Tags

CSV_FILE = "tags.csv"
COLUMNS = ("image", "rank", "index", "name", "unseen", "score")


class TagWriter:
    """See :class:`zeroshot_d2.commands.predict.Writer`."""

    needs_output = False

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """How many labels, and pictures."""
        parser.add_argument("--top-k", type=positive, help="labels per image; default: 10, or all of a smaller vocabulary")
        parser.add_argument("--threshold", type=float, help="only labels of at least this score")
        parser.add_argument("--pictures", action="store_true", help="also draw the labels under each photo")

    def __init__(self, predictor: Predictor, args: argparse.Namespace) -> None:
        """``args.output`` is the folder; None: to the screen alone.

        Raises:
            ValueError: ``--top-k`` is larger than the vocabulary, or pictures go nowhere.
        """
        self.folder: Path | None = args.output
        self.threshold: float | None = args.threshold
        self.pictures: bool = args.pictures
        self.num_classes = len(predictor.vocabulary)
        self.top_k: int = min(10, self.num_classes) if args.top_k is None else args.top_k
        if self.top_k > self.num_classes:
            raise ValueError(f"--top-k {self.top_k} is larger than the vocabulary of {self.num_classes} classes: lower it")
        if self.pictures and self.folder is None:
            raise ValueError("--pictures needs --output FOLDER")
        self._open = ExitStack()
        self._rows: Any = None

    def photo(self, path: Path, name: str, bgr: ImageArray, result: Tags) -> None:
        classes = result.classes(self.top_k, self.threshold)
        print(path)
        for entry in classes:
            print(f"  {entry['score']:8.3f}  {starred(entry['name'], entry['unseen'])}")
        if self.folder is None:
            return
        write_json(self.folder / f"{name}.json", {"image": str(path), "classes": classes})
        for rank, entry in enumerate(classes, start=1):
            self._rows.writerow(
                [str(path), rank, entry["index"], entry["name"], int(entry["unseen"]), f"{entry['score']:.6g}"]
            )
        if self.pictures:
            example = LabelledImage(bgr[:, :, ::-1], result.scores, title=path.name)
            figure = top_labels_figure([example], result.vocabulary, top_k=self.top_k, threshold=self.threshold)
            save_figure(figure, self.folder / f"{name}_tags.png")

    def video(self, path: Path, name: str, rate: float) -> TaggedVideo:
        return TaggedVideo(self, path, name, rate)

    def __enter__(self) -> TagWriter:
        if self.folder is not None:
            temporary = self._open.enter_context(whole_file(self.folder / CSV_FILE))
            file = self._open.enter_context(temporary.open("w", newline="", encoding="utf-8"))
            self._rows = csv.writer(file)
            self._rows.writerow(COLUMNS)
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)


class TaggedVideo:
    """The file of one video."""

    def __init__(self, writer: TagWriter, path: Path, name: str, rate: float) -> None:
        self.writer, self.path, self.name, self.rate = writer, path, name, rate
        self._frames: list[dict[str, Any]] = []

    def frame(self, bgr: ImageArray, result: Tags) -> None:
        number = len(self._frames)
        classes = result.classes(self.writer.top_k, self.writer.threshold)
        self._frames.append({"frame": number, "seconds": number / self.rate, "classes": classes})

    def __enter__(self) -> TaggedVideo:
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None and self.writer.folder is not None:
            content = {"video": str(self.path), "frames_per_second": self.rate, "frames": self._frames}
            write_json(self.writer.folder / f"{self.name}.json", content)
