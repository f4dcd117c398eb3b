"""Epsilon (Fig. 2): the meta-architecture.

Shapes: N images, S side of the image, L tokens, G groups (the paper's M), K classes of the vocabulary, D width of the
backbone, E length of the label vectors (the paper's d_w).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from epsilon_d2.modeling.average_pooling import AveragePooling
from epsilon_d2.modeling.criterion import Criterion
from epsilon_d2.modeling.gfp import GlobalForwardPropagation
from epsilon_d2.modeling.gpa import GroupPromptsAggregation
from epsilon_d2.modeling.semantic_fuser import SemanticFuser, class_scores
from epsilon_d2.tagger import Tagger, positive_matrix
from zeroshot_d2.defaults import plain_defaults
from zeroshot_d2.shared_pass import distinct_images
from zeroshot_d2.vocabulary import training_vocabulary, vocabulary_of


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
class Epsilon(Tagger):
    """Multi-label zero-shot classification with Group Prompts Aggregation (GPA) and Global Forward Propagation (GFP)."""

    @plain_defaults()
    @configurable
    def __init__(
        self,
        *,
        gpa: GroupPromptsAggregation | None,
        gfp: GlobalForwardPropagation | None,
        average_pooling: AveragePooling | None,
        semantic_fuser: SemanticFuser,
        criterion: Criterion,
        return_attention: bool = False,
        **frozen: Any,
    ) -> None:
        """
        Args:
            gpa, gfp: None for a model without.
            average_pooling: in their place for a model without both.
            semantic_fuser: Eq. 8.
            criterion: Eq. 13.
            return_attention: also return where the groups look, unless a call of :meth:`inference` says otherwise.
            frozen: as for :class:`epsilon_d2.tagger.Tagger`.
        """
        super().__init__(**frozen)
        self.gpa, self.gfp, self.average_pooling = gpa, gfp, average_pooling
        self.semantic_fuser = semantic_fuser
        self.criterion = criterion
        self.return_attention = return_attention

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        epsilon = cfg.MODEL.EPSILON
        frozen = cls.frozen_parts(cfg)
        width, groups = frozen["backbone"].output_shape()["tokens"].channels, epsilon.NUM_GROUPS
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
            **frozen,
            "gpa": gpa,
            "gfp": gfp,
            "average_pooling": average_pooling,
            "semantic_fuser": SemanticFuser(
                width=width,
                num_parts=2 if gpa is not None and gfp is not None else 1,
                label_width=len(frozen["label_mean"]),
            ),
            "criterion": Criterion(
                reg_weight=epsilon.LOSS.LAMBDA, rank_form=epsilon.LOSS.RANK_FORM, variance_form=epsilon.LOSS.VARIANCE
            ),
            "return_attention": epsilon.TEST.RETURN_ATTENTION,
        }

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

        Inputs that hold the same tensor, with several vocabularies, share one pass through the network.

        Returns:
            a dict per image with ``scores`` (K,), one per class of the vocabulary in its order, and, when asked for,
            ``group_attention`` and ``global_attention`` (G, h, w): the share of each patch in what a group sees, without
            [CLS]; and ``group_of_class`` (K,): which group gave each score.
        """
        attention = self.return_attention if attention is None else attention
        first, which = distinct_images(batched_inputs)
        with self.mixed():
            semantics = self._semantics_of([batched_inputs[i] for i in first])
        vocabularies = [vocabulary_of(inputs, self.default_vocabulary) for inputs in batched_inputs]
        vectors = {vocabulary: self.label_vectors(vocabulary) for vocabulary in set(vocabularies)}
        return [
            self._classify(semantics, i, vectors[vocabulary], attention)
            for i, vocabulary in zip(which, vocabularies, strict=True)
        ]

    def _semantics_of(self, batched_inputs: list[dict[str, Any]]) -> Semantics:
        return self.extract_semantics(self.images_of(batched_inputs))

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
        return attention[:, -side * side :].float().unflatten(-1, (side, side))
