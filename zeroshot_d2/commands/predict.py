"""Predict on photos and videos, with any vocabulary.

    python -m zeroshot_d2 predict --model output/demo --input photos/ --output out/
    python -m zeroshot_d2 predict --config-file configs/coco/alignzeg.yaml --weights model_final.pth \
        --input photos/ video.mp4 --vocabulary "cat, traffic light, tree|bush|shrub" --output out/
    python -m zeroshot_d2 predict --model output/demo/epsilon --input photo.jpg --top-k 5

What is written depends on the task; `--help` beside a `--model` or `--config-file` says what it takes. A file that cannot be
read does not stop the others: it is reported at the end, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from ..checkpoint import refuse_address
from ..cli import (
    Parser,
    add_model_arguments,
    add_vocabulary_arguments,
    folder,
    model_config,
    positive,
    set_vocabulary,
)
from ..images import IMAGE_SUFFIXES, MAX_PIXELS, ImageArray
from ..pictures.style import save_figure
from ..predictor import Predictor, batches, build_predictor, describe_vocabulary, to_bgr
from ..storage import write_json
from ..video import VIDEO_SUFFIXES, VideoError, VideoReader

VOCABULARY_FILE = "vocabulary.json"


class FrameSink(Protocol):
    """Where the frames of one video go; used in a ``with`` block."""

    def frame(self, bgr: ImageArray, result: Any) -> None:
        """Take the next frame."""

    def __enter__(self) -> FrameSink: ...

    def __exit__(self, *error: Any) -> None: ...


class Writer(Protocol):
    """The "writer" part of a task: results of its predictor to files and to the screen; used in a ``with`` block.

    Attributes:
        needs_output: whether it can do without ``--output``.
    """

    needs_output: bool

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """The task's own arguments."""

    def photo(self, path: Path, name: str, bgr: ImageArray, result: Any) -> None:
        """Take the result of a photo; files begin with ``name``."""

    def video(self, path: Path, name: str, rate: float) -> FrameSink:
        """Where the frames of a video go."""
        ...

    def __enter__(self) -> Writer: ...

    def __exit__(self, *error: Any) -> None: ...


def find_inputs(inputs: Sequence[str]) -> list[Path]:
    """Files, folders (their images and videos, not those of folders inside) and patterns -> files, each once.

    ``**`` in a pattern stands for any folders.

    Raises:
        FileNotFoundError: an input does not exist or a folder or pattern holds no image or video.
        ValueError: an input is empty or an address.
    """
    found: list[Path] = []
    for text in inputs:
        if not text.strip():
            raise ValueError("--input '' names nothing: give files, folders or patterns")
        refuse_address("--input", text)
        path = Path(text)
        if path.is_file():
            found.append(path)
            continue
        candidates = sorted(path.iterdir()) if path.is_dir() else sorted(map(Path, glob.glob(text, recursive=True)))
        files = [p for p in candidates if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES]
        if not files:
            raise FileNotFoundError(
                f"--input {text} is neither a file nor a folder or pattern with images "
                f"({', '.join(IMAGE_SUFFIXES)}) or videos ({', '.join(VIDEO_SUFFIXES)}): correct it"
            )
        found += files
    return list(dict.fromkeys(found))


def output_names(paths: Sequence[Path]) -> list[str]:
    """A name per input, unique also where letter case does not matter: the stem; where that is taken, the file name; then
    with a number."""
    taken = {Path(VOCABULARY_FILE).stem}
    names = []
    for path in paths:
        candidates = [path.stem, path.name, *(f"{path.name}_{i}" for i in range(2, len(paths) + 3))]
        name = next(candidate for candidate in candidates if candidate.lower() not in taken)
        taken.add(name.lower())
        names.append(name)
    return names


def predict_photos(
    predictor: Predictor, writer: Writer, paths: Sequence[Path], names: Sequence[str], explain_to: Path | None = None
) -> dict[Path, str]:
    """Predict photos batch by batch; returns what could not be used, and why."""
    failed: dict[Path, str] = {}

    def readable() -> Iterator[tuple[Path, str, ImageArray]]:
        for path, name in zip(paths, names, strict=True):
            try:
                yield path, name, to_bgr(path, predictor.max_pixels)
            except (OSError, ValueError) as error:
                failed[path] = str(error)
                progress.update()

    wanted: Any = {} if explain_to is None else dict.fromkeys(predictor.explanation_needs, True)
    with tqdm(total=len(paths), unit="image", disable=not paths) as progress:
        for batch in batches(readable(), predictor.batch_size):
            results = predictor([bgr for _, _, bgr in batch], **wanted)
            for (path, name, bgr), result in zip(batch, results, strict=True):
                writer.photo(path, name, bgr, result)
                if explain_to is not None:
                    for what, figure in predictor.explain(bgr, result).items():
                        save_figure(figure, explain_to / f"{name}_{what}.png")
                progress.update()
    return failed


def predict_video(predictor: Predictor, writer: Writer, path: Path, name: str) -> None:
    """Predict a video frame by frame.

    Raises:
        VideoError: it cannot be read, holds no frame, or the result cannot be written.
    """
    with VideoReader(path) as video, writer.video(path, name, video.rate) as sink:
        for batch in batches(tqdm(video, total=video.expected, unit="frame", desc=path.name), predictor.batch_size):
            for bgr, result in zip(batch, predictor(batch), strict=True):
                sink.frame(bgr, result)


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the command-line arguments ``argv``; returns 0, or 1 if a file could not be used.

    Raises:
        FileNotFoundError: the config, the weights or an input does not exist.
        ValueError: the vocabulary is faulty, or the weights do not fit the config.
    """
    parser = Parser("python -m zeroshot_d2 predict", __doc__)
    parser.add_argument("--input", nargs="+", required=True, help="images, videos, folders, or patterns in quotes")
    parser.add_argument("--output", type=folder, help="folder of the results")
    parser.add_argument(
        "--batch-size", type=positive, help="images that run together; default: the config's TEST.IMS_PER_BATCH"
    )
    parser.add_argument("--max-pixels", type=positive, help=f"refuse larger photos; default: INPUT.MAX_PIXELS, {MAX_PIXELS}")
    parser.add_argument(
        "--explain", action="store_true", help="also draw how the system came to each result, where it can show it"
    )
    add_model_arguments(parser)
    add_vocabulary_arguments(parser)
    writer_class, args = parser.parse_with_part(argv, "writer")
    if args.output is None and (writer_class.needs_output or args.explain):
        parser.fail("--output FOLDER is missing: name one")

    paths = find_inputs(args.input)
    cfg = model_config(args)
    if args.max_pixels is not None:
        cfg.INPUT.MAX_PIXELS = args.max_pixels
    predictor = build_predictor(cfg, args.batch_size)
    split = set_vocabulary(predictor, args)
    if args.output is not None:
        write_json(args.output / VOCABULARY_FILE, describe_vocabulary(split))
    name_of = dict(zip(paths, output_names(paths), strict=True))
    videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
    photos = [path for path in paths if path not in set(videos)]
    with writer_class(predictor, args) as writer:
        explain_to = args.output if args.explain else None
        failed = predict_photos(predictor, writer, photos, [name_of[path] for path in photos], explain_to)
        for path in videos:
            try:
                predict_video(predictor, writer, path, name_of[path])
            except VideoError as error:
                failed[path] = str(error)
    where = "" if args.output is None else f", results in {args.output}"
    print(f"{len(paths) - len(failed)} of {len(paths)} files done{where}")
    for reason in failed.values():
        print(reason, file=sys.stderr)
    return 1 if failed else 0
