"""A frozen CLIP as a config names it, with what every system around one needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode

from ..checkpoint import Knowledge
from ..class_split import Names
from ..pixel_stats import PixelStats, check_pixel_stats
from ..ranges import about
from ..vocabulary import is_registered, split_of_dataset
from .loader import Clip, create_clip, embedding_dim, fingerprint, is_tag, pixel_stats
from .text import ClipTextEmbeddings, get_templates
from .towers import VisionTower, checked_vision_tower


@dataclass(frozen=True)
class FrozenClip:
    """CLIP, its image tower, its prototypes, and what a model upon it knows of classes.

    Args:
        clip: on the CPU.
        visual: its image tower.
        embedding_dim: length of the vectors of images and texts.
        identity: name, tag and fingerprint; written into checkpoints and compared when they are loaded.
        text_embeddings: prompts -> prototypes (K, D).
        names: which texts of a vocabulary the prototypes are made of.
        knowledge: from the record of MODEL.WEIGHTS and the registered data sets.
    """

    clip: Clip
    visual: VisionTower
    embedding_dim: int
    identity: dict[str, str]
    text_embeddings: ClipTextEmbeddings
    names: Names
    knowledge: Knowledge

    @classmethod
    def of_config(
        cls, cfg: CfgNode, system: str, *, cls_token: bool = True, also_pixel_stats: Sequence[PixelStats] = ()
    ) -> FrozenClip:
        """That of ``cfg.MODEL.<system>.CLIP``, with its keys NAME, PRETRAINED, NAMES and TEMPLATES.

        The prototypes of all registered data sets are computed now, while the text tower is at hand.

        Args:
            cfg: of the model.
            system: the section of its keys.
            cls_token: whether the system needs an image tower with [CLS], see
                :func:`~zeroshot_d2.clip.towers.checked_vision_tower`.
            also_pixel_stats: with which the system normalises images on purpose, although CLIP's are others.

        Raises:
            ValueError: an unknown name, tag or template set; an image tower that the system cannot use; other pixel
                statistics than the weights were trained with; a data set that is not registered, or weights that were
                trained upon another CLIP.
        """
        keys = cfg.MODEL[system].CLIP
        with about(f"MODEL.{system}.CLIP", NAME=keys.NAME, PRETRAINED=keys.PRETRAINED):
            clip = create_clip(keys.NAME, keys.PRETRAINED)
            visual = checked_vision_tower(clip, keys.NAME, cls_token=cls_token)
            check_pixel_stats(
                cfg,
                pixel_stats(keys.NAME, keys.PRETRAINED),
                f"the weights {keys.PRETRAINED!r} of {keys.NAME!r}",
                certain=is_tag(keys.NAME, keys.PRETRAINED),
                also=also_pixel_stats,
            )
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
        knowledge = Knowledge.of_config(cfg, {"CLIP": identity})
        return cls(clip, visual, embedding_dim(keys.NAME), identity, text_embeddings, keys.NAMES, knowledge)

    @property
    def logit_scale(self) -> float:
        """What CLIP multiplies cosines with, about 100."""
        return self.clip.logit_scale.exp().item()
