"""What the compared taggers share: a head on the frozen tokens of Epsilon's backbone.

Image, backbone, label vectors, vocabularies, labels and evaluation are Epsilon's, so that a comparison is one of heads and
losses. A method brings a head and a function of losses.

Shapes: N images, h * w = L patches, D width of the backbone, K classes of the vocabulary, E length of the label vectors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.layers import NaiveSyncBatchNorm
from torch import Tensor, nn

from epsilon_d2.tagger import Tagger, positive_matrix
from zeroshot_d2.defaults import plain_defaults
from zeroshot_d2.shared_pass import distinct_images
from zeroshot_d2.vocabulary import training_vocabulary, vocabulary_of


@dataclass(frozen=True)
class Tokens:
    """What the frozen backbone gives.

    Attributes:
        patches: (N, D, h, w).
        cls: the [CLS] token (N, D), where the method uses it.
    """

    patches: Tensor
    cls: Tensor | None = None


class Head(nn.Module):
    """What learns."""

    @abstractmethod
    def forward(self, tokens: Tokens) -> Any:
        """Everything that does not depend on a vocabulary."""

    @abstractmethod
    def scores(self, encoded: Any, label_vectors: Tensor) -> Tensor:
        """What :meth:`forward` gave, and label vectors (K, E) -> a score per class (N, K)."""


class TokenTagger(Tagger):
    """Frozen tokens, a head, and scores for any vocabulary; the head runs in full precision."""

    uses_cls_token: ClassVar[bool] = False

    @plain_defaults()
    @configurable
    def __init__(
        self,
        *,
        head: Head,
        loss: Mapping[str, Any],
        skip_unlabelled: bool = False,
        max_labels: int = 0,
        **frozen: Any,
    ) -> None:
        """
        Args:
            head: of the method.
            loss: the settings of its loss.
            skip_unlabelled: learn nothing from images without a label.
            max_labels: learn nothing from images with more labels; 0: no limit.
            frozen: as for :class:`epsilon_d2.tagger.Tagger`.
        """
        super().__init__(**frozen)
        self.head = head
        self.loss = dict(loss)
        self.skip_unlabelled, self.max_labels = skip_unlabelled, max_labels

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        frozen = cls.frozen_parts(cfg)
        if cls.uses_cls_token != cfg.MODEL.EPSILON.BACKBONE.CLS_TOKEN:
            raise ValueError(
                f"MODEL.EPSILON.BACKBONE.CLS_TOKEN is {cfg.MODEL.EPSILON.BACKBONE.CLS_TOKEN}: "
                f"{cfg.MODEL.META_ARCHITECTURE} needs {cls.uses_cls_token}"
            )
        shape = frozen["backbone"].output_shape()["tokens"]
        side = cfg.INPUT.IMAGE_SIZE // shape.stride
        parts = cls.method_parts(cfg, width=shape.channels, side=side, label_width=len(frozen["label_mean"]))
        return {**frozen, **parts}

    @classmethod
    @abstractmethod
    def method_parts(cls, cfg: CfgNode, *, width: int, side: int, label_width: int) -> dict[str, Any]:
        """The other arguments of ``__init__``, with the head for ``side`` x ``side`` patches."""

    @abstractmethod
    def losses(self, encoded: Any, label_vectors: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The weighted losses of a batch.

        Args:
            encoded: what the head gave.
            label_vectors: (K, E) of the training vocabulary.
            labels: (N, K), see :func:`signed_labels`.
        """

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """
        Args:
            batched_inputs: as for :meth:`epsilon_d2.epsilon.Epsilon.forward`; ``negative_labels`` are read as well.

        Returns:
            in training a dict of weighted losses; otherwise a dict per image with ``scores`` (K,), one per class of its
            vocabulary.
        """
        if not self.training:
            return self.inference(batched_inputs)
        vocabulary = training_vocabulary(batched_inputs, self.default_vocabulary)
        labels = signed_labels(batched_inputs, len(vocabulary))
        used = self._images_to_learn_from(labels)
        if used.any():
            labels = labels[used]
            batched_inputs = [inputs for inputs, use in zip(batched_inputs, used.tolist(), strict=True) if use]
        tokens = self._tokens_of(batched_inputs)
        with torch.autocast(self.device.type, enabled=False):  # half precision would round scores to three digits
            losses = self.losses(self.head(tokens), self.label_vectors(vocabulary), labels.to(self.device))
        return losses if used.any() else {name: 0.0 * loss for name, loss in losses.items()}

    def _images_to_learn_from(self, labels: Tensor) -> Tensor:
        """(N,) bool."""
        count = (labels == 1).sum(dim=1)
        return (count >= int(self.skip_unlabelled)) & (count <= (self.max_labels or labels.shape[1]))

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """``batched_inputs`` as for :meth:`forward` -> a dict per image with ``scores`` (K,)."""
        first, which = distinct_images(batched_inputs)
        with self.mixed():
            tokens = self._tokens_of([batched_inputs[i] for i in first])
        vocabularies = [vocabulary_of(inputs, self.default_vocabulary) for inputs in batched_inputs]
        with torch.autocast(self.device.type, enabled=False):
            encoded = self.head(tokens)
            scores = {
                vocabulary: self.head.scores(encoded, self.label_vectors(vocabulary)) for vocabulary in set(vocabularies)
            }
        return [{"scores": scores[vocabulary][i]} for i, vocabulary in zip(which, vocabularies, strict=True)]

    def _tokens_of(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Tokens:
        tokens = self.backbone(self.images_of(batched_inputs))["tokens"].float()
        cls = tokens[:, 0] if self.uses_cls_token else None
        patches = tokens[:, 1:] if self.uses_cls_token else tokens
        side = round(patches.shape[1] ** 0.5)
        return Tokens(patches.transpose(1, 2).unflatten(-1, (side, side)), cls)


def signed_labels(batched_inputs: Sequence[Mapping[str, Any]], num_classes: int) -> Tensor:
    """The labels of a batch: 1 present, -1 absent, 0 not annotated.

    In a data set with complete labels, as all are that do not say otherwise, every class without a label is absent.

    Args:
        batched_inputs: with ``positive_labels`` and, where labels are incomplete, ``negative_labels``.
        num_classes: K.

    Returns:
        (N, K) int8.

    Raises:
        ValueError: a label outside the vocabulary.
    """
    positive = positive_matrix([inputs["positive_labels"] for inputs in batched_inputs], num_classes)
    negative = positive_matrix([inputs.get("negative_labels", ()) for inputs in batched_inputs], num_classes)
    complete = torch.tensor([_labels_are_complete(inputs) for inputs in batched_inputs], device=positive.device)
    return torch.where(positive, 1, torch.where(negative | complete[:, None], -1, 0)).to(torch.int8)


def _labels_are_complete(inputs: Mapping[str, Any]) -> bool:
    return "dataset_name" not in inputs or getattr(MetadataCatalog.get(inputs["dataset_name"]), "labels_complete", True)


def batch_norm(channels: int, *, momentum: float, eps: float = 1e-5) -> nn.Module:
    """A batch norm of maps over the images of all processes, so that their number changes nothing."""
    return NaiveSyncBatchNorm(channels, stats_mode="N", momentum=momentum, eps=eps)


def train_with(
    cfg: CfgNode, *, optimizer: str, batch_size: int, base_lr: float, max_epochs: int = 0, weight_decay: float = 0.0
) -> None:
    """Set a constant learning rate, and one weight decay for everything that learns, as torch's optimisers have it."""
    cfg.SOLVER.OPTIMIZER = optimizer
    cfg.SOLVER.IMS_PER_BATCH = batch_size
    cfg.SOLVER.BASE_LR = base_lr
    cfg.SOLVER.MAX_EPOCHS = max_epochs
    cfg.SOLVER.STEPS_EPOCHS = []
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupMultiStepLR"
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.WEIGHT_DECAY = weight_decay
    cfg.SOLVER.WEIGHT_DECAY_NORM = weight_decay
    cfg.SOLVER.WEIGHT_DECAY_EMBED = weight_decay
    cfg.SOLVER.WEIGHT_DECAY_EMBED_NAMES = []
    cfg.SOLVER.CHECKPOINT_PERIOD = 5000
