"""What segmenters share whose classes are CLIP's text prototypes: normalised images, vocabularies, prototypes.

Shapes: N images, K classes of the vocabulary, D embedding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList
from torch import Tensor, nn

from ..class_split import ClassSplit, Names
from ..clip.frozen_clip import FrozenClip
from ..clip.text import ClipTextEmbeddings
from ..precision import mixed, precision_at_test
from ..training_stream import using_seeds
from ..vocabulary import training_vocabulary
from .labels import IGNORE_LABEL, check_range


class TextSegmenter(nn.Module):
    """A segmenter by text prototypes. A subclass gives :meth:`losses` and :meth:`inference`."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        text_embeddings: ClipTextEmbeddings,
        names: Names,
        trained_classes: Collection[str],
        default_vocabulary: ClassSplit | None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        precision: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            text_embeddings: prompts -> T (K, D).
            names: which texts of a vocabulary they are made of.
            trained_classes: names and prompt texts of the classes that the model is trained on; they are "seen".
            default_vocabulary: of inputs that name neither a data set nor a vocabulary.
            pixel_mean, pixel_std: per channel.
            precision: of the network at test time; None: float32.
        """
        super().__init__()
        self.text_embeddings, self.names = text_embeddings, names
        self.result_facts = {"class_names": names, "templates": list(text_embeddings.templates)}
        self.trained_classes = frozenset(trained_classes)
        self.default_vocabulary = default_vocabulary
        self.precision = precision
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @staticmethod
    def text_parts(cfg: CfgNode, clip: FrozenClip) -> dict[str, Any]:
        """The arguments of this class, from a config and its CLIP."""
        return {
            "text_embeddings": clip.text_embeddings,
            "names": clip.names,
            "trained_classes": clip.knowledge.trained,
            "default_vocabulary": clip.knowledge.vocabulary,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "precision": precision_at_test(cfg),
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def mixed(self) -> AbstractContextManager[None]:
        """A block of the network's computations at test time, in TEST.PRECISION."""
        return mixed(self.device, self.precision)

    @property
    @abstractmethod
    def size_divisibility(self) -> int:
        """Image sides are padded to a multiple of this."""

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """
        Args:
            batched_inputs: a dict per image with

                * ``image``: (3, H, W) in the format of cfg.INPUT.FORMAT;
                * ``sem_seg``: (H, W) class indices, for training;
                * ``height``, ``width``: size of the output, by default that of ``image``;
                * ``vocabulary``: class names or a ClassSplit; else ``dataset_name``: a registered data set, whose vocabulary
                  is used; else the model's default vocabulary.

        Returns:
            in training a dict of weighted losses; otherwise what :meth:`inference` returns.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = ImageList.from_tensors([self.normalised(x) for x in batched_inputs], self.size_divisibility)
        sem_seg = ImageList.from_tensors(
            [x["sem_seg"].to(self.device) for x in batched_inputs], self.size_divisibility, pad_value=IGNORE_LABEL
        )
        vocabulary = training_vocabulary(batched_inputs, self.default_vocabulary)
        check_range(sem_seg.tensor, len(vocabulary))
        with using_seeds(batched_inputs):
            return self.losses(images.tensor, sem_seg.tensor, vocabulary)

    @abstractmethod
    def losses(self, images: Tensor, sem_seg: Tensor, vocabulary: ClassSplit) -> dict[str, Tensor]:
        """The weighted losses of a padded batch.

        ``images`` (N, 3, H, W), normalised; ``sem_seg`` (N, H, W) class indices of ``vocabulary`` or IGNORE_LABEL.
        """

    @abstractmethod
    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A dict per image, with ``sem_seg`` (K, H, W) or ``sem_seg_labels`` (H, W)."""

    def seen_mask(self, vocabulary: ClassSplit) -> Tensor:
        """(K,) bool: classes the model was trained on, by name or synonym, unless the vocabulary calls them unseen."""
        return torch.from_numpy(vocabulary.trained_mask(self.trained_classes) & vocabulary.seen_mask).to(self.device)

    def prototypes(self, vocabulary: ClassSplit) -> Tensor:
        """Text prototypes T (K, D) of a vocabulary."""
        return self.text_embeddings(vocabulary.prompts_for(self.names)).to(self.device)

    def normalised(self, inputs: dict[str, Any]) -> Tensor:
        """The image of an input (3, H, W), normalised."""
        return (inputs["image"].to(self.device) - self.pixel_mean) / self.pixel_std
