"""Epsilon (Fig. 2): the meta-architecture.

Shapes: N images, S side of the image, L tokens, G groups (the paper's M), K classes of the vocabulary, D width of the
backbone, E length of the label vectors (the paper's d_w).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from epsilon_d2.modeling.average_pooling import AveragePooling
from epsilon_d2.modeling.backbone import FrozenViT
from epsilon_d2.modeling.criterion import Criterion
from epsilon_d2.modeling.gfp import GlobalForwardPropagation
from epsilon_d2.modeling.gpa import GroupPromptsAggregation
from epsilon_d2.modeling.semantic_fuser import SemanticFuser, class_scores
from zeroshot_d2.checkpoint import Knowledge
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.clip.loader import create_clip, fingerprint
from zeroshot_d2.clip.text import ClipTextEmbeddings, get_templates
from zeroshot_d2.frozen import leave_out_frozen
from zeroshot_d2.vocabulary import is_registered, split_of_dataset, training_vocabulary, vocabulary_of
from zeroshot_d2.word_vectors import WordVectorEmbeddings, centred

LabelEmbeddings = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class Semantics:
    """What an image means, independent of any vocabulary.

    Attributes:
        vectors: S (N, G, E).
        group_attention: (N, G, L), where GPA's groups look; None without GPA.
        global_attention: (N, G, L), where GFP's blocks look, averaged over their channels; None without GFP.
    """

    vectors: Tensor
    group_attention: Tensor | None
    global_attention: Tensor | None


@META_ARCH_REGISTRY.register()
class Epsilon(nn.Module):
    """Multi-label zero-shot classification with Group Prompts Aggregation (GPA) and Global Forward Propagation (GFP)."""

    pixel_mean: Tensor
    pixel_std: Tensor
    label_mean: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        gpa: GroupPromptsAggregation | None,
        gfp: GlobalForwardPropagation | None,
        average_pooling: AveragePooling | None,
        semantic_fuser: SemanticFuser,
        criterion: Criterion,
        label_embeddings: LabelEmbeddings,
        label_mean: Tensor,
        unit_length: bool,
        frozen_record: dict[str, dict[str, str]],
        trained_classes: Collection[str],
        default_vocabulary: ClassSplit | None,
        image_size: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        return_attention: bool = False,
    ) -> None:
        """
        Args:
            backbone: frozen, gives {"tokens": F (N, L, D)}.
            gpa, gfp: None for a model without.
            average_pooling: in their place for a model without both.
            semantic_fuser: Eq. 8.
            criterion: Eq. 13.
            label_embeddings: prompts -> unit vectors (K, E).
            label_mean: (E,), subtracted from all label vectors; zeros leave them as they are.
            unit_length: whether label vectors are brought to unit length behind it.
            frozen_record: what backbone and label vectors are; written into checkpoints and compared when one is loaded.
            trained_classes: names and prompt texts of the classes that the model is trained on.
            default_vocabulary: of inputs that name neither a data set nor a vocabulary.
            image_size: S.
            pixel_mean, pixel_std: per channel.
            return_attention: also return where the groups look, unless a call of :meth:`inference` says otherwise.
        """
        super().__init__()
        self.backbone = backbone
        self.gpa, self.gfp, self.average_pooling = gpa, gfp, average_pooling
        self.semantic_fuser = semantic_fuser
        self.criterion = criterion
        self.label_embeddings = label_embeddings
        self.trained_classes = frozenset(trained_classes)
        self.default_vocabulary = default_vocabulary
        self.image_size = image_size
        self.return_attention = return_attention
        self.register_buffer("label_mean", label_mean)
        self.unit_length = unit_length
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        leave_out_frozen(self, ["backbone"], frozen_record)
        self.result_facts = frozen_record

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        epsilon = cfg.MODEL.EPSILON
        backbone = build_backbone(cfg)
        _check_pixel_stats(backbone, cfg)
        label_embeddings, label_record = build_label_embeddings(cfg)
        record = {
            "backbone": {
                "class": cfg.MODEL.BACKBONE.NAME,
                "name": epsilon.BACKBONE.NAME,
                "pretrained": epsilon.BACKBONE.PRETRAINED,
                "sha256": backbone.identity if isinstance(backbone, FrozenViT) else fingerprint(backbone),
            },
            "label embeddings": label_record,
        }
        knowledge = Knowledge.of_config(cfg, record)
        splits = [split_of_dataset(name) for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST] if is_registered(name)]
        if not splits and knowledge.vocabulary is not None:
            splits = [knowledge.vocabulary]
        if not splits:
            raise ValueError("DATASETS.TRAIN and DATASETS.TEST are empty: Epsilon needs the vocabulary of one of them")
        training_vectors = label_embeddings(splits[0].prompts)
        label_width = training_vectors.shape[1]
        centre = epsilon.LABEL_EMBEDDINGS.CENTRE

        width, groups = backbone.output_shape()["tokens"].channels, epsilon.NUM_GROUPS
        gpa = gfp = average_pooling = None
        if epsilon.GPA.ENABLED:
            gpa = GroupPromptsAggregation(
                width=width,
                num_groups=groups,
                encoder_layers=epsilon.GPA.ENCODER_LAYERS,
                encoder_heads=epsilon.GPA.ENCODER_HEADS,
                encoder_ffn=epsilon.GPA.ENCODER_FFN,
                dropout=epsilon.GPA.DROPOUT,
                scaled=epsilon.GPA.SCALED,
            )
        if epsilon.GFP.ENABLED:
            gfp = GlobalForwardPropagation(width=width, num_groups=groups, mlp_ratio=epsilon.GFP.MLP_RATIO)
        if gpa is None and gfp is None:
            average_pooling = AveragePooling(width=width, num_groups=groups)
        return {
            "backbone": backbone,
            "gpa": gpa,
            "gfp": gfp,
            "average_pooling": average_pooling,
            "semantic_fuser": SemanticFuser(
                width=width, num_parts=2 if gpa is not None and gfp is not None else 1, label_width=label_width
            ),
            "criterion": Criterion(
                reg_weight=epsilon.LOSS.LAMBDA, rank_form=epsilon.LOSS.RANK_FORM, variance_form=epsilon.LOSS.VARIANCE
            ),
            "label_embeddings": label_embeddings,
            "label_mean": training_vectors.mean(dim=0) if centre else torch.zeros(label_width),
            "unit_length": epsilon.LABEL_EMBEDDINGS.NORMALISE,
            "frozen_record": record,
            "trained_classes": knowledge.trained,
            "default_vocabulary": knowledge.vocabulary,
            "image_size": cfg.INPUT.IMAGE_SIZE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "return_attention": epsilon.TEST.RETURN_ATTENTION,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """
        Args:
            batched_inputs: a dict per image with

                * ``image``: (3, H, W) in the format of cfg.INPUT.FORMAT; other sizes than (S, S) are squeezed to it;
                * ``positive_labels``: indices of the classes present, for training; all others count as absent;
                * ``vocabulary``: class names or a ClassSplit; else ``dataset_name``: a registered data set, whose vocabulary
                  is used; else the model's default vocabulary.

        Returns:
            in training a dict of weighted losses; otherwise what :meth:`inference` returns.
        """
        if not self.training:
            return self.inference(batched_inputs)
        semantics = self._semantics_of(batched_inputs)
        vocabulary = training_vocabulary(batched_inputs, self.default_vocabulary)
        positive = positive_matrix([inputs["positive_labels"] for inputs in batched_inputs], len(vocabulary))
        return self.criterion(semantics.vectors, self.label_vectors(vocabulary), positive.to(self.device))

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict[str, Any]], *, attention: bool | None = None) -> list[dict[str, Tensor]]:
        """
        Args:
            batched_inputs: as for :meth:`forward`.
            attention: whether to return where the groups look; by default what the config says.

        Returns:
            a dict per image with ``scores`` (K,), one per class of the vocabulary in its order, and, when asked for,
            ``group_attention`` and ``global_attention`` (G, h, w): the share of each patch in what a group sees, without
            [CLS]; and ``group_of_class`` (K,): which group gave each score.
        """
        attention = self.return_attention if attention is None else attention
        semantics = self._semantics_of(batched_inputs)
        vocabularies = [vocabulary_of(inputs, self.default_vocabulary) for inputs in batched_inputs]
        vectors = {vocabulary: self.label_vectors(vocabulary) for vocabulary in set(vocabularies)}
        return [self._classify(semantics, i, vectors[vocabulary], attention) for i, vocabulary in enumerate(vocabularies)]

    def _semantics_of(self, batched_inputs: list[dict[str, Any]]) -> Semantics:
        return self.extract_semantics(torch.stack([self._prepare(inputs["image"]) for inputs in batched_inputs]))

    def extract_semantics(self, images: Tensor) -> Semantics:
        """Everything that does not depend on a vocabulary: ``images`` (N, 3, S, S), normalised."""
        tokens = self.backbone(images)["tokens"]
        parts: list[Tensor] = []
        group_attention = global_attention = None
        if self.gfp is not None:
            global_semantics, global_attention = self.gfp(tokens)
            parts.append(global_semantics)
        if self.gpa is not None:
            group_semantics, group_attention = self.gpa(tokens)
            parts.append(group_semantics)
        if self.average_pooling is not None:
            parts.append(self.average_pooling(tokens))
        return Semantics(self.semantic_fuser(parts), group_attention, global_attention)

    def label_vectors(self, vocabulary: ClassSplit) -> Tensor:
        """(K, E) of a vocabulary, in its order."""
        vectors = self.label_embeddings(vocabulary.prompts).to(self.device)
        return centred(vectors, self.label_mean, unit_length=self.unit_length)

    def _classify(self, semantics: Semantics, index: int, label_vectors: Tensor, with_attention: bool) -> dict[str, Tensor]:
        """The output of one image of the batch; ``label_vectors`` (K, E)."""
        vectors = semantics.vectors[index].float()
        result = {"scores": class_scores(vectors[None], label_vectors)[0]}
        if with_attention:
            result["group_of_class"] = (vectors @ label_vectors.T).argmax(dim=0)
            for name in ("group_attention", "global_attention"):
                attention = getattr(semantics, name)
                if attention is not None:
                    result[name] = self._on_patches(attention[index])
        return result

    def _on_patches(self, attention: Tensor) -> Tensor:
        """(G, L) -> (G, h, w)."""
        side = self.image_size // self.backbone.patch_size
        return attention[:, -side * side :].unflatten(-1, (side, side))

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
    rows = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    columns = torch.from_numpy(np.concatenate([np.asarray(labels, dtype=np.int64) for labels in positive_labels]))
    if len(columns) and not (columns.min() >= 0 and columns.max() < num_classes):
        raise ValueError(
            f"labels [{columns.min()}, {columns.max()}] are not all among the {num_classes} classes of the vocabulary"
        )
    matrix = torch.zeros(len(counts), num_classes, dtype=torch.bool)
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
        words = WordVectorEmbeddings(keys.FILE, unit_length=keys.NORMALISE)
        return words, {"source": "file", "file": keys.FILE, "sha256": words.weights_hash}
    if not keys.NORMALISE:
        raise ValueError(
            'MODEL.EPSILON.LABEL_EMBEDDINGS.NORMALISE False goes with SOURCE "file" only: CLIP compares directions'
        )
    if keys.SOURCE == "clip":
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


def _check_pixel_stats(backbone: Backbone, cfg: CfgNode) -> None:
    """Raises ValueError where the config normalises images otherwise than the backbone's weights were trained with."""
    stats = getattr(backbone, "pixel_stats", None)
    if stats is None:
        return
    expected = stats if cfg.INPUT.FORMAT == "RGB" else tuple(tuple(reversed(values)) for values in stats)
    for key, values in zip(("PIXEL_MEAN", "PIXEL_STD"), expected, strict=True):
        if not np.allclose(values, cfg.MODEL[key], atol=0.05):
            raise ValueError(
                f"MODEL.{key} is {list(cfg.MODEL[key])}, but the weights {cfg.MODEL.EPSILON.BACKBONE.PRETRAINED!r} of "
                f"{cfg.MODEL.EPSILON.BACKBONE.NAME!r} were trained with {[round(value, 3) for value in values]} "
                f"(in {cfg.INPUT.FORMAT})"
            )
