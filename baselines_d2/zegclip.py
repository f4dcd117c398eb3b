"""ZegCLIP (Zhou et al., CVPR 2023): one stage, in which class names ask CLIP's patch tokens where they are.

CLIP's image tower is tuned by deep prompts. Each class is a query, made of its text prototype and the image's [CLS]; in a
small decoder it attends to the patches, and the products of its last attention are the class's mask.

Shapes: N images, K classes of the vocabulary, L patches of a grid (h, w), C width of CLIP, D embedding, (H, W) the image.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from alignzeg_d2.modeling.clip_image_encoder import ClipImageEncoder
from alignzeg_d2.modeling.criterion import mean_over_processes
from alignzeg_d2.modeling.losses import dice_loss
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.clip.frozen_clip import FrozenClip
from zeroshot_d2.clip.text import template_set
from zeroshot_d2.clip.towers import VisionTower, resize_positions, tower_of
from zeroshot_d2.defaults import plain_defaults
from zeroshot_d2.frozen import leave_out_frozen
from zeroshot_d2.pixel_stats import PixelStats
from zeroshot_d2.ranges import check_multiple, check_ranges, choice, declare, number, whole
from zeroshot_d2.segmentation.config import add_segmentation_config
from zeroshot_d2.segmentation.labels import IGNORE_LABEL
from zeroshot_d2.segmentation.text_segmenter import TextSegmenter
from zeroshot_d2.system import System
from zeroshot_d2.vocabulary import vocabulary_of

# With which ZegCLIP normalises images, although CLIP was trained with other statistics.
IMAGENET = PixelStats(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


# ------------------------------------------------------------------------------------------------------------ config
def add_zegclip_config(cfg: CfgNode) -> None:
    """Add ``cfg.MODEL.ZEGCLIP`` and set Detectron2's own keys to what ZegCLIP trains with. Defaults are PASCAL VOC's."""
    add_segmentation_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ZegCLIP"
    cfg.INPUT.FORMAT = "RGB"
    # As its authors have it.
    cfg.MODEL.PIXEL_MEAN = list(IMAGENET.mean)
    cfg.MODEL.PIXEL_STD = list(IMAGENET.std)

    zegclip = cfg.MODEL.ZEGCLIP = CfgNode()
    # Side in pixels for which the positions are laid out, and of the windows at test time.
    zegclip.IMAGE_SIZE = 512

    # ---- CLIP ----
    zegclip.CLIP = CfgNode()
    # An open_clip model name. OpenAI's weights need QuickGELU, hence "-quickgelu".
    zegclip.CLIP.NAME = "ViT-B-16-quickgelu"
    # An open_clip tag, a local weights file, "bundled" (the demo world's CLIP) or "" (random weights).
    zegclip.CLIP.PRETRAINED = "openai"
    # What stands for a class in the templates, and the templates ("vild" on COCO-Stuff), as for MODEL.ALIGNZEG.CLIP.
    zegclip.CLIP.NAMES = "released"
    zegclip.CLIP.TEMPLATES = "single"

    # ---- deep prompts ----
    zegclip.PROMPTS = CfgNode()
    zegclip.PROMPTS.NUMBER = 10  # per block; 100 on COCO-Stuff
    # How many blocks behind the first have prompts; behind them there are none.
    zegclip.PROMPTS.DEPTH = 11
    zegclip.PROMPTS.DROPOUT = 0.1

    # ---- decoder ----
    zegclip.DECODER = CfgNode()
    zegclip.DECODER.LAYERS = 3
    zegclip.DECODER.HEADS = 8
    zegclip.DECODER.DROPOUT = 0.1

    # ---- objective ----
    zegclip.LOSS = CfgNode()
    zegclip.LOSS.MASK_WEIGHT = 100.0  # of the focal loss
    zegclip.LOSS.DICE_WEIGHT = 1.0
    # The transductive second stage: the training set's vocabulary holds the unseen classes too, whose labels are not read;
    # their pixels take the best unseen class of the current model. MODEL.WEIGHTS is the first stage's checkpoint.
    zegclip.SELF_TRAINING = False

    # ---- inference ----
    zegclip.TEST = CfgNode()
    zegclip.TEST.STRIDE = 426  # pixels between windows
    # Taken from the scores of seen classes, unless SELF_TRAINING is on.
    zegclip.TEST.SEEN_DISCOUNT = 0.1

    # ---- input ----
    cfg.INPUT.MIN_SIZE_TRAIN = (256, 1024)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    cfg.INPUT.MAX_SIZE_TRAIN = 4096
    cfg.INPUT.MIN_SIZE_TEST = 512
    cfg.INPUT.MAX_SIZE_TEST = 2048
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [512, 512]
    cfg.INPUT.COLOR_AUG_SSD = True
    cfg.INPUT.RANDOM_FLIP = "horizontal"

    # ---- solver: 2e-5, of which prompts and head take the tenfold ----
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.IMS_PER_BATCH = 16
    cfg.SOLVER.BASE_LR = 2e-4
    cfg.SOLVER.MAX_ITER = 20000
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 5e-3
    cfg.SOLVER.WARMUP_ITERS = 1500
    cfg.SOLVER.WARMUP_FACTOR = 1e-6
    cfg.SOLVER.WEIGHT_DECAY = 0.01
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.01
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.01
    cfg.SOLVER.AMP.ENABLED = False
    cfg.SOLVER.CHECKPOINT_PERIOD = 5000
    cfg.TEST.EVAL_PERIOD = 5000
    cfg.SEED = 1


declare(
    "MODEL.ZEGCLIP",
    {
        "IMAGE_SIZE": whole(1),
        "CLIP.NAMES": choice("released", "reworded"),
        "CLIP.TEMPLATES": template_set(),
        "PROMPTS.NUMBER": whole(1),
        "PROMPTS.DEPTH": whole(1),
        "PROMPTS.DROPOUT": number(0, below=1),
        "DECODER.LAYERS": whole(1),
        "DECODER.HEADS": whole(1),
        "DECODER.DROPOUT": number(0, below=1),
        "LOSS.MASK_WEIGHT": number(0),
        "LOSS.DICE_WEIGHT": number(0),
        "TEST.STRIDE": whole(1),
        "TEST.SEEN_DISCOUNT": number(0),
    },
)


# ----------------------------------------------------------------------------------------------------- image encoder
class PromptedClip(ClipImageEncoder):
    """All of CLIP's image tower, frozen, under deep prompts."""

    def __init__(self, visual: VisionTower, *, image_size: int, num_prompts: int, depth: int, dropout: float = 0.1) -> None:
        """
        Args:
            visual: open_clip's image tower with [CLS].
            image_size: the side in pixels for which the positions are laid out.
            num_prompts: learnt tokens per block.
            depth: how many blocks behind the first have them.
            dropout: of prompts.

        Raises:
            ValueError: there are fewer blocks, or patches do not fill the image.
        """
        tower = tower_of(visual)
        blocks = len(tower.blocks)
        if depth >= blocks:
            raise ValueError(f"MODEL.ZEGCLIP.PROMPTS.DEPTH must be below the number of CLIP's blocks {blocks}, got {depth}")
        check_multiple("MODEL.ZEGCLIP.IMAGE_SIZE", image_size, "CLIP's patch size", tower.patch_size)
        super().__init__(
            visual,
            num_layers=blocks,
            num_prompts=num_prompts,
            prompted_layers=depth + 1,
            prompt_projection=True,
            prompt_dropout=dropout,
            position_mode="bilinear",
        )
        assert isinstance(self.prompt_projection, nn.Linear)
        nn.init.kaiming_normal_(self.prompt_projection.weight, mode="fan_out")
        self.ln_post, self.projection = tower.norm, tower.projection
        for parameter in (*self.ln_post.parameters(), *self.projection.parameters()):
            parameter.requires_grad_(False)
        self.prompt_norm = nn.LayerNorm(self.width, eps=1e-6)
        # ZegCLIP lays the positions out for its crop once, and from there for other sizes.
        grid = (image_size // self.patch_size, image_size // self.patch_size)
        if grid != tuple(self._trained_grid):
            patches = resize_positions(self.positional_embedding[1:], self._trained_grid, grid, "bilinear")
            laid_out = torch.cat([self.positional_embedding[:1], patches]).detach()
            self.positional_embedding, self._trained_grid = nn.Parameter(laid_out, requires_grad=False), grid

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``images`` (N, 3, H, W), normalised -> patches (N, D, h, w) and [CLS] (N, D) of unit length."""
        (features,), tokens = self.tapped(images, [0])
        embedded = F.normalize(self.projection(self.ln_post(self.prompt_norm(tokens))), dim=-1)
        return embedded[:, 1:].transpose(1, 2).unflatten(-1, features.shape[-2:]), embedded[:, 0]

    def _positions(self, height: int, width: int) -> Tensor:
        """ZegCLIP's position of [CLS] has the class embedding in it, which thus counts twice."""
        positions = super()._positions(height, width)
        return torch.cat([positions[:1] + self.class_embedding, positions[1:]])


# ----------------------------------------------------------------------------------------------------------- decoder
class CrossAttention(nn.Module):
    """Attention that also tells its products before the softmax, as the mean over its heads."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        check_multiple("the width of CLIP's embedding", width, "MODEL.ZEGCLIP.DECODER.HEADS", num_heads)
        self.num_heads, self.dropout = num_heads, dropout
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def products(self, queries: Tensor, memory: Tensor) -> Tensor:
        """``queries`` (N, K, D), ``memory`` (N, L, D) -> (N, K, L)."""
        q, k = self.query(queries), self.key(memory)  # the mean over heads is one product over all of them
        return q @ k.transpose(1, 2) / (self.num_heads * q.shape[-1]) ** 0.5

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """``queries`` (N, K, D), ``memory`` (N, L, D) -> (N, K, D)."""
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in (self.query(queries), self.key(memory), self.value(memory))
        )
        found = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out(found.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Cross-attention and a feed-forward network, each with a norm behind it. Queries do not see one another."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = CrossAttention(width, num_heads, dropout)
        self.norm_attention = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.norm_feed_forward = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """``queries`` (N, K, D), ``memory`` (N, L, D) -> (N, K, D)."""
        queries = self.norm_attention(queries + self.dropout(self.attention(queries, memory)))
        return self.norm_feed_forward(queries + self.dropout(self.feed_forward(queries)))


class TextDecoder(nn.Module):
    """Class queries from the relationship descriptor, and their masks."""

    def __init__(self, *, width: int, num_layers: int, num_heads: int, dropout: float = 0.1) -> None:
        """``width`` is D; the rest are the decoder's own."""
        super().__init__()
        self.descriptor = nn.Linear(2 * width, width)
        layer = DecoderLayer(width, num_heads, dropout)
        # All start equal. Of the last one only the products are used: what is behind them gets no gradient.
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(num_layers))

    def queries(self, cls: Tensor, prototypes: Tensor) -> Tensor:
        """[CLS] (N, D) and T (K, D) -> class queries (N, K, D)."""
        texts = prototypes.expand(len(cls), -1, -1)
        return self.descriptor(torch.cat([cls[:, None] * texts, texts], dim=-1))

    def forward(self, patches: Tensor, cls: Tensor, prototypes: Tensor) -> Tensor:
        """Patches (N, D, h, w), [CLS] (N, D) and T (K, D) -> mask logits (N, K, h, w)."""
        memory = patches.flatten(2).transpose(1, 2)
        queries = self.queries(cls, prototypes)
        for layer in self.layers[:-1]:
            queries = layer(queries, memory)
        last = self.layers[-1]
        assert isinstance(last, DecoderLayer)
        return last.attention.products(queries, memory).unflatten(-1, patches.shape[-2:])


# --------------------------------------------------------------------------------------------------------- objective
def focal_loss(logits: Tensor, sem_seg: Tensor, count: Tensor) -> Tensor:
    """The focal loss of all classes at all pixels, ignored ones being negatives, as the mean over a map's pixels.

    Args:
        logits: (N, K, H, W).
        sem_seg: (N, H, W).
        count: by which the sum over images and classes is divided.
    """
    total = logits.new_zeros(())
    for image, truth in zip(logits, sem_seg, strict=True):  # image by image: one of targets for all takes gigabytes
        classes = torch.arange(len(image), device=truth.device)
        targets = (truth[None] == classes[:, None, None]).to(image.dtype)
        total = total + sigmoid_focal_loss(image, targets, alpha=0.25, gamma=2.0).mean(dim=(1, 2)).sum()
    return total / count


def present_dice_loss(logits: Tensor, sem_seg: Tensor, count: Tensor) -> Tensor:
    """The dice loss of the classes that an image has; arguments as for :func:`focal_loss`."""
    total = logits.sum() * 0.0
    for image, truth in zip(logits, sem_seg, strict=True):
        present = truth[truth != IGNORE_LABEL].unique()
        targets = (truth[None] == present[:, None, None]).to(image.dtype)
        total = total + dice_loss(image[present].flatten(1), targets.flatten(1)).sum()
    return total / count


def with_pseudo_labels(sem_seg: Tensor, logits: Tensor, unseen: Tensor) -> Tensor:
    """Labels in which the pixels of unseen classes have the unseen class of the largest logit.

    ``sem_seg`` (N, H, W), ``logits`` (N, K, H, W), ``unseen`` (K,) bool.
    """
    hidden = (sem_seg != IGNORE_LABEL) & unseen[sem_seg.clamp(max=len(unseen) - 1)]
    best = logits.detach().masked_fill(~unseen[:, None, None], float("-inf")).argmax(dim=1)
    return torch.where(hidden, best, sem_seg)


def accuracy(logits: Tensor, sem_seg: Tensor) -> float:
    """The share of labelled pixels, in percent, whose largest logit is that of their class; 0 where none is labelled."""
    labelled = sem_seg != IGNORE_LABEL
    right = (logits.argmax(dim=1) == sem_seg) & labelled
    return 100.0 * right.sum().item() / max(1, int(labelled.sum()))


# ------------------------------------------------------------------------------------------------- meta-architecture
@META_ARCH_REGISTRY.register()
class ZegCLIP(TextSegmenter):
    """CLIP under deep prompts, and a decoder from class names to masks."""

    @plain_defaults()
    @configurable
    def __init__(
        self,
        *,
        clip_image_encoder: PromptedClip,
        decoder: TextDecoder,
        clip_identity: dict[str, str],
        window: int,
        stride: int,
        mask_weight: float = 100.0,
        dice_weight: float = 1.0,
        self_training: bool = False,
        seen_discount: float = 0.1,
        **texts: Any,
    ) -> None:
        """
        Args:
            clip_image_encoder, decoder: the two parts.
            clip_identity: name, tag and fingerprint of CLIP; written into checkpoints and compared when they are loaded.
            window, stride: side of the windows at test time, and the distance between them, in pixels.
            mask_weight, dice_weight: of the losses.
            self_training: whether pixels of unseen classes get pseudo labels in training.
            seen_discount: taken from the scores of seen classes unless ``self_training``.
            texts: as for :class:`zeroshot_d2.segmentation.text_segmenter.TextSegmenter`.

        Raises:
            ValueError: windows would leave gaps.
        """
        super().__init__(**texts)
        if stride > window:
            raise ValueError(f"MODEL.ZEGCLIP.TEST.STRIDE {stride} exceeds IMAGE_SIZE {window}: windows would leave gaps")
        self.clip_image_encoder, self.decoder = clip_image_encoder, decoder
        self.window, self.stride = window, stride
        self.mask_weight, self.dice_weight = mask_weight, dice_weight
        self.self_training, self.seen_discount = self_training, seen_discount
        leave_out_frozen(self, ["clip_image_encoder"], {"CLIP": clip_identity})

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_ranges(cfg)
        zegclip = cfg.MODEL.ZEGCLIP
        clip = FrozenClip.of_config(cfg, "ZEGCLIP", also_pixel_stats=[IMAGENET])
        return {
            "clip_image_encoder": PromptedClip(
                clip.visual,
                image_size=zegclip.IMAGE_SIZE,
                num_prompts=zegclip.PROMPTS.NUMBER,
                depth=zegclip.PROMPTS.DEPTH,
                dropout=zegclip.PROMPTS.DROPOUT,
            ),
            "decoder": TextDecoder(
                width=clip.embedding_dim,
                num_layers=zegclip.DECODER.LAYERS,
                num_heads=zegclip.DECODER.HEADS,
                dropout=zegclip.DECODER.DROPOUT,
            ),
            "clip_identity": clip.identity,
            "window": zegclip.IMAGE_SIZE,
            "stride": zegclip.TEST.STRIDE,
            "mask_weight": zegclip.LOSS.MASK_WEIGHT,
            "dice_weight": zegclip.LOSS.DICE_WEIGHT,
            "self_training": zegclip.SELF_TRAINING,
            "seen_discount": zegclip.TEST.SEEN_DISCOUNT,
            **cls.text_parts(cfg, clip),
        }

    @property
    def size_divisibility(self) -> int:
        return self.clip_image_encoder.patch_size

    def mask_logits(self, images: Tensor, prototypes: Tensor) -> Tensor:
        """``images`` (N, 3, H, W), normalised, of whole patches, and T (K, D) -> (N, K, H, W)."""
        logits = self.decoder(*self.clip_image_encoder(images), prototypes)
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)

    def losses(self, images: Tensor, sem_seg: Tensor, vocabulary: ClassSplit) -> dict[str, Tensor]:
        """
        Raises:
            ValueError: self-training without an unseen class in the vocabulary.
        """
        logits = self.mask_logits(images, self.prototypes(vocabulary)).float()
        if self.self_training:
            if not vocabulary.unseen:
                raise ValueError(
                    "MODEL.ZEGCLIP.SELF_TRAINING needs a training set whose vocabulary holds the unseen classes, such as "
                    "voc2012_train_all"
                )
            sem_seg = with_pseudo_labels(sem_seg, logits, torch.from_numpy(vocabulary.unseen_mask).to(self.device))
        pairs = sum(len(truth[truth != IGNORE_LABEL].unique()) for truth in sem_seg)
        count = mean_over_processes(torch.tensor(pairs, dtype=torch.float32, device=self.device)).clamp(min=1)
        if has_event_storage():
            get_event_storage().put_scalar("zegclip/pixel_accuracy", accuracy(logits, sem_seg))
        return {
            "loss_mask": self.mask_weight * focal_loss(logits, sem_seg, count),
            "loss_dice": self.dice_weight * present_dice_loss(logits, sem_seg, count),
        }

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Each image by itself, in windows.

        Returns:
            a dict per image with ``sem_seg`` (K, H, W), the scores of the classes of the vocabulary in its order.
        """
        results = []
        for inputs in batched_inputs:
            image, vocabulary = self.normalised(inputs), vocabulary_of(inputs, self.default_vocabulary)
            scores = self.windowed_scores(image, vocabulary)
            size = (inputs.get("height", image.shape[-2]), inputs.get("width", image.shape[-1]))
            if size != scores.shape[-2:]:
                scores = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
            results.append({"sem_seg": scores})
        return results

    def windowed_scores(self, image: Tensor, vocabulary: ClassSplit) -> Tensor:
        """Scores (K, H, W) of an image (3, H, W), normalised: the mean of the windows that a pixel lies in."""
        height, width = image.shape[-2:]
        prototypes = self.prototypes(vocabulary)
        corners = [(top, left) for top in self._starts(height) for left in self._starts(width)]
        size = (min(height, self.window), min(width, self.window))
        patch = self.size_divisibility
        padding = (0, -size[1] % patch, 0, -size[0] % patch)  # where an image is smaller than a window
        total = image.new_zeros(len(vocabulary), height, width)
        times = image.new_zeros(height, width)
        for top, left in corners:
            where = (..., slice(top, top + size[0]), slice(left, left + size[1]))
            with self.mixed():
                logits = self.mask_logits(F.pad(image[where], padding)[None], prototypes)[0, :, : size[0], : size[1]]
            total[where] += logits.float().sigmoid()
            times[where] += 1
        discount = 0.0 if self.self_training else self.seen_discount
        return total / times - discount * self.seen_mask(vocabulary).float()[:, None, None]

    def _starts(self, side: int) -> list[int]:
        """Where windows start along a side: the last one is shifted inside."""
        number = max(side - self.window + self.stride - 1, 0) // self.stride + 1
        return [max(0, min(index * self.stride, side - self.window)) for index in range(number)]


SYSTEM = System(name="ZegCLIP", task="segmentation", add_config=add_zegclip_config)
