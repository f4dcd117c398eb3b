"""A segmentation with what formats get wrong, and the files that the writer makes of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from zeroshot_d2 import ClassSplit
from zeroshot_d2.pictures.colors import class_colors
from zeroshot_d2.results import Source, sources_of
from zeroshot_d2.segmentation.predictor import Segmentation
from zeroshot_d2.segmentation.writer import SegmentationWriter

VOCABULARY = ClassSplit(["sky", 'a "wild" <cat> & dog', "tree", "never there"], unseen=["tree"])
NO_CLASS = 9


def example(seed: int = 0, size: tuple[int, int] = (23, 31)) -> Segmentation:
    """Noise over blocks: islands, holes, regions that touch at corners, and pixels without a class."""
    rng = np.random.default_rng(seed)
    height, width = size
    blocks = rng.integers(0, 3, (height // 5 + 1, width // 5 + 1)).repeat(5, axis=0).repeat(5, axis=1)[:height, :width]
    labels = np.where(rng.random(size) < 0.1, rng.integers(0, 3, size), blocks)
    labels[0, :4] = NO_CLASS
    return Segmentation(VOCABULARY, labels.astype(np.int64), rng.random(size).astype(np.float32))


def make_writer(folder: Path, words: Sequence[str], sources: Sequence[Source], run: str = "run") -> SegmentationWriter:
    """A writer of these command-line words, for :data:`VOCABULARY`."""
    parser = argparse.ArgumentParser()
    SegmentationWriter.add_arguments(parser)
    args = parser.parse_args(list(words))
    args.output = folder
    cfg = SimpleNamespace(MODEL=SimpleNamespace(META_ARCHITECTURE="Toy"))
    predictor = SimpleNamespace(vocabulary=VOCABULARY, colors=class_colors(len(VOCABULARY)), cfg=cfg)
    return SegmentationWriter(predictor, args, sources, run)  # type: ignore[arg-type]


def write(folder: Path, *words: str, results: Sequence[Segmentation] | None = None) -> list[Segmentation]:
    """Photos, in ``folder``/photos, and their results below ``folder``/out; returns the results."""
    found = [example(0), example(1, (16, 40))] if results is None else list(results)
    (folder / "photos/inside").mkdir(parents=True, exist_ok=True)
    paths = [folder / "photos" / name for name in ("a b.jpg", "inside/ü.png", "c.png", "d.png")[: len(found)]]
    for path, result in zip(paths, found, strict=True):
        Image.new("RGB", result.labels.shape[::-1]).save(path)
    sources = sources_of(paths)
    with make_writer(folder / "out", words, sources) as writer:
        for source, result in zip(sources, found, strict=True):
            writer.photo(source, np.zeros((*result.labels.shape, 3), dtype=np.uint8), result)
        writer.collect()
    return found
