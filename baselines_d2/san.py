"""SAN, the side adapter network (Xu et al., CVPR 2023): the segmenter that AlignZeg follows.

Queries run through a small ViT beside CLIP, which reads CLIP's features at a few depths. Its tokens give masks, and biases
for the attention of CLIP's last blocks, where each query's copy of [CLS] reads its proposal. CLIP's trunk, the recognition
in its last blocks, classification, losses and inference are AlignZeg's.

Shapes: N images, Q queries, K classes, C width of CLIP, D width of the side network, E width of the mask decoder, (h, w) the
side network's grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from alignzeg_d2.config import add_proposal_config, leave_out_gepc_and_pbc
from alignzeg_d2.inference import Classified, Seen, of_scores
from alignzeg_d2.modeling.clip_image_encoder import ClipImageEncoder
from alignzeg_d2.modeling.criterion import Predictions
from alignzeg_d2.modeling.feature_fusion import FeatureFusion
from alignzeg_d2.modeling.image_encoder import patch_vit
from alignzeg_d2.modeling.mrpe import proposals_from
from alignzeg_d2.modeling.pixel_decoder import Proposals, mlp
from alignzeg_d2.modeling.semantic_decoder import POOLING, SemanticDecoder
from alignzeg_d2.proposal_segmenter import ProposalSegmenter
from alignzeg_d2.system import build_evaluator
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.clip.frozen_clip import FrozenClip
from zeroshot_d2.clip.text import template_set
from zeroshot_d2.clip.towers import VisionTower, resize_positions, tower_of
from zeroshot_d2.defaults import plain_defaults
from zeroshot_d2.frozen import leave_out_frozen
from zeroshot_d2.ranges import check_multiple, check_ranges, choice, declare, each, number, text, whole
from zeroshot_d2.segmentation.config import add_segmentation_config
from zeroshot_d2.system import System

START_TOKENS = ("cls", "learnt", "cls+learnt")


# ------------------------------------------------------------------------------------------------------------ config
def add_san_config(cfg: CfgNode) -> None:
    """Add ``cfg.MODEL.SAN``, and below ``cfg.MODEL.ALIGNZEG`` the parts that SAN shares with AlignZeg, set as SAN has them.

    With these parts PBC and GEPC can be tried on SAN.
    """
    add_segmentation_config(cfg)
    add_proposal_config(cfg)
    leave_out_gepc_and_pbc(cfg)
    cfg.MODEL.META_ARCHITECTURE = "SAN"
    cfg.MODEL.ALIGNZEG.LOSS.LABELS_AT_POINTS = "bilinear"

    san = cfg.MODEL.SAN = CfgNode()
    # Images are padded to multiples of this many pixels.
    san.SIZE_DIVISIBILITY = 32

    # ---- CLIP ----
    san.CLIP = CfgNode()
    # An open_clip model name. OpenAI's weights need QuickGELU, hence "-quickgelu".
    san.CLIP.NAME = "ViT-B-16-quickgelu"
    # An open_clip tag, a local weights file, "bundled" (the demo world's CLIP) or "" (random weights).
    san.CLIP.PRETRAINED = "openai"
    # Side of CLIP's input as a share of the image's: 0.5 for ViT-B/16 (320 against 640), 0.7 for ViT-L/14-336 (448).
    san.CLIP.RESOLUTION = 0.5
    # Blocks of CLIP before the recognition, which has the rest: 9 of 12 in ViT-B/16, 18 of 24 in ViT-L/14.
    san.CLIP.NUM_LAYERS = 9
    # Whether CLIP's position embeddings learn.
    san.CLIP.TRAIN_POSITIONS = True
    # What stands for a class in the templates, and the templates, as for MODEL.ALIGNZEG.CLIP.
    san.CLIP.NAMES = "released"
    san.CLIP.TEMPLATES = "vild"

    # ---- side network ----
    san.SIDE = CfgNode()
    san.SIDE.IMAGE_SIZE = 640  # position embeddings are laid out for this side
    san.SIDE.PATCH_SIZE = 16
    san.SIDE.WIDTH = 240
    san.SIDE.DEPTH = 8
    san.SIDE.NUM_HEADS = 6
    san.SIDE.DROP_PATH_RATE = 0.0
    san.SIDE.NUM_QUERIES = 100
    # Which features of CLIP go where: "3->1" adds those behind CLIP's block 3 behind block 1 of the side network; 0 is what
    # enters the first block.
    san.SIDE.FUSION = ["0->0", "3->1", "6->2", "9->3"]
    # Numbers of the blocks whose tokens give masks in training, ascending; the last is also the one of the test.
    san.SIDE.SUPERVISED = [7, 8]

    # ---- mask decoder ----
    san.MASK_DECODER = CfgNode()
    san.MASK_DECODER.HIDDEN = 256
    san.MASK_DECODER.WIDTH = 256  # of the space in which queries meet pixels
    san.MASK_DECODER.LAYERS = 3
    # Heads of the attention bias: CLIP's number (12 in ViT-B/16, 16 in ViT-L/14), or 1 for all.
    san.MASK_DECODER.BIAS_HEADS = 12
    # An attention bias for each of CLIP's last blocks, or one for all.
    san.MASK_DECODER.BIAS_PER_BLOCK = False
    # A learnt factor and offset of the bias.
    san.MASK_DECODER.RESCALE_BIAS = True

    # ---- recognition ----
    san.RECOGNITION = CfgNode()
    # How the bias comes to CLIP's grid: "max", "avg" (both adaptive pooling), "bilinear" or "bicubic".
    san.RECOGNITION.POOLING = "max"
    # What a proposal's token starts from: "cls", copies of [CLS]; "learnt", a token of its own for each query; or their sum.
    san.RECOGNITION.START_TOKEN = "cls"

    # ---- inference ----
    san.TEST = CfgNode()
    # How masks reach the output size. "once": interpolated once, as in AlignZeg. "twice": to the padded image, cut, and to
    # the output, as in SAN. "scores": to the padded image, cut, and the classes' scores to the output, SAN's other order.
    # The last two hold Q or K maps of full size.
    san.TEST.UPSAMPLING = "once"

    # ---- solver: what differs from AlignZeg's ----
    cfg.SOLVER.IMS_PER_BATCH = 32
    cfg.SOLVER.MAX_ITER = 60000
    cfg.SOLVER.WEIGHT_DECAY_EMBED_NAMES = ["pos_embed", "positional_embedding", "query_embed", "query_pos_embed"]


declare(
    "MODEL.SAN",
    {
        "SIZE_DIVISIBILITY": whole(1),
        "CLIP.RESOLUTION": number(above=0),
        "CLIP.NUM_LAYERS": whole(1),
        "CLIP.NAMES": choice("released", "reworded"),
        "CLIP.TEMPLATES": template_set(),
        **{f"SIDE.{name}": whole(1) for name in ("IMAGE_SIZE", "PATCH_SIZE", "WIDTH", "DEPTH", "NUM_HEADS", "NUM_QUERIES")},
        "SIDE.DROP_PATH_RATE": number(0, below=1),
        "SIDE.FUSION": each(text()),
        "SIDE.SUPERVISED": each(whole(1), least=1),
        **{f"MASK_DECODER.{name}": whole(1) for name in ("HIDDEN", "WIDTH", "LAYERS", "BIAS_HEADS")},
        "RECOGNITION.POOLING": choice(*POOLING),
        "RECOGNITION.START_TOKEN": choice(*START_TOKENS),
        "TEST.UPSAMPLING": choice("once", "twice", "scores"),
    },
)


# ------------------------------------------------------------------------------------------------------ side network
class SideNetwork(nn.Module):
    """A plain ViT over queries and patches, to whose patches CLIP's features are added at a few depths."""

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        num_queries: int,
        clip_width: int,
        fusion: Mapping[int, int],
        supervised: Sequence[int],
        drop_path_rate: float = 0.0,
    ) -> None:
        """
        Args:
            image_size: the side in pixels for which the position embeddings are laid out; other sizes interpolate them.
            patch_size, width, depth, num_heads, drop_path_rate: of the ViT.
            num_queries: Q.
            clip_width: C.
            fusion: {block of the ViT: block of CLIP}, counted from 1; 0 is before the first.
            supervised: numbers of the blocks whose tokens are returned in training, ascending.

        Raises:
            ValueError: a block that the ViT does not have; patches that do not fill the image, heads that do not share the
                width.
        """
        super().__init__()
        check_multiple("MODEL.SAN.SIDE.IMAGE_SIZE", image_size, "MODEL.SAN.SIDE.PATCH_SIZE", patch_size)
        check_multiple("MODEL.SAN.SIDE.WIDTH", width, "MODEL.SAN.SIDE.NUM_HEADS", num_heads)
        if not set(fusion) <= set(range(depth + 1)):
            raise ValueError(f"MODEL.SAN.SIDE.FUSION leads to block {max(fusion)}, and there are {depth}")
        if list(supervised) != sorted({*supervised}) or supervised[-1] > depth:
            raise ValueError(
                f"MODEL.SAN.SIDE.SUPERVISED must be ascending numbers of blocks up to {depth}, got {list(supervised)}"
            )
        vit = patch_vit(image_size, patch_size, width, depth, num_heads, drop_path_rate)
        self.patch_embed, self.pos_embed, self.blocks = vit.patch_embed.proj, vit.pos_embed, vit.blocks
        self._trained_grid = (image_size // patch_size, image_size // patch_size)
        self.query_embed = nn.Parameter(torch.empty(1, num_queries, width))
        self.query_pos_embed = nn.Parameter(torch.empty(1, num_queries, width))
        for embedding in (self.query_embed, self.query_pos_embed):
            nn.init.normal_(embedding, std=0.02)
        self.fusion = dict(fusion)
        # SAN's channel norm adds 1e-6 to a variance, torch's LayerNorm 1e-5.
        self.fusions = nn.ModuleDict(
            {str(block): FeatureFusion(clip_width=clip_width, width=width, norm_eps=1e-6) for block in fusion}
        )
        for fusion_layer in self.fusions.values():
            c2_xavier_fill(fusion_layer.project)
        self.supervised = list(supervised)

    def forward(self, images: Tensor, clip_features: Mapping[int, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """
        Args:
            images: (N, 3, H, W), normalised, H and W divisible by the patch size.
            clip_features: {block: (N, C, h', w')} of the blocks that ``fusion`` names.

        Returns:
            queries (N, Q, D) and patches (N, D, h, w) of the supervised blocks, in their order; in evaluation of the last.
        """
        patches = self.patch_embed(images)
        grid = patches.shape[-2:]
        num_queries = self.query_embed.shape[1]
        positions = torch.cat([self.query_pos_embed, self._positions((grid[0], grid[1]))], dim=1)
        queries = self.query_embed.expand(len(images), -1, -1)
        x = torch.cat([queries, patches.flatten(2).transpose(1, 2)], dim=1) + positions
        x = self._fuse(0, x, grid, clip_features)
        wanted = self.supervised if self.training else self.supervised[-1:]
        found = []
        for index, block in enumerate(self.blocks[: wanted[-1]], start=1):
            x = self._fuse(index, block(x), grid, clip_features)
            if index in wanted:
                found.append((x[:, :num_queries], x[:, num_queries:].transpose(1, 2).unflatten(-1, grid)))
            x = x + positions
        return found

    def _fuse(self, index: int, x: Tensor, grid: torch.Size, clip_features: Mapping[int, Tensor]) -> Tensor:
        if index not in self.fusion:
            return x
        num_queries = self.query_embed.shape[1]
        patches = x[:, num_queries:].transpose(1, 2).unflatten(-1, grid)
        fused = self.fusions[str(index)](patches, clip_features[self.fusion[index]])
        return torch.cat([x[:, :num_queries], fused.flatten(2).transpose(1, 2)], dim=1)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """(1, h*w, D)."""
        if grid == self._trained_grid:
            return self.pos_embed
        return resize_positions(self.pos_embed[0], self._trained_grid, grid)[None]


class MaskDecoder(nn.Module):
    """Masks and attention biases as products of queries and patches, each behind a perceptron."""

    def __init__(
        self, *, side_width: int, hidden: int, width: int, layers: int, num_biases: int, rescale: bool = True
    ) -> None:
        """
        Args:
            side_width: D.
            hidden, layers: of the three perceptrons.
            width: E.
            num_biases: of each query: heads, or blocks times heads.
            rescale: whether a factor and an offset of the bias learn.
        """
        super().__init__()
        self.num_biases = num_biases
        self.query_mlp = mlp(side_width, hidden, width, layers, nn.ReLU)
        self.pixel_mlp = mlp(side_width, hidden, width, layers, nn.ReLU)
        self.bias_mlp = mlp(side_width, hidden, width * num_biases, layers, nn.ReLU)
        self.bias_scaling = nn.Linear(1, 1) if rescale else None

    def forward(self, queries: Tensor, patches: Tensor) -> Proposals:
        """``queries`` (N, Q, D) and ``patches`` (N, D, h, w) -> masks and attention biases, (N, blocks * heads, Q, h, w)."""
        z = patches.flatten(2).transpose(1, 2)
        size = (patches.shape[-2], patches.shape[-1])
        found = proposals_from(self.query_mlp(queries), self.pixel_mlp(z), self.bias_mlp(z), self.num_biases, size)
        if self.bias_scaling is None:
            return found
        bias = found.attention_bias * self.bias_scaling.weight.squeeze() + self.bias_scaling.bias.squeeze()
        return Proposals(found.mask_logits, bias)


class Recognition(SemanticDecoder):
    """AlignZeg's semantic decoder with SAN's choice of what the proposals' tokens start from."""

    def __init__(self, *, visual: VisionTower, start_token: str = "cls", num_queries: int = 0, **arguments: Any) -> None:
        """
        Args:
            visual: of CLIP.
            start_token: "cls", "learnt" or "cls+learnt".
            num_queries: Q, where tokens are learnt.
            arguments: as for :class:`~alignzeg_d2.modeling.semantic_decoder.SemanticDecoder`.
        """
        super().__init__(visual=visual, **arguments)
        self.from_cls = start_token != "learnt"
        width = tower_of(visual).width
        self.sos_token = None if start_token == "cls" else nn.Parameter(torch.randn(num_queries, 1, width) * 0.02)

    def first_tokens(self, cls: Tensor, num_queries: int) -> Tensor:
        if self.sos_token is None:
            return super().first_tokens(cls, num_queries)
        learnt = self.sos_token.transpose(0, 1).expand(len(cls), -1, -1)
        return cls + learnt if self.from_cls else learnt


# ------------------------------------------------------------------------------------------------- meta-architecture
@META_ARCH_REGISTRY.register()
class SAN(ProposalSegmenter):
    """Proposals by a side network, recognised inside CLIP."""

    @plain_defaults()
    @configurable
    def __init__(
        self,
        *,
        clip_image_encoder: ClipImageEncoder,
        clip_resolution: float,
        side_network: SideNetwork,
        mask_decoder: MaskDecoder,
        recognition: Recognition,
        clip_identity: dict[str, str],
        size_divisibility: int = 32,
        upsampling: str = "once",
        **parts: Any,
    ) -> None:
        """
        Args:
            clip_image_encoder: CLIP's first blocks.
            clip_resolution: side of CLIP's input as a share of the image's.
            side_network, mask_decoder: make masks and attention biases.
            recognition: CLIP's last blocks.
            clip_identity: name, tag and fingerprint of CLIP; written into checkpoints and compared when they are loaded.
            size_divisibility: image sides are padded to multiples of it.
            upsampling: how masks reach the output size, a value of MODEL.SAN.TEST.UPSAMPLING.
            parts: what classifies the proposals, as for :class:`~alignzeg_d2.proposal_segmenter.ProposalSegmenter`.

        Raises:
            ValueError: scores are to be brought to the output size, and images to be seen in several ways.
        """
        super().__init__(**parts)
        if upsampling == "scores" and not self.looks.once:
            raise ValueError(
                "MODEL.SAN.TEST.UPSAMPLING scores is for whole images: set it to once with TEST.SLIDE or TEST.AUG"
            )
        self.clip_image_encoder, self.clip_resolution = clip_image_encoder, clip_resolution
        self.side_network, self.mask_decoder, self.recognition = side_network, mask_decoder, recognition
        self._size_divisibility = size_divisibility
        self.upsampling = upsampling
        leave_out_frozen(self, ["clip_image_encoder", "recognition"], {"CLIP": clip_identity})

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_ranges(cfg)
        san = cfg.MODEL.SAN
        check_multiple(
            "MODEL.SAN.SIZE_DIVISIBILITY", san.SIZE_DIVISIBILITY, "MODEL.SAN.SIDE.PATCH_SIZE", san.SIDE.PATCH_SIZE
        )
        clip = FrozenClip.of_config(cfg, "SAN")
        clip_image_encoder = ClipImageEncoder(
            clip.visual, num_layers=san.CLIP.NUM_LAYERS, train_positions=san.CLIP.TRAIN_POSITIONS
        )
        side_network = SideNetwork(
            image_size=san.SIDE.IMAGE_SIZE,
            patch_size=san.SIDE.PATCH_SIZE,
            width=san.SIDE.WIDTH,
            depth=san.SIDE.DEPTH,
            num_heads=san.SIDE.NUM_HEADS,
            num_queries=san.SIDE.NUM_QUERIES,
            clip_width=clip_image_encoder.width,
            fusion=fusion_map(san.SIDE.FUSION, san.CLIP.NUM_LAYERS),
            supervised=san.SIDE.SUPERVISED,
            drop_path_rate=san.SIDE.DROP_PATH_RATE,
        )
        blocks = len(tower_of(clip.visual).blocks) - san.CLIP.NUM_LAYERS
        recognition = Recognition(
            visual=clip.visual,
            num_layers=blocks,
            bias_per_block=san.MASK_DECODER.BIAS_PER_BLOCK,
            learnt_scale=False,
            pooling=san.RECOGNITION.POOLING,
            start_token=san.RECOGNITION.START_TOKEN,
            num_queries=san.SIDE.NUM_QUERIES,
        )
        heads = san.MASK_DECODER.BIAS_HEADS
        if heads not in (1, recognition.num_heads):
            raise ValueError(f"MODEL.SAN.MASK_DECODER.BIAS_HEADS must be 1 or CLIP's {recognition.num_heads}, got {heads}")
        return {
            "clip_image_encoder": clip_image_encoder,
            "clip_resolution": san.CLIP.RESOLUTION,
            "side_network": side_network,
            "mask_decoder": MaskDecoder(
                side_width=san.SIDE.WIDTH,
                hidden=san.MASK_DECODER.HIDDEN,
                width=san.MASK_DECODER.WIDTH,
                layers=san.MASK_DECODER.LAYERS,
                num_biases=heads * (blocks if san.MASK_DECODER.BIAS_PER_BLOCK else 1),
                rescale=san.MASK_DECODER.RESCALE_BIAS,
            ),
            "recognition": recognition,
            "clip_identity": clip.identity,
            "size_divisibility": san.SIZE_DIVISIBILITY,
            "upsampling": san.TEST.UPSAMPLING,
            **cls.parts_of_config(cfg, clip, num_queries=san.SIDE.NUM_QUERIES),
        }

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    def extract_proposals(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.supervised_proposals(images)[-1]

    def supervised_proposals(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """As :meth:`extract_proposals`, of each supervised block of the side network; in evaluation of the last."""
        clip_images = images
        if self.clip_resolution != 1:
            # The factor itself, not the ratio of the rounded sizes, says where a pixel of CLIP's input lies.
            clip_images = F.interpolate(
                images, scale_factor=self.clip_resolution, mode="bilinear", align_corners=False, recompute_scale_factor=False
            )
        taps = sorted(set(self.side_network.fusion.values()))
        features, tokens = self.clip_image_encoder.tapped(clip_images, taps)
        patch = self.clip_image_encoder.patch_size
        grid = (clip_images.shape[-2] // patch, clip_images.shape[-1] // patch)
        found = []
        for queries, patches in self.side_network(images, dict(zip(taps, features, strict=True))):
            proposals = self.mask_decoder(queries, patches)
            found.append((proposals.mask_logits, self.recognition(tokens, proposals.attention_bias, grid)))
        return found

    def losses(self, images: Tensor, sem_seg: Tensor, vocabulary: ClassSplit) -> dict[str, Tensor]:
        """Those of the last supervised block, with whatever parts of AlignZeg are on; of the earlier ones loss_ce, loss_mask
        and loss_dice, with the suffix _0 for the earliest."""
        prototypes = self.prototypes(vocabulary)
        *earlier, (mask_logits, features) = self.supervised_proposals(images)
        losses = self.proposal_losses(mask_logits, features, sem_seg, prototypes)
        for index, (mask_logits, features) in enumerate(earlier):
            found = self.classify(features, prototypes)
            auxiliary = self.criterion(Predictions(found.class_logits, mask_logits), sem_seg)
            losses |= {f"{name}_{index}": loss for name, loss in auxiliary.items()}
        return losses

    def classified(self, seen: Seen, vocabulary: ClassSplit) -> Classified:
        if self.upsampling == "once":
            return super().classified(seen, vocabulary)
        height, width = seen.image.shape[-2:]
        masks = F.interpolate(seen.mask_logits[None], size=seen.padded_size, mode="bilinear", align_corners=False)[0]
        upsampled = replace(seen, mask_logits=masks[:, :height, :width], padded_size=(height, width))
        return super().classified(upsampled, vocabulary)

    def segment(
        self,
        seen: Sequence[Seen],
        vocabulary: ClassSplit,
        *,
        output_size: tuple[int, int],
        output: str,
        **wanted: Any,
    ) -> dict[str, Any]:
        if self.upsampling != "scores":
            return super().segment(seen, vocabulary, output_size=output_size, output=output, **wanted)
        size = seen[0].place.look.size
        result = super().segment(seen, vocabulary, output_size=size, output="scores", **wanted)
        maps = torch.cat([result.pop("sem_seg"), result.pop("sem_seg_coverage")[None]])
        maps = F.interpolate(maps[None], size=output_size, mode="bilinear", align_corners=False)[0]
        return {**of_scores(maps[:-1], maps[-1], output), **result}


def fusion_map(pairs: Sequence[str], num_layers: int) -> dict[int, int]:
    """MODEL.SAN.SIDE.FUSION, such as ["0->0", "3->1"], as {block of the side network: block of CLIP}.

    Raises:
        ValueError: a text is no such pair, CLIP's trunk has no such block, or two lead to one block.
    """
    found: dict[int, int] = {}
    for pair in pairs:
        source, arrow, target = pair.partition("->")
        if not (arrow and source.isdecimal() and target.isdecimal()):
            raise ValueError(f'MODEL.SAN.SIDE.FUSION must hold texts such as "3->1", got {pair!r}')
        if int(source) > num_layers:
            raise ValueError(f"MODEL.SAN.SIDE.FUSION {pair!r}: CLIP.NUM_LAYERS is {num_layers}")
        if int(target) in found:
            raise ValueError(f"MODEL.SAN.SIDE.FUSION leads twice to block {target}")
        found[int(target)] = int(source)
    return found


SYSTEM = System(
    name="SAN",
    task="segmentation",
    add_config=add_san_config,
    evaluator=build_evaluator,
    parts={"predictor": "alignzeg_d2.predictor:AlignZegPredictor"},
    verbs={"import-san": "baselines_d2.import_san:main"},
)
