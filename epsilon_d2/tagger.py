"""What Epsilon shares with the methods that it is compared with: frozen tokens, label vectors, vocabularies.

All read ``MODEL.EPSILON.BACKBONE`` and ``MODEL.EPSILON.LABEL_EMBEDDINGS``: they differ in what lies between the two alone.

Shapes: N images, S side of the image, L tokens, K classes of the vocabulary, D width of the backbone, E length of the label
vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import timm
import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_backbone
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from epsilon_d2.modeling.backbone import FrozenViT
from zeroshot_d2.checkpoint import Knowledge
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.clip.loader import create_clip, fingerprint
from zeroshot_d2.clip.text import ClipTextEmbeddings, get_templates
from zeroshot_d2.frozen import leave_out_frozen
from zeroshot_d2.pixel_stats import check_pixel_stats
from zeroshot_d2.precision import mixed, precision_at_test
from zeroshot_d2.ranges import about, check_ranges
from zeroshot_d2.vocabulary import is_registered, split_of_dataset
from zeroshot_d2.word_vectors import WordVectorEmbeddings, centred

LabelEmbeddings = Callable[[Sequence[str]], Tensor]


class Tagger(nn.Module):
    """A frozen backbone and label vectors; what a subclass adds between them learns."""

    pixel_mean: Tensor
    pixel_std: Tensor
    label_mean: Tensor
    compiled_parts = ("backbone",)

    def __init__(
        self,
        *,
        backbone: Backbone,
        label_embeddings: LabelEmbeddings,
        label_mean: Tensor,
        unit_length: bool,
        frozen_record: dict[str, dict[str, str]],
        trained_classes: Collection[str],
        default_vocabulary: ClassSplit | None,
        image_size: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        precision: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            backbone: frozen, gives {"tokens": F (N, L, D)}.
            label_embeddings: prompts -> unit vectors (K, E).
            label_mean: (E,), subtracted from all label vectors; zeros leave them as they are.
            unit_length: whether label vectors are brought to unit length behind it.
            frozen_record: what backbone and label vectors are; written into checkpoints and compared when one is loaded.
            trained_classes: names and prompt texts of the classes that the model is trained on.
            default_vocabulary: of inputs that name neither a data set nor a vocabulary.
            image_size: S.
            pixel_mean, pixel_std: per channel.
            precision: of the network at test time; None: float32.
        """
        super().__init__()
        self.precision = precision
        self.backbone = backbone
        self.label_embeddings = label_embeddings
        self.trained_classes = frozenset(trained_classes)
        self.default_vocabulary = default_vocabulary
        self.image_size = image_size
        self.register_buffer("label_mean", label_mean)
        self.unit_length = unit_length
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        leave_out_frozen(self, ["backbone"], frozen_record)
        self.result_facts = frozen_record

    @classmethod
    def frozen_parts(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments of :class:`Tagger` from a config.

        Raises:
            ValueError: a key is wrong, the pixel statistics are not those of the weights, or there is no vocabulary.
        """
        check_ranges(cfg)
        keys = cfg.MODEL.EPSILON
        backbone = build_backbone(cfg)
        if isinstance(backbone, FrozenViT):
            name, pretrained = keys.BACKBONE.NAME, keys.BACKBONE.PRETRAINED
            weights = f"the weights {pretrained!r} of {name!r}"
            with about("MODEL.EPSILON.BACKBONE", NAME=name, PRETRAINED=pretrained):
                check_pixel_stats(cfg, backbone.pixel_stats, weights, certain=backbone.known_weights)
        label_embeddings, label_record = build_label_embeddings(cfg)
        record = {
            "backbone": {
                "class": cfg.MODEL.BACKBONE.NAME,
                "name": keys.BACKBONE.NAME,
                "pretrained": keys.BACKBONE.PRETRAINED,
                "sha256": backbone.identity if isinstance(backbone, FrozenViT) else fingerprint(backbone),
            },
            "label embeddings": label_record,
        }
        knowledge = Knowledge.of_config(cfg, record)
        splits = [split_of_dataset(name) for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST] if is_registered(name)]
        if not splits and knowledge.vocabulary is not None:
            splits = [knowledge.vocabulary]
        if not splits:
            name = cfg.MODEL.META_ARCHITECTURE
            raise ValueError(f"DATASETS.TRAIN and DATASETS.TEST are empty: {name} needs the vocabulary of one of them")
        training_vectors = label_embeddings(splits[0].prompts)
        mean = training_vectors.mean(dim=0)
        return {
            "backbone": backbone,
            "label_embeddings": label_embeddings,
            "label_mean": mean if keys.LABEL_EMBEDDINGS.CENTRE else torch.zeros_like(mean),
            "unit_length": keys.LABEL_EMBEDDINGS.NORMALISE,
            "frozen_record": record,
            "trained_classes": knowledge.trained,
            "default_vocabulary": knowledge.vocabulary,
            "image_size": cfg.INPUT.IMAGE_SIZE,
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

    def label_vectors(self, vocabulary: ClassSplit) -> Tensor:
        """(K, E) of a vocabulary, in its order."""
        vectors = self.label_embeddings(vocabulary.prompts).to(self.device)
        return centred(vectors, self.label_mean, unit_length=self.unit_length)

    def images_of(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Tensor:
        """The images of a batch (N, 3, S, S), normalised."""
        return torch.stack([self._prepare(inputs["image"]) for inputs in batched_inputs])

    def _prepare(self, image: Tensor) -> Tensor:
        """(3, H, W) -> (3, S, S), normalised."""
        image = image.to(self.device)
        size = [self.image_size, self.image_size]
        if list(image.shape[-2:]) != size:
            image = transforms.resize(image, size, antialias=True)
        return (image - self.pixel_mean) / self.pixel_std


def positive_matrix(positive_labels: Sequence[Any], num_classes: int) -> Tensor:
    """Sparse labels of N images -> (N, K) bool.

    Raises:
        ValueError: an index outside the vocabulary.
    """
    counts = [len(labels) for labels in positive_labels]
    rows = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    columns = torch.from_numpy(np.concatenate([np.asarray(labels, dtype=np.int64) for labels in positive_labels]))
    if len(columns) and not (columns.min() >= 0 and columns.max() < num_classes):
        raise ValueError(
            f"labels [{columns.min()}, {columns.max()}] are not all among the {num_classes} classes of the vocabulary"
        )
    matrix = torch.zeros(len(counts), num_classes, dtype=torch.bool, device="cpu")
    matrix[rows, columns] = True
    return matrix


def build_label_embeddings(cfg: CfgNode) -> tuple[LabelEmbeddings, dict[str, str]]:
    """The label vectors of ``MODEL.EPSILON.LABEL_EMBEDDINGS``, and what a checkpoint records of them.

    Raises:
        ValueError: unknown source.
        FileNotFoundError: the file of word vectors is missing.
    """
    keys = cfg.MODEL.EPSILON.LABEL_EMBEDDINGS
    if keys.SOURCE == "file":
        with about("MODEL.EPSILON.LABEL_EMBEDDINGS", FILE=keys.FILE):
            words = WordVectorEmbeddings(keys.FILE, unit_length=keys.NORMALISE)
        return words, {"source": "file", "file": keys.FILE, "sha256": words.weights_hash}
    if not keys.NORMALISE:
        raise ValueError(
            'MODEL.EPSILON.LABEL_EMBEDDINGS.NORMALISE False goes with SOURCE "file" only: CLIP compares directions'
        )
    if keys.SOURCE == "clip":
        if timm.is_model(keys.CLIP_NAME):
            raise ValueError(
                f"MODEL.EPSILON.LABEL_EMBEDDINGS.CLIP_NAME {keys.CLIP_NAME!r} is a vision model of timm, which has no text "
                'tower: set SOURCE "file" and give word vectors, or name a CLIP of open_clip, which need not be the backbone'
            )
        with about("MODEL.EPSILON.LABEL_EMBEDDINGS", CLIP_NAME=keys.CLIP_NAME, CLIP_PRETRAINED=keys.CLIP_PRETRAINED):
            clip_hash = fingerprint(create_clip(keys.CLIP_NAME, keys.CLIP_PRETRAINED))
        texts = ClipTextEmbeddings(
            name=keys.CLIP_NAME,
            pretrained=keys.CLIP_PRETRAINED,
            templates=get_templates(keys.TEMPLATES),
            weights_hash=clip_hash,
        )
        record = {"source": "clip", "name": keys.CLIP_NAME, "pretrained": keys.CLIP_PRETRAINED, "templates": keys.TEMPLATES}
        return texts, {**record, "sha256": clip_hash}
    raise ValueError(f"MODEL.EPSILON.LABEL_EMBEDDINGS.SOURCE must be 'file' or 'clip', got {keys.SOURCE!r}")
