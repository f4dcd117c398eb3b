"""Epsilon for people: any vocabulary, with where its groups look when that is wanted.

Shapes: K classes of the vocabulary, G groups, (h, w) the grid of patches, (H, W) an image.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from epsilon_d2.pictures.attention import MODULES, attention_by_module, attention_figure, spoken_labels
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.images import ImageArray
from zeroshot_d2.multilabel.predictor import TagPredictor, Tags, scores_of


class EpsilonPredictor(TagPredictor):
    """Calls take ``attention=True`` for where the groups look.

    Attention is a dict of ``group_attention`` and ``global_attention`` (G, h, w), the share of each patch in what a group of
    GPA and of GFP sees, as far as the model has them, and ``group_of_class`` (K,): which group gave each score.
    """

    options = explanation_needs = ("attention",)

    def results(self, inputs: list[dict[str, Any]], vocabulary: ClassSplit, wanted: frozenset[str]) -> list[Tags]:
        tags = []
        for output in self.model.inference(inputs, attention="attention" in wanted):
            arrays = {key: value.cpu().numpy() for key, value in output.items() if key != "scores"}
            tags.append(Tags(vocabulary, scores_of(output), arrays or None))
        return tags

    def explain(self, image: ImageArray, result: Tags) -> dict[str, Figure]:
        """{"group_attention", "global_attention": where the groups look}; ``image`` is BGR (H, W, 3)."""
        if result.attention is None:
            return {}
        labels = spoken_labels(result)
        return {
            MODULES[module]: attention_figure(
                image[:, :, ::-1], groups, title=f"where each group looks: {module}", labels=labels
            )
            for module, groups in attention_by_module(result).items()
        }
