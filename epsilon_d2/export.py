"""Epsilon as ONNX or torch.export: one tensor of images in, a score per label out.

The label vectors are baked in, or a second input carries them. The number of images stays free; their size is the one that
the backbone was built for, see :func:`prepare_image`. The file is then run beside the model itself, and the two are
compared.

Shapes: N images, K classes, E length of the label vectors, S side of the image, (H, W) a photo.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.export import Dim
from torchvision.transforms.v2 import functional as transforms

from epsilon_d2.epsilon import Epsilon
from epsilon_d2.modeling.semantic_fuser import class_scores
from epsilon_d2.predictor import EpsilonPredictor
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
    trace,
    write,
)
from zeroshot_d2.images import check_image_array

# The entry of ONNX's metadata and the name of torch.export's extra file under which the description stands.
DESCRIPTION_KEY = "epsilon.json"


@dataclass(frozen=True)
class Description:
    """What a user of the exported file must know.

    Args:
        input_format: channel order, "RGB" or "BGR".
        image_size: S.
        label_width: E.
        output: its name.
        names, prompts, unseen: of the vocabulary baked in; None where it is an input.
    """

    input_format: str
    image_size: int
    label_width: int
    output: str = "scores"
    names: tuple[str, ...] | None = None
    prompts: tuple[str, ...] | None = None
    unseen: tuple[str, ...] | None = None


class ExportableEpsilon(nn.Module):
    """Epsilon as a function of tensors alone: no dicts, no lists, no data sets, no text encoder or word vectors."""

    label_vectors: Tensor | None

    def __init__(self, model: Epsilon, vocabulary: ClassSplit | None) -> None:
        """
        Args:
            model: in evaluation mode.
            vocabulary: baked in; None makes it a second input of ``forward``.
        """
        super().__init__()
        self.model = model
        self.register_buffer("label_vectors", None if vocabulary is None else model.label_vectors(vocabulary))

    def forward(self, images: Tensor, label_vectors: Tensor | None = None) -> Tensor:
        """
        Args:
            images: (N, 3, S, S) in the channel order of cfg.INPUT.FORMAT, 0 to 255.
            label_vectors: (K, E), as ``Epsilon.label_vectors`` gives them, unless baked in.

        Returns:
            scores (N, K).
        """
        label_vectors = self.label_vectors if label_vectors is None else label_vectors
        assert label_vectors is not None, "they are either baked in or an input"
        semantics = self.model.extract_semantics((images - self.model.pixel_mean) / self.model.pixel_std)
        return class_scores(semantics.vectors, label_vectors)


def vocabulary_inputs(model: Epsilon, vocabulary: ClassSplit) -> dict[str, Tensor]:
    """What ``--vocabulary-input`` asks for: ``label_vectors`` (K, E) float."""
    return {"label_vectors": model.label_vectors(vocabulary)}


def prepare_image(image: npt.NDArray[np.uint8], description: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """A photo as the exported program wants it: squeezed to the square, as the model does it.

    Args:
        image: (H, W, 3) uint8 in the channel order of ``description["input_format"]``.
        description: as :func:`read_description` returns it.

    Returns:
        (3, S, S) float.

    Raises:
        ValueError: the image is no such array.
    """
    check_image_array(image, "the model's channel order")
    side = description["image_size"]
    photo = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return transforms.resize(photo, [side, side], antialias=True).numpy().astype(np.float32)


def read_description(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The :class:`Description` in an exported file, as a dict.

    Raises:
        FileNotFoundError, ValueError: as :func:`zeroshot_d2.export.read_metadata`.
    """
    return read_metadata(path, DESCRIPTION_KEY)


def examples(model: Epsilon, vocabularies: Sequence[ClassSplit], baked: bool) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Several numbers of random images, and what the model itself returns for them.

    Args:
        model: what was exported.
        vocabularies: to take turns; with a baked-in vocabulary that one.
        baked: whether the vocabulary is baked in.
    """
    generator = torch.Generator().manual_seed(0)
    for number, count in enumerate((1, 3, 2)):
        vocabulary = vocabularies[number % len(vocabularies)]
        images = torch.randint(0, 256, (count, 3, model.image_size, model.image_size), generator=generator, device="cpu")
        images = images.to(model.device, torch.float32)
        outputs = model([{"image": image, "vocabulary": vocabulary} for image in images])
        expected = torch.stack([output["scores"] for output in outputs])
        yield {"images": images, **({} if baked else vocabulary_inputs(model, vocabulary))}, expected


def export(
    predictor: EpsilonPredictor,
    path: Path,
    *,
    file_format: str,
    vocabulary_input: bool = False,
    opset: int | None = None,
) -> float:
    """Export a predictor's model with its vocabulary, and compare the file with the model.

    Args:
        predictor: with its vocabulary.
        path: of the file; with ``vocabulary_input``, ``path`` with the ending .vocabulary.npz gets the label vectors of the
            predictor's vocabulary.
        file_format: "onnx" or "torch_export".
        vocabulary_input: leave the vocabulary open.
        opset: of ONNX, see :data:`zeroshot_d2.export.OPSETS`; None: the lowest.

    Returns:
        the greatest difference of a score.

    Raises:
        ValueError: unknown format or opset, a wrong ending of ``path``, or the difference is too large.
    """
    check_path(path, file_format)
    check_opset(opset, file_format)
    model, vocabulary = predictor.model, predictor.vocabulary
    program = ExportableEpsilon(model, None if vocabulary_input else vocabulary).eval()
    description = Description(
        input_format=predictor.cfg.INPUT.FORMAT,
        image_size=model.image_size,
        label_width=len(model.label_mean),
        names=None if vocabulary_input else vocabulary.names,
        prompts=None if vocabulary_input else vocabulary.prompts,
        unseen=None if vocabulary_input else vocabulary.unseen,
    )
    inputs = {"images": torch.zeros(2, 3, model.image_size, model.image_size, device=model.device)}
    shapes = {"images": {0: free_images()}}
    vocabularies = [vocabulary]
    if vocabulary_input:
        save_vocabulary(path, vocabulary.names, vocabulary_inputs(model, vocabulary))
        inputs["label_vectors"] = torch.zeros(2, len(model.label_mean), device=model.device)
        shapes["label_vectors"] = {0: Dim("k")}
        if predictor.default_vocabulary is not None:
            vocabularies.append(predictor.default_vocabulary)
    traced = trace(program, inputs, shapes)
    run = write(traced, path, file_format, asdict(description), DESCRIPTION_KEY, shapes=shapes, opset=opset)
    difference = largest_difference(run, examples(model, vocabularies, baked=not vocabulary_input), greatest_difference)
    check_difference(difference, TOLERANCE, path)
    return difference


class Exporter:
    """See :class:`zeroshot_d2.commands.export.Exporter`."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """None."""

    @staticmethod
    def export(predictor: EpsilonPredictor, args: argparse.Namespace) -> str:
        """Write ``args.output``; says how far it is from the model."""
        difference = export(
            predictor,
            args.output,
            file_format=args.format,
            vocabulary_input=args.vocabulary_input,
            opset=args.opset,
        )
        return f"greatest difference of scores from PyTorch: {difference:.1g}"
