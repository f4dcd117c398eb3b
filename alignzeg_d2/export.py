"""AlignZeg as ONNX or torch.export: one tensor of images in, class scores or label maps out.

The vocabulary is baked in, or two further inputs carry it. The number of images and their sizes stay free; sides must be
multiples of the model's ``size_divisibility``, see :func:`prepare_image`. The file is then run beside the model itself, and
the two are compared.

Shapes: N images, Q proposals, K classes, D embedding, (H, W) the image.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from alignzeg_d2.alignzeg import AlignZeg
from alignzeg_d2.inference import correct
from alignzeg_d2.predictor import AlignZegPredictor
from alignzeg_d2.proposal_segmenter import OUTPUTS
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.export import (
    TOLERANCE,
    check_difference,
    check_opset,
    check_path,
    free_images,
    greatest_difference,
    largest_difference,
    read_metadata,
    save_vocabulary,
    share_of_others,
    trace,
    write,
)
from zeroshot_d2.images import check_image_array
from zeroshot_d2.segmentation.mapper import ShortestEdge

# The entry of ONNX's metadata and the name of torch.export's extra file under which the description stands.
DESCRIPTION_KEY = "alignzeg.json"
LABEL_TOLERANCE = 0.01  # share of pixels: where two classes are as good as equal, rounding decides


@dataclass(frozen=True)
class Description:
    """What a user of the exported file must know.

    Args:
        output: "scores" or "labels".
        input_format: channel order, "RGB" or "BGR".
        size_divisibility: sides of the input must be multiples of it.
        short_side, max_side: the test size; 0 as short side leaves images as they are.
        padding: the value of each channel to pad with.
        names, prompts, unseen: of the vocabulary baked in; None where it is an input.
    """

    output: str
    input_format: str
    size_divisibility: int
    short_side: int
    max_side: int
    padding: tuple[float, ...]
    names: tuple[str, ...] | None = None
    prompts: tuple[str, ...] | None = None
    unseen: tuple[str, ...] | None = None


class ExportableAlignZeg(nn.Module):
    """AlignZeg as a function of tensors alone: no dicts, no lists, no data sets, no text encoder."""

    prototypes: Tensor | None
    seen: Tensor | None

    def __init__(self, model: AlignZeg, vocabulary: ClassSplit | None, output: str = "scores") -> None:
        """
        Args:
            model: in evaluation mode.
            vocabulary: baked in; None makes it two further inputs of ``forward``.
            output: "scores" or "labels".

        Raises:
            ValueError: unknown ``output``.
        """
        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(f"the output must be one of {OUTPUTS}, got {output!r}")
        self.model = model
        self.output = output
        inputs = None if vocabulary is None else vocabulary_inputs(model, vocabulary)
        for name in ("prototypes", "seen"):
            self.register_buffer(name, None if inputs is None else inputs[name])

    def forward(self, images: Tensor, prototypes: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """
        Args:
            images: (N, 3, H, W) in the channel order of cfg.INPUT.FORMAT, 0 to 255.
            prototypes: T (K, D), unit length, unless baked in.
            seen: (K,) bool, classes that the model was trained on, unless baked in.

        Returns:
            scores (N, K, H, W), or the best class of each pixel (N, H, W).
        """
        model = self.model
        prototypes = self.prototypes if prototypes is None else prototypes
        seen = self.seen if seen is None else seen
        mask_logits, features = model.extract_proposals(self._normalised(images))
        assert prototypes is not None and seen is not None, "they are either baked in or inputs"
        found = model.classify(features, prototypes)
        _, probabilities = correct(
            found.class_logits,
            found.class_indicator,
            seen,
            model.postprocessor,
            background_in_softmax=model.background_in_softmax,
        )
        masks = F.interpolate(mask_logits, size=images.shape[-2:], mode="bilinear", align_corners=False).sigmoid()
        if self.output == "scores":
            return _scores(probabilities, masks)
        # In strips of rows, for the scores of all classes at all pixels would take more memory than anything else.
        strips = masks.unflatten(2, (model.size_divisibility, -1)).unbind(2)
        return torch.cat([_scores(probabilities, strip).argmax(dim=1) for strip in strips], dim=1)

    def _normalised(self, images: Tensor) -> Tensor:
        """(N, 3, H, W); in cells, so that runtimes refuse a side that is no multiple, whose last pixels would be dropped."""
        divisor = self.model.size_divisibility
        cells = images.unflatten(3, (-1, divisor)).unflatten(2, (-1, divisor))
        mean, std = (value[..., None, None] for value in (self.model.pixel_mean, self.model.pixel_std))
        return ((cells - mean) / std).flatten(4, 5).flatten(2, 3)


def _scores(probabilities: Tensor, masks: Tensor) -> Tensor:
    """(N, Q, K) and (N, Q, h, W) -> (N, K, h, W)."""
    return (probabilities.mT @ masks.flatten(2)).unflatten(2, (masks.shape[2], masks.shape[3]))


def vocabulary_inputs(model: AlignZeg, vocabulary: ClassSplit) -> dict[str, Tensor]:
    """What ``--vocabulary-input`` asks for: ``prototypes`` (K, D) float and ``seen`` (K,) bool."""
    return {"prototypes": model.prototypes(vocabulary), "seen": model.seen_mask(vocabulary)}


def prepare_image(image: npt.NDArray[np.uint8], description: Mapping[str, Any]) -> tuple[npt.NDArray[np.float32], int, int]:
    """An image as the exported program wants it: resized to the test size, padded on the right and below.

    Args:
        image: (H, W, 3) uint8 in the channel order of ``description["input_format"]``.
        description: as :func:`read_description` returns it.

    Returns:
        (3, H', W') float, and the height and width of the part that the image covers: crop the program's output to it, then
        resize the crop to (H, W).

    Raises:
        ValueError: the image is no such array.
    """
    check_image_array(image, "the model's channel order")
    transform = ShortestEdge(description["short_side"], description["max_side"]).get_transform(image)
    resized = transform.apply_image(image).astype(np.float32).transpose(2, 0, 1)
    height, width = resized.shape[1:]
    divisor = description["size_divisibility"]
    padded = np.empty((3, *(-(-side // divisor) * divisor for side in (height, width))), dtype=np.float32)
    padded[:] = np.array(description["padding"], dtype=np.float32)[:, None, None]
    padded[:, :height, :width] = resized
    return padded, height, width


def free_dimensions(program: ExportableAlignZeg, inputs: Iterable[str]) -> dict[str, dict[int, Any]]:
    """N, H, W of ``images`` and, where they are among the inputs, K of ``prototypes`` and ``seen``; for
    :func:`zeroshot_d2.export.trace`."""
    divisor = program.model.size_divisibility
    shapes: dict[str, dict[int, Any]] = {"images": {0: free_images(), 2: divisor * Dim("h"), 3: divisor * Dim("w")}}
    if "prototypes" in inputs:
        shapes["prototypes"] = shapes["seen"] = {0: Dim("k")}
    return shapes


def read_description(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The :class:`Description` in an exported file, as a dict.

    Raises:
        FileNotFoundError, ValueError: as :func:`zeroshot_d2.export.read_metadata`.
    """
    return read_metadata(path, DESCRIPTION_KEY)


def examples(
    program: ExportableAlignZeg, vocabularies: Sequence[ClassSplit], baked: bool
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Random images of several numbers and sizes, and what the model itself returns for them.

    Args:
        program: what was exported.
        vocabularies: to take turns; with a baked-in vocabulary that one.
        baked: whether the vocabulary is baked in.
    """
    model = program.model
    divisor = model.size_divisibility
    generator = torch.Generator().manual_seed(0)
    for number, (count, rows, columns) in enumerate(((1, 4, 4), (3, 2, 5), (2, 7, 3))):
        vocabulary = vocabularies[number % len(vocabularies)]
        images = torch.randint(0, 256, (count, 3, rows * divisor, columns * divisor), generator=generator, device="cpu")
        images = images.to(model.device, torch.float32)
        outputs = model.inference(
            [{"image": image, "vocabulary": vocabulary} for image in images], output=program.output, proposals=False
        )
        expected = torch.stack([x["sem_seg" if program.output == "scores" else "sem_seg_labels"] for x in outputs])
        yield {"images": images, **({} if baked else vocabulary_inputs(model, vocabulary))}, expected


def export(
    predictor: AlignZegPredictor,
    path: Path,
    *,
    file_format: str,
    output: str = "scores",
    vocabulary_input: bool = False,
    opset: int | None = None,
) -> float:
    """Export a predictor's model with its vocabulary, and compare the file with the model.

    Args:
        predictor: with its vocabulary set.
        path: of the file; with ``vocabulary_input``, ``path`` with the ending .vocabulary.npz gets the two inputs of the
            predictor's vocabulary.
        file_format: "onnx" or "torch_export".
        output: "scores" or "labels".
        vocabulary_input: leave the vocabulary open.
        opset: of ONNX, see :data:`zeroshot_d2.export.OPSETS`; None: the lowest.

    Returns:
        the greatest difference of a score, or the largest share of pixels with another label.

    Raises:
        ValueError: unknown format, output or opset, a wrong ending of ``path``, the model sees images in several windows or
            sizes, or the difference is too large.
    """
    check_path(path, file_format)
    check_opset(opset, file_format)
    vocabulary = predictor.vocabulary
    model = predictor.model
    if not model.looks.once:
        raise ValueError("an exported model sees each image once: set TEST.SLIDE.ENABLED and TEST.AUG.ENABLED False")
    program = ExportableAlignZeg(model, None if vocabulary_input else vocabulary, output).eval()
    cfg = predictor.cfg
    description = Description(
        output=output,
        input_format=cfg.INPUT.FORMAT,
        size_divisibility=model.size_divisibility,
        short_side=cfg.INPUT.MIN_SIZE_TEST,
        max_side=cfg.INPUT.MAX_SIZE_TEST,
        padding=tuple(cfg.MODEL.PIXEL_MEAN),
        names=None if vocabulary_input else vocabulary.names,
        prompts=None if vocabulary_input else vocabulary.prompts_for(model.names),
        unseen=None if vocabulary_input else vocabulary.unseen,
    )
    inputs = {"images": torch.zeros(2, 3, 3 * model.size_divisibility, 5 * model.size_divisibility, device=model.device)}
    vocabularies = [vocabulary]
    if vocabulary_input:
        save_vocabulary(path, vocabulary.names, vocabulary_inputs(model, vocabulary))
        other = predictor.marked(["person", "animal", "plant", "thing"])
        vocabularies.append(other)
        inputs.update(vocabulary_inputs(model, other))  # several classes, whatever the vocabulary's number
    shapes = free_dimensions(program, inputs)
    traced = trace(program, inputs, shapes)
    run = write(traced, path, file_format, asdict(description), DESCRIPTION_KEY, shapes=shapes, opset=opset)
    measure, tolerance = (greatest_difference, TOLERANCE) if output == "scores" else (share_of_others, LABEL_TOLERANCE)
    difference = largest_difference(run, examples(program, vocabularies, baked=not vocabulary_input), measure)
    check_difference(difference, tolerance, path)
    return difference


class Exporter:
    """See :class:`zeroshot_d2.commands.export.Exporter`."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """``--returns``."""
        parser.add_argument(
            "--returns", choices=OUTPUTS, default="scores", help="(N, K, H, W) scores or (N, H, W) class indices"
        )

    @staticmethod
    def export(predictor: AlignZegPredictor, args: argparse.Namespace) -> str:
        """Write ``args.output``; says how far it is from the model."""
        difference = export(
            predictor,
            args.output,
            file_format=args.format,
            output=args.returns,
            vocabulary_input=args.vocabulary_input,
            opset=args.opset,
        )
        what = "greatest difference of scores" if args.returns == "scores" else "share of pixels with another label"
        return f"{what} from PyTorch: {difference:.1g}"
