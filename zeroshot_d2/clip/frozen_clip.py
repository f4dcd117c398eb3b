"""A frozen CLIP as a config names it, with what every system around one needs."""

from __future__ import annotations

from dataclasses import dataclass

import open_clip
from detectron2.config import CfgNode
from open_clip.transformer import VisionTransformer

from ..checkpoint import Knowledge
from ..class_split import Names
from ..ranges import about
from ..vocabulary import is_registered, split_of_dataset
from .loader import checked_vision_tower, create_clip, fingerprint
from .text import ClipTextEmbeddings, get_templates


@dataclass(frozen=True)
class FrozenClip:
    """CLIP, its image tower, its prototypes, and what a model upon it knows of classes.

    Args:
        clip: on the CPU.
        visual: its image tower.
        identity: name, tag and fingerprint; written into checkpoints and compared when they are loaded.
        text_embeddings: prompts -> prototypes (K, D).
        names: which texts of a vocabulary the prototypes are made of.
        knowledge: from the record of MODEL.WEIGHTS and the registered data sets.
    """

    clip: open_clip.CLIP
    visual: VisionTransformer
    identity: dict[str, str]
    text_embeddings: ClipTextEmbeddings
    names: Names
    knowledge: Knowledge

    @classmethod
    def of_config(cls, cfg: CfgNode, system: str) -> FrozenClip:
        """That of ``cfg.MODEL.<system>.CLIP``, with its keys NAME, PRETRAINED, NAMES and TEMPLATES.

        The prototypes of all registered data sets are computed now, while the text tower is at hand.

        Raises:
            ValueError: an unknown name, tag or template set; a CLIP whose image tower is no plain vision
                transformer; a data set that is not registered, or weights that were trained upon another CLIP.
        """
        keys = cfg.MODEL[system].CLIP
        with about(f"MODEL.{system}.CLIP", NAME=keys.NAME, PRETRAINED=keys.PRETRAINED):
            clip = create_clip(keys.NAME, keys.PRETRAINED)
            visual = checked_vision_tower(clip, keys.NAME)
        identity = {"name": keys.NAME, "pretrained": keys.PRETRAINED, "sha256": fingerprint(clip)}
        text_embeddings = ClipTextEmbeddings(
            name=keys.NAME,
            pretrained=keys.PRETRAINED,
            templates=get_templates(keys.TEMPLATES),
            weights_hash=identity["sha256"],
        )
        for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            if is_registered(dataset):
                text_embeddings(split_of_dataset(dataset).prompts_for(keys.NAMES), clip=clip)
        return cls(clip, visual, identity, text_embeddings, keys.NAMES, Knowledge.of_config(cfg, {"CLIP": identity}))

    @property
    def logit_scale(self) -> float:
        """What CLIP multiplies cosines with, about 100."""
        return self.clip.logit_scale.exp().item()
