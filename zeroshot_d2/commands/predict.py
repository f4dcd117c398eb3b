"""Predict on photos and videos, with any vocabulary.

    python -m zeroshot_d2 predict --model output/demo --input photos/ --output out/
    python -m zeroshot_d2 predict --config-file configs/coco/alignzeg.yaml --weights model_final.pth \
        --input photos/ video.mp4 --vocabulary "cat, traffic light, tree|bush|shrub" --output out/
    python -m zeroshot_d2 predict --model output/demo/epsilon --input photo.jpg --top-k 5
    python -m zeroshot_d2 predict --model output/demo --input photos/ --output out/ --format coco cvat \
        --num-processes 4 --skip-finished

What is written depends on the task; `--help` beside a `--model` or `--config-file` says what it takes. A file that cannot be
read does not stop the others: it is reported at the end, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import glob
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from detectron2.config import CfgNode
from tqdm import tqdm

from ..checkpoint import refuse_address
from ..class_split import ClassSplit
from ..cli import (
    Parser,
    add_model_arguments,
    add_vocabulary_arguments,
    folder,
    import_systems,
    model_config,
    positive,
    set_vocabulary,
)
from ..images import IMAGE_SUFFIXES, MAX_PIXELS, ImageArray, UnreadableImage
from ..pictures.style import save_figure
from ..predictor import Predictor, batches, build_predictor, describe_vocabulary, to_bgr
from ..processes import run_together
from ..results import Source, run_digest, sources_of
from ..storage import file_sha256, read_json, write_json
from ..system import find_system
from ..video import VIDEO_SUFFIXES, VideoError, VideoReader

VOCABULARY_FILE = "vocabulary.json"

T = TypeVar("T")


class FrameSink(Protocol):
    """Where the frames of one video go; used in a ``with`` block."""

    def frame(self, bgr: ImageArray, result: Any) -> None:
        """Take the next frame."""

    def __enter__(self) -> FrameSink: ...

    def __exit__(self, *error: Any) -> None: ...


class Writer(Protocol):
    """The "writer" part of a task: results of its predictor to files and to the screen; used in a ``with`` block.

    It is made from a predictor, the arguments, all inputs, and the digest of the run
    (:func:`zeroshot_d2.results.run_digest`). With several processes each has one, and gives it its share of the results.

    Attributes:
        needs_output: whether it can do without ``--output``.
        reserved: names that the results of an input must not begin with.
        vocabulary: the classes that its results speak of.
    """

    needs_output: bool
    reserved: tuple[str, ...]
    vocabulary: ClassSplit

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """The task's own arguments."""

    def finished(self, source: Source, *, is_video: bool) -> bool:
        """Whether the results of an input are there, whole, and from the same settings."""
        ...

    def own(self, source: Source) -> Callable[[Predictor], None] | None:
        """What reads this photo, predicts and writes its results; None where the writer is to be given what was read."""
        ...

    def photo(self, source: Source, bgr: ImageArray, result: Any) -> None:
        """Take the result of a photo."""

    def video(self, source: Source, rate: float) -> FrameSink:
        """Where the frames of a video go."""
        ...

    def collect(self) -> None:
        """Write what is about all inputs, from the results of all processes; one of them calls it, last."""

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


def predict_photos(
    predictor: Predictor,
    writer: Writer,
    sources: Sequence[Source],
    explain_to: Path | None = None,
    *,
    quiet: bool = False,
) -> dict[Path, str]:
    """Predict photos batch by batch; returns what could not be used, and why. ``quiet``: without a progress bar."""
    failed: dict[Path, str] = {}

    def readable() -> Iterator[tuple[Source, ImageArray]]:
        for source in sources:
            try:
                yield source, to_bgr(source.path, predictor.max_pixels)
            except (OSError, ValueError) as error:
                failed[source.path] = str(error)
                progress.update()

    wanted: Any = {} if explain_to is None else dict.fromkeys(predictor.explanation_needs, True)
    with tqdm(total=len(sources), unit="image", disable=quiet or not sources) as progress:
        for batch in batches(readable(), predictor.batch_size):
            results = predictor([bgr for _, bgr in batch], **wanted)
            for (source, bgr), result in zip(batch, results, strict=True):
                if explain_to is not None:
                    for what, figure in predictor.explain(bgr, result).items():
                        save_figure(figure, explain_to / f"{source.name}_{what}.png")
                writer.photo(source, bgr, result)
                progress.update()
    return failed


def predict_video(predictor: Predictor, writer: Writer, source: Source, *, quiet: bool = False) -> None:
    """Predict a video frame by frame. ``quiet``: without a progress bar.

    Raises:
        VideoError: it cannot be read, holds no frame, or the result cannot be written.
    """
    with VideoReader(source.path) as video, writer.video(source, video.rate) as sink:
        frames = tqdm(video, total=video.expected, unit="frame", desc=source.path.name, disable=quiet)
        for batch in batches(frames, predictor.batch_size):
            for bgr, result in zip(batch, predictor(batch), strict=True):
                sink.frame(bgr, result)


@dataclass
class Outcome:
    """What became of the inputs, or of a process's share of them.

    Args:
        failed: why an input could not be used, by its place among all inputs.
        skipped: how many were finished before.
    """

    failed: dict[int, str] = field(default_factory=dict)
    skipped: int = 0

    def add(self, other: Outcome) -> None:
        """Take in another process's share."""
        self.failed |= other.failed
        self.skipped += other.skipped


@dataclass(frozen=True)
class _Work:
    """What the processes share."""

    args: argparse.Namespace
    cfg: CfgNode
    weights_sha256: str
    sources: list[Source]


def _predict(work: _Work, index: int, barrier: Barrier | None = None) -> Outcome:
    """Predict the share of process ``index``; when all have come to the barrier, the first one collects."""
    args, cfg = work.args, work.cfg
    predictor = build_predictor(cfg, args.batch_size)
    vocabulary = describe_vocabulary(set_vocabulary(predictor, args))
    run = run_digest(cfg, work.weights_sha256, vocabulary, args)
    writer_class = find_system(cfg.MODEL.META_ARCHITECTURE).part("writer")
    with writer_class(predictor, args, work.sources, run) as writer:
        if args.output is not None and index == 0:
            write_json(args.output / VOCABULARY_FILE, describe_vocabulary(writer.vocabulary))
        outcome = _predict_share(predictor, writer, work, index)
        if barrier is not None:
            barrier.wait()
        if index == 0:
            writer.collect()
    return outcome


def _predict_as_one_of(index: int, work: _Work, barrier: Barrier, meeting: Path) -> None:
    """What each of several processes does; its outcome goes to a file in the folder ``meeting``."""
    import_systems(work.args.modules)
    _take_part_of_machine(index, work.args.num_processes, work.cfg)
    outcome = _predict(work, index, barrier)
    write_json(meeting / f"{index}.json", [list(outcome.failed.items()), outcome.skipped])


def _predict_together(work: _Work, count: int) -> Outcome:
    """Share the inputs out over ``count`` processes."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="zeroshot-d2-") as folder:
        meeting = Path(folder)
        barrier = multiprocessing.get_context("spawn").Barrier(count)  # fit for a fork as well
        run_together(_predict_as_one_of, count, (work, barrier, meeting))
        for index in range(count):
            failed, skipped = read_json(meeting / f"{index}.json")
            outcome.add(Outcome(dict(failed), skipped))
    return outcome


def _take_part_of_machine(index: int, count: int, cfg: CfgNode) -> None:
    """Let a process of several have its GPU, or its part of the cores."""
    if cfg.MODEL.DEVICE == "cuda":
        torch.cuda.set_device(index % torch.cuda.device_count())
    elif cfg.MODEL.DEVICE == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))


def _predict_share(predictor: Predictor, writer: Writer, work: _Work, index: int) -> Outcome:
    args, count, outcome = work.args, work.args.num_processes, Outcome()
    place = {source.path: i for i, source in enumerate(work.sources)}
    videos = [source for source in work.sources if source.path.suffix.lower() in VIDEO_SUFFIXES]
    chosen = set(videos)
    # Whole batches: what runs together does not depend on the number of processes.
    photos = share([source for source in work.sources if source not in chosen], index, count, predictor.batch_size)
    videos = share(videos, index, count, 1)
    if args.skip_finished:
        left = [source for source in photos if not writer.finished(source, is_video=False)]
        left_videos = [source for source in videos if not writer.finished(source, is_video=True)]
        outcome.skipped = len(photos) - len(left) + len(videos) - len(left_videos)
        photos, videos = left, left_videos
    own = {source: work_on for source in photos if (work_on := writer.own(source)) is not None}
    given = [source for source in photos if source not in own]
    failed = predict_photos(predictor, writer, given, args.output if args.explain else None, quiet=index > 0)
    for source, work_on in tqdm(own.items(), unit="file", disable=index > 0 or not own):
        try:
            work_on(predictor)
        except UnreadableImage as error:
            failed[source.path] = str(error)
    for source in videos:
        try:
            predict_video(predictor, writer, source, quiet=index > 0)
        except VideoError as error:
            failed[source.path] = str(error)
    outcome.failed = {place[path]: reason for path, reason in failed.items()}
    return outcome


def share(items: Sequence[T], index: int, count: int, size: int) -> list[T]:
    """The items of one of ``count`` processes, which take turns at groups of ``size``."""
    return [item for place, item in enumerate(items) if place // size % count == index]


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
    parser.add_argument(
        "--skip-finished",
        action="store_true",
        help="leave out files whose results are whole, newer than the file, and from the same model, vocabulary and options",
    )
    parser.add_argument(
        "--num-processes", type=positive, default=1, help="that share the files, on the GPUs in turn; default: 1"
    )
    add_model_arguments(parser)
    add_vocabulary_arguments(parser)
    writer_class, args = parser.parse_with_part(argv, "writer")
    if args.output is None and (writer_class.needs_output or args.explain):
        parser.fail("--output FOLDER is missing: name one")
    if args.output is None and args.skip_finished:
        parser.fail("--skip-finished looks for results in --output FOLDER: name one")

    sources = sources_of(find_inputs(args.input), {Path(VOCABULARY_FILE).stem, *writer_class.reserved})
    cfg = model_config(args)
    if args.max_pixels is not None:
        cfg.INPUT.MAX_PIXELS = args.max_pixels
    work = _Work(args, cfg, file_sha256(cfg.MODEL.WEIGHTS), sources)
    outcome = _predict(work, 0) if args.num_processes == 1 else _predict_together(work, args.num_processes)
    where = "" if args.output is None else f", results in {args.output}"
    skipped = f" ({outcome.skipped} finished before)" if args.skip_finished else ""
    print(f"{len(sources) - len(outcome.failed)} of {len(sources)} files done{skipped}{where}")
    for _, reason in sorted(outcome.failed.items()):
        print(reason, file=sys.stderr)
    return 1 if outcome.failed else 0
