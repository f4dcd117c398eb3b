"""A segmenter and a tagger outside the packages: a contributor's file, brought by ``--import toy_methods.py``.

Both compare features of a small CNN with text prototypes of the demo world's CLIP, so that any vocabulary can be used.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from zeroshot_d2 import System, register_system
from zeroshot_d2.checkpoint import Knowledge
from zeroshot_d2.clip.text import ClipTextEmbeddings, get_templates
from zeroshot_d2.demo_world import register_demo_world, register_demo_world_multilabel
from zeroshot_d2.vocabulary import training_vocabulary, vocabulary_of

WIDTH = 96  # of the demo world's text prototypes


class ToyBase(nn.Module):
    """Pixels -> unit features -> scores of a vocabulary."""

    @configurable
    def __init__(self, *, knowledge: Knowledge) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, WIDTH, 1))
        self.texts = ClipTextEmbeddings(
            name="demo-world-clip", pretrained="bundled", templates=get_templates("single"), weights_hash="toy"
        )
        self.knowledge = knowledge

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"knowledge": Knowledge.of_config(cfg)}

    def scores(self, inputs: dict[str, Any], vocabulary: Any) -> Tensor:
        """(K, h, w)."""
        features = F.normalize(self.net(inputs["image"][None].float() / 255)[0], dim=0)
        return torch.einsum("kd,dhw->khw", self.texts(vocabulary.prompts), features)


@META_ARCH_REGISTRY.register()
class ToySegmenter(ToyBase):
    def forward(self, batch: list[dict[str, Any]]) -> Any:
        if self.training:
            vocabulary = training_vocabulary(batch, self.knowledge.vocabulary)
            losses = [
                F.cross_entropy(10 * self.scores(x, vocabulary)[None], x["sem_seg"][None], ignore_index=65535) for x in batch
            ]
            return {"loss_ce": torch.stack(losses).mean()}
        return [{"sem_seg": self.scores(x, vocabulary_of(x, self.knowledge.vocabulary))} for x in batch]


@META_ARCH_REGISTRY.register()
class ToyTagger(ToyBase):
    def forward(self, batch: list[dict[str, Any]]) -> Any:
        if not self.training:
            return [{"scores": self.scores(x, vocabulary_of(x, self.knowledge.vocabulary)).amax(dim=(1, 2))} for x in batch]
        vocabulary = training_vocabulary(batch, self.knowledge.vocabulary)
        losses = []
        for x in batch:
            target = torch.zeros(len(vocabulary))
            target[torch.as_tensor(x["positive_labels"])] = 1
            losses.append(F.binary_cross_entropy_with_logits(10 * self.scores(x, vocabulary).amax(dim=(1, 2)), target))
        return {"loss_bce": torch.stack(losses).mean()}


def add_toy_config(cfg: CfgNode) -> None:
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.TOY = CfgNode({"ANYTHING": 1})
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    cfg.INPUT.IMAGE_SIZE = 64
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SOLVER.MAX_ITER = 2
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.TEST.IMS_PER_BATCH = 3
    cfg.DATALOADER.NUM_WORKERS = 0


register_system(System("ToySegmenter", "segmentation", add_toy_config))
register_system(System("ToyTagger", "multilabel", add_toy_config))

register_demo_world("toy_masks_train", seed=41, num_images=8, vocabulary="seen")
register_demo_world("toy_masks_val", seed=42, num_images=6)
register_demo_world_multilabel("toy_tags_train", seed=41, num_images=8, vocabulary="seen")
register_demo_world_multilabel("toy_tags_val", seed=42, num_images=6)
