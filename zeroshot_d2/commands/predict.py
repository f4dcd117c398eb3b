"""Segment photos and videos with a vocabulary of one's own.

    python -m alignzeg_d2.predict --config-file configs/coco/alignzeg.yaml --weights model_final.pth \
        --input photos/ --vocabulary "cat, traffic light, tree|bush|shrub" --output out/

For an image photo.jpg it writes out/photo_overlay.png, out/photo_labels.png (class indices, 8 bits per pixel, or 16 where
there are more than 256 classes) and out/photo.json (classes present, their area and score); for a video clip.mp4
out/clip_overlay.mp4, out/clip_labels/ and out/clip.json. out/vocabulary.json says what the indices mean.
"""

from __future__ import annotations

import argparse
import glob
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from alignzeg_d2.predictor import (
    AlignZegPredictor,
    Segmentation,
    add_model_arguments,
    config_from_arguments,
    set_vocabulary_from_arguments,
    to_bgr,
)
from alignzeg_d2.visualization import Colors, draw_labels, label_figure, save_figure
from zeroshot_d2.class_split import ClassSplit

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
VOCABULARY_FILE = "vocabulary.json"
_SMALLEST_FRAME = 480  # pixels; frames with a shorter side are enlarged, so that names can be read
_FRAME_DPI = 100

T = TypeVar("T")


class VideoError(OSError):
    """A video cannot be read or written."""


def find_inputs(inputs: Sequence[str]) -> list[Path]:
    """Files, folders (their images and videos, not those of folders inside) and patterns -> files, each once.

    Raises:
        FileNotFoundError: an input does not exist or a folder or pattern holds no image or video.
    """
    found: list[Path] = []
    for text in inputs:
        path = Path(text)
        if path.is_file():
            found.append(path)
            continue
        candidates = sorted(path.iterdir()) if path.is_dir() else sorted(map(Path, glob.glob(text)))
        files = [p for p in candidates if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES]
        if not files:
            raise FileNotFoundError(
                f"--input {text} is neither a file nor a folder or pattern with images "
                f"({', '.join(IMAGE_SUFFIXES)}) or videos ({', '.join(VIDEO_SUFFIXES)})"
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


def write_labels(path: Path, labels: npt.NDArray[np.int64], num_classes: int) -> None:
    """Class indices (H, W) as a grey PNG of 8 bits, or of 16 for more than 256 classes."""
    Image.fromarray(labels.astype(np.uint8 if num_classes <= 256 else np.uint16)).save(path)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_image_results(
    folder: Path, name: str, source: Path, bgr: npt.NDArray[np.uint8], found: Segmentation, colors: Colors
) -> None:
    """The three files of one image."""
    split = found.vocabulary
    figure = label_figure(bgr[:, :, ::-1], found.labels, split, colors)
    save_figure(figure, folder / f"{name}_overlay.png")
    write_labels(folder / f"{name}_labels.png", found.labels, len(split))
    height, width = found.labels.shape
    write_json(folder / f"{name}.json", {"image": str(source), "width": width, "height": height, "classes": found.classes()})


def draw_frame(bgr: npt.NDArray[np.uint8], found: Segmentation, colors: Colors) -> npt.NDArray[np.uint8]:
    """Colours and class names over a frame, without margins or legend; BGR (H, W, 3) -> BGR, both sides even, as video
    codecs want them."""
    height, width = bgr.shape[:2]
    factor = max(1, -(-_SMALLEST_FRAME // min(height, width)))
    height, width = (2 * (side * factor // 2) for side in (height, width))
    figure = Figure(figsize=(width / _FRAME_DPI, height / _FRAME_DPI), dpi=_FRAME_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    draw_labels(axes, bgr[:, :, ::-1], found.labels, found.vocabulary, colors, font_size=0.018 * height)
    axes.set_aspect("auto")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[:, :, 2::-1])


def predict_images(
    predictor: AlignZegPredictor, paths: Sequence[Path], names: Sequence[str], folder: Path
) -> dict[Path, str]:
    """Segment images batch by batch; returns what could not be read, and why."""
    failed: dict[Path, str] = {}

    def readable() -> Iterator[tuple[Path, str, npt.NDArray[np.uint8]]]:
        for path, name in zip(paths, names, strict=True):
            try:
                yield path, name, to_bgr(path)
            except OSError as error:
                failed[path] = str(error)
                progress.update()

    with tqdm(total=len(paths), unit="image", disable=not paths) as progress:
        for batch in batches(readable(), predictor.batch_size):
            found = predictor([bgr for _, _, bgr in batch])
            for (path, name, bgr), segmentation in zip(batch, found, strict=True):
                write_image_results(folder, name, path, bgr, segmentation, predictor.colors)
                progress.update()
    return failed


def predict_video(predictor: AlignZegPredictor, path: Path, name: str, folder: Path) -> None:
    """Segment a video frame by frame.

    Raises:
        VideoError: it cannot be opened, holds no frame, or the overlay cannot be written.
    """
    video = cv2.VideoCapture(str(path))
    writer: cv2.VideoWriter | None = None
    frames: list[dict[str, Any]] = []
    try:
        if not video.isOpened():
            raise VideoError(f"cannot read the video {path}: it is damaged, or its codec is unknown to OpenCV")
        rate = video.get(cv2.CAP_PROP_FPS) or 25.0
        labels_folder = folder / f"{name}_labels"
        labels_folder.mkdir(exist_ok=True)
        expected = int(video.get(cv2.CAP_PROP_FRAME_COUNT))  # 0 or less where the container does not say
        progress = tqdm(total=expected if expected > 0 else None, unit="frame", desc=path.name)
        with progress:
            for batch in batches(_frames_of(video), predictor.batch_size):
                for bgr, found in zip(batch, predictor(batch), strict=True):
                    drawn = draw_frame(bgr, found, predictor.colors)
                    if writer is None:
                        writer = _open_writer(folder / f"{name}_overlay.mp4", rate, drawn)
                    writer.write(drawn)
                    write_labels(labels_folder / f"{len(frames):06d}.png", found.labels, len(found.vocabulary))
                    frames.append({"frame": len(frames), "seconds": len(frames) / rate, "classes": found.classes()})
                    progress.update()
        if not frames:
            raise VideoError(f"cannot read the video {path}: it holds no frame that OpenCV can decode")
        write_json(folder / f"{name}.json", {"video": str(path), "frames_per_second": rate, "frames": frames})
    finally:
        video.release()
        if writer is not None:
            writer.release()


def _frames_of(video: cv2.VideoCapture) -> Iterator[npt.NDArray[np.uint8]]:
    while True:
        there, frame = video.read()
        if not there:
            return
        yield frame


def _open_writer(path: Path, rate: float, frame: npt.NDArray[np.uint8]) -> cv2.VideoWriter:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (frame.shape[1], frame.shape[0]))
    if not writer.isOpened():
        raise VideoError(f"cannot write {path}: this build of OpenCV has no encoder for mp4")
    return writer


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last one possibly shorter."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def describe_vocabulary(split: ClassSplit) -> list[dict[str, Any]]:
    """Index, name, synonyms and whether unseen, of every class."""
    unseen = split.unseen_mask
    return [
        {"index": k, "name": name, "synonyms": list(synonyms), "unseen": bool(unseen[k])}
        for k, (name, synonyms) in enumerate(zip(split.names, split.synonyms, strict=True))
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the command-line arguments ``argv``; returns 0, or 1 if a file could not be read.

    Raises:
        FileNotFoundError: the config, the weights or an input does not exist.
        ValueError: the vocabulary is faulty, or the weights do not fit the config.
    """
    parser = argparse.ArgumentParser(
        prog="python -m alignzeg_d2.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", nargs="+", required=True, help="images, videos, folders, or patterns in quotes")
    parser.add_argument("--output", required=True, type=Path, help="folder of the results")
    parser.add_argument("--batch-size", type=int, help="images that run together; default: the config's TEST.IMS_PER_BATCH")
    add_model_arguments(parser)
    args = parser.parse_args(argv)

    paths = find_inputs(args.input)
    predictor = AlignZegPredictor(config_from_arguments(args), args.batch_size)
    split = set_vocabulary_from_arguments(predictor, args)
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(args.output / VOCABULARY_FILE, describe_vocabulary(split))

    name_of = dict(zip(paths, output_names(paths), strict=True))
    videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
    images = [path for path in paths if path not in set(videos)]
    failed = predict_images(predictor, images, [name_of[path] for path in images], args.output)
    for path in videos:
        try:
            predict_video(predictor, path, name_of[path], args.output)
        except VideoError as error:
            failed[path] = str(error)
    print(f"{len(paths) - len(failed)} of {len(paths)} files done, results in {args.output}")
    for reason in failed.values():
        print(reason, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
