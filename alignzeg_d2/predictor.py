"""Prediction for people: images of any kind and a vocabulary of one's own in, label maps and proposals out.

Shapes: Q proposals, K classes of the vocabulary, (H, W) an image.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import detection_utils
from detectron2.engine import DefaultPredictor
from PIL import Image, ImageOps
from torch import Tensor

from alignzeg_d2.config import add_alignzeg_config
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.datasets.sem_seg import class_colors
from zeroshot_d2.vocabulary import vocabulary_from_names, vocabulary_of

ImageLike = npt.NDArray[np.uint8] | Image.Image | str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What AlignZeg makes of one image.

    Args:
        vocabulary: the K classes that it chose among; its ``unseen`` are those that training did not know.
        labels: (H, W) int64, vocabulary indices.
        best: (H, W), the score of that class: the sum over proposals of class probability times mask.
        scores: (K, H, W), the scores of all classes; None unless asked for.
        proposals: None unless asked for; else a dict of ``mask_logits`` (Q, h, w) covering the image, ``class_logits`` and
            ``corrected_logits`` (Q, K + 1), before and after Predictive Bias Correction, the background last,
            ``class_indicator`` I (Q,) or None, and ``features`` (Q, D).
    """

    vocabulary: ClassSplit
    labels: npt.NDArray[np.int64]
    best: npt.NDArray[np.float32]
    scores: Tensor | None = None
    proposals: dict[str, Tensor | None] | None = None

    def classes(self) -> list[dict[str, Any]]:
        """The classes present, largest first: ``index``, ``name``, ``unseen``, ``pixels``, ``area`` (share of the image) and
        ``score`` (mean of its pixels' scores)."""
        pixels = np.bincount(self.labels.ravel(), minlength=len(self.vocabulary))
        sums = np.bincount(self.labels.ravel(), weights=self.best.ravel(), minlength=len(self.vocabulary))
        unseen = self.vocabulary.unseen_mask
        return [
            {
                "index": int(k),
                "name": self.vocabulary.names[k],
                "unseen": bool(unseen[k]),
                "pixels": int(pixels[k]),
                "area": float(pixels[k] / self.labels.size),
                "score": float(sums[k] / pixels[k]),
            }
            for k in np.argsort(-pixels, kind="stable")
            if pixels[k]
        ]


class AlignZegPredictor(DefaultPredictor):
    """Detectron2's DefaultPredictor with a vocabulary of one's own, batches, PIL images and paths.

    ::

        predictor = AlignZegPredictor(cfg)
        predictor.set_vocabulary(["cat", "traffic light", "tree|bush|shrub"])
        segmentation = predictor("photo.jpg")
        segmentations = predictor(["a.jpg", "b.jpg"], proposals=True)

    Arrays are (H, W, 3) uint8 in BGR order, as for DefaultPredictor and as cv2 reads them. Files and PIL images are turned
    upright by their EXIF tag.
    """

    def __init__(self, cfg: CfgNode, batch_size: int | None = None) -> None:
        """
        Args:
            cfg: with MODEL.WEIGHTS; its vocabulary is that of DATASETS.TEST[0] until :meth:`set_vocabulary`.
            batch_size: images that run together, cfg.TEST.IMS_PER_BATCH by default.

        Raises:
            ValueError: the batch size is not positive, or the weights do not fit the config.
        """
        self.batch_size = cfg.TEST.IMS_PER_BATCH if batch_size is None else batch_size
        if self.batch_size < 1:
            raise ValueError(f"the batch size must be positive, got {self.batch_size}")
        super().__init__(cfg)
        self._vocabulary: ClassSplit | None = None

    @property
    def vocabulary(self) -> ClassSplit:
        """The K classes in use.

        Raises:
            ValueError: none was set, and cfg.DATASETS.TEST is empty.
        """
        return vocabulary_of({}, self.model.default_dataset) if self._vocabulary is None else self._vocabulary

    @property
    def colors(self) -> list[tuple[int, int, int]]:
        """(K) RGB: those of the config's test data set where it has all classes, else distinct ones."""
        metadata = getattr(self, "metadata", None)  # DefaultPredictor sets it only where DATASETS.TEST names a data set
        known = {} if metadata is None else dict(zip(metadata.stuff_classes, metadata.stuff_colors, strict=True))
        names = self.vocabulary.names
        return [known[name] for name in names] if known.keys() >= set(names) else class_colors(len(names))

    def set_vocabulary(
        self, names: Sequence[str] | ClassSplit | None, unseen: Iterable[str] | None = None
    ) -> ClassSplit:
        """Choose among these classes from now on.

        Args:
            names: in the order of the label values; a name may list synonyms ("tree|bush|shrub"), of which the first is
                displayed and all take part in the text embedding. None: back to the config's.
            unseen: names that count as unseen even if training knew them, in the correction (Eq. 7) and in pictures.
                Classes that training did not know are unseen in any case.

        Returns:
            the vocabulary with all its unseen classes marked.

        Raises:
            ValueError: it is empty, has duplicates, or lacks a name of ``unseen``.
        """
        if isinstance(names, str):
            raise ValueError(f"the vocabulary must be a list of names, got the text {names!r}")
        if names is None:
            self._vocabulary = None
            split = self.vocabulary
        else:
            split = names if isinstance(names, ClassSplit) else vocabulary_from_names(names)
        marked = {*split.unseen, *(name.split("|")[0].strip() for name in unseen or ())}
        unknown = sorted(marked.difference(split.names))
        if unknown:
            raise ValueError(f"unseen classes {unknown} are not in the vocabulary: {', '.join(split.names)}")
        trained = split.trained_mask(self.model.trained_classes)
        self._vocabulary = ClassSplit(
            names=split.names,
            unseen=tuple(name for name, known in zip(split.names, trained, strict=True) if name in marked or not known),
            prompts=split.prompts,
            aliases=split.aliases,
        )
        return self._vocabulary

    @overload  # a path may be a str, which is a Sequence too
    def __call__(  # type: ignore[overload-overlap]
        self, images: ImageLike, *, scores: bool = ..., proposals: bool = ...
    ) -> Segmentation: ...

    @overload
    def __call__(
        self, images: Sequence[ImageLike], *, scores: bool = ..., proposals: bool = ...
    ) -> list[Segmentation]: ...

    def __call__(
        self, images: ImageLike | Sequence[ImageLike], *, scores: bool = False, proposals: bool = False
    ) -> Segmentation | list[Segmentation]:
        """
        Args:
            images: one image or a list of them; each a BGR array, a PIL image or a path.
            scores: also return the scores of all classes, K times as much memory as the label map's.
            proposals: also return the proposals.

        Returns:
            a :class:`Segmentation`, or a list of them in the order of the images.

        Raises:
            OSError: a file cannot be read; it is named.
            ValueError: an array is not (H, W, 3) uint8.
        """
        if isinstance(images, np.ndarray | Image.Image | str | os.PathLike):
            return self([images], scores=scores, proposals=proposals)[0]
        self.model.output = "scores" if scores else "labels"
        self.model.return_proposals = proposals
        results: list[Segmentation] = []
        for start in range(0, len(images), self.batch_size):
            results += self._segment([to_bgr(image) for image in images[start : start + self.batch_size]])
        return results

    @torch.no_grad()
    def _segment(self, images: list[npt.NDArray[np.uint8]]) -> Iterator[Segmentation]:
        vocabulary = self.vocabulary
        for output in self.model([{**self.model_input(image), "vocabulary": vocabulary} for image in images]):
            scores = output.get("sem_seg")
            if scores is None:
                labels, best = output["sem_seg_labels"], output["sem_seg_best"]
            else:
                best, labels = scores.max(dim=0)
            yield Segmentation(
                vocabulary, labels.cpu().numpy(), best.float().cpu().numpy(), scores, output.get("proposals")
            )

    def model_input(self, image: npt.NDArray[np.uint8]) -> dict[str, Any]:
        """BGR (H, W, 3) -> ``image`` (3, h, w) float in the model's channel order and test size, ``height``, ``width``."""
        height, width = image.shape[:2]
        ordered = image[:, :, ::-1] if self.input_format == "RGB" else image
        resized = self.aug.get_transform(ordered).apply_image(ordered)
        return {
            "image": torch.as_tensor(resized.astype(np.float32).transpose(2, 0, 1)),
            "height": height,
            "width": width,
        }


def to_bgr(image: ImageLike) -> npt.NDArray[np.uint8]:
    """A BGR array, a PIL image or a path -> (H, W, 3) uint8 in BGR order.

    Raises:
        OSError: the file is missing, unreadable or truncated; it is named.
        ValueError: an array is not (H, W, 3) uint8.
    """
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(f"an image array must be (H, W, 3) uint8 in BGR order, got {image.shape} {image.dtype}")
        return image
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image) or image
        return np.ascontiguousarray(np.asarray(upright.convert("RGB"))[:, :, ::-1])
    try:
        return np.ascontiguousarray(detection_utils.read_image(os.fspath(image), format="BGR"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG chunk
        raise OSError(f"cannot read the image {os.fspath(image)}: {error}") from error


# ---- the command lines of predict and export ----


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say which model and which vocabulary."""
    parser.add_argument("--config-file", required=True, help="the config that the checkpoint was trained with")
    parser.add_argument("--weights", required=True, help="the checkpoint, for example output/demo/model_final.pth")
    parser.add_argument(
        "--vocabulary",
        help='classes, separated by commas, synonyms by "|": "cat, tree|bush|shrub, sky"; or a .txt file with one per line. '
        "Default: the classes of the config's first test data set",
    )
    parser.add_argument("--unseen", help="names, separated by commas, that count as unseen although training knew them")
    parser.add_argument("--unseen-only", action="store_true", help="choose among the unseen classes of the vocabulary only")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the config")


def config_from_arguments(args: argparse.Namespace) -> CfgNode:
    """The config of ``--config-file``, ``--weights`` and the KEY VALUE pairs, on the CPU where there is no GPU.

    Raises:
        FileNotFoundError: the config or the weights do not exist.
    """
    for option, path in (("--config-file", args.config_file), ("--weights", args.weights)):
        if not Path(path).is_file():
            raise FileNotFoundError(f"{option} {path} does not exist (looked for it from {Path.cwd()})")
    cfg = get_cfg()
    add_alignzeg_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.MODEL.WEIGHTS = str(args.weights)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def set_vocabulary_from_arguments(predictor: AlignZegPredictor, args: argparse.Namespace) -> ClassSplit:
    """Apply ``--vocabulary``, ``--unseen`` and ``--unseen-only``.

    Raises:
        FileNotFoundError: the .txt file does not exist.
        ValueError: as :meth:`AlignZegPredictor.set_vocabulary`, or no class is unseen.
    """
    names = None if args.vocabulary is None else _parse_names(args.vocabulary)
    split = predictor.set_vocabulary(names, None if args.unseen is None else _parse_names(args.unseen))
    return predictor.set_vocabulary(split.only_unseen()) if args.unseen_only else split


def _parse_names(text: str) -> list[str]:
    if text.endswith(".txt"):
        if not Path(text).is_file():
            raise FileNotFoundError(f"the class list {text} does not exist (looked for it from {Path.cwd()})")
        lines = Path(text).read_text(encoding="utf-8-sig").splitlines()
        return [line.strip() for line in lines if line.strip()]
    return [name.strip() for name in text.split(",") if name.strip()]
