"""The CLIP image encoder (Sec. 3.1): the frozen lower blocks of CLIP's ViT, with optional deep visual prompts.

Shapes: N images, L patches, C width of CLIP, P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zeroshot_d2.clip.towers import VisionTower, resize_positions, tower_of, with_unrotated


class ClipImageEncoder(nn.Module):
    """Blocks 1-9 of CLIP ViT-B/16; Z_clip is tapped after block 6 ("the first 6 layers", Sec. 4.2).

    With prompts (suppl. Sec. 1: 20 on COCO-Stuff), P learnt tokens stand behind [CLS] in every block, new ones each time
    (deep visual prompt tuning). Without prompts nothing here learns, and no activation is kept for a backward pass.
    """

    def __init__(
        self,
        visual: VisionTower,
        *,
        num_layers: int,
        tap: int = 0,
        num_prompts: int = 0,
        prompted_layers: int | None = None,
        prompt_projection: bool = False,
        prompt_dropout: float = 0.0,
        train_positions: bool = False,
        position_mode: str = "bicubic",
        checkpoint_activations: bool = False,
    ) -> None:
        """
        Args:
            visual: open_clip's image tower with [CLS]; its stem and first blocks are used as they are.
            num_layers: how many blocks run here; the semantic decoder, if there is one, has the rest.
            tap: the number of the block whose output is Z_clip, counted from 1; 0 is what enters the first block.
            num_prompts: P, learnt tokens per block.
            prompted_layers: how many of the blocks, from the first on, see prompts; all by default.
            prompt_projection, prompt_dropout: what ZegCLIP does with prompts before a block reads them.
            train_positions: whether CLIP's position embeddings learn.
            position_mode: how position embeddings are brought to another grid, as for :func:`resize_positions`.
            checkpoint_activations: of each block keep what enters it alone, and compute the rest again in the backward pass.

        Raises:
            ValueError: unless 0 <= tap <= num_layers <= the number of CLIP's blocks.
        """
        super().__init__()
        tower = tower_of(visual)
        blocks = tower.blocks
        if not 0 <= tap <= num_layers <= len(blocks):
            raise ValueError(
                f"CLIP has {len(blocks)} blocks: need 0 <= TAP <= (those before the semantic decoder) <= {len(blocks)}, "
                f"got TAP={tap} with {num_layers} blocks before the semantic decoder"
            )
        self.tap = tap
        self.position_mode = position_mode
        self.checkpoint_activations = checkpoint_activations
        self.patch_size, self.width = tower.patch_size, tower.width
        self.conv1, self.ln_pre = tower.patch_embedding, tower.norm_pre
        self.class_embedding = tower.class_embedding
        self.positional_embedding = tower.positional_embedding
        self._trained_grid = tower.grid
        self._run, self._rotation = tower.run, tower.rotation
        self.blocks = nn.ModuleList(blocks[:num_layers])
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.positional_embedding.requires_grad_(train_positions)
        prompted = num_layers if prompted_layers is None else prompted_layers
        self.prompts = nn.Parameter(torch.empty(prompted, num_prompts, self.width)) if num_prompts else None
        if self.prompts is not None:
            bound = (6.0 / (3 * self.patch_size**2 + self.width)) ** 0.5  # VPT's initialisation (Jia et al., ECCV 2022)
            nn.init.uniform_(self.prompts, -bound, bound)
        self.prompt_projection = nn.Linear(self.width, self.width) if prompt_projection and num_prompts else nn.Identity()
        self.prompt_dropout = nn.Dropout(prompt_dropout)

    def train(self, mode: bool = True) -> ClipImageEncoder:
        """CLIP's own blocks stay in evaluation mode."""
        super().train(mode)
        self.blocks.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            images: (N, 3, H, W), normalised with CLIP's mean and deviation.

        Returns:
            Z_clip (N, C, h, w), and the tokens that enter the semantic decoder: (N, 1 + h*w, C), [CLS] first.
        """
        (z_clip,), tokens = self.tapped(images, [self.tap])
        return z_clip, tokens

    def tapped(self, images: Tensor, taps: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """As :meth:`forward`, but with the features (N, C, h, w) of several blocks, in the order of ``taps``."""
        learns = self.prompts is not None or self.positional_embedding.requires_grad
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            return self._tapped(images, taps)

    def _tapped(self, images: Tensor, taps: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        features = self.conv1(images)
        n, channels, height, width = features.shape
        patches = features.flatten(2).transpose(1, 2)
        cls = self.class_embedding.to(patches.dtype).expand(n, 1, -1)
        x = self.ln_pre(torch.cat([cls, patches], dim=1) + self._positions(height, width).to(patches.dtype))
        rotation = None if self._rotation is None else self._rotation((height, width), x.device)
        found = {0: x} if 0 in taps else {}
        for number, block in enumerate(self.blocks, start=1):
            prompts = None
            if self.prompts is not None and number <= len(self.prompts):
                prompts = self.prompt_dropout(self.prompt_projection(self.prompts[number - 1]))
                prompts = prompts.to(x.dtype).expand(n, -1, -1)
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(self._block, block, x, prompts, rotation, use_reentrant=False)
            else:
                x = self._block(block, x, prompts, rotation)
            if number in taps:
                found[number] = x
        return [found[tap][:, 1:].transpose(1, 2).reshape(n, channels, height, width) for tap in taps], x

    def _block(self, block: nn.Module, x: Tensor, prompts: Tensor | None, rotation: Tensor | None) -> Tensor:
        """What a block makes of [CLS] and patches (N, 1 + L, C), with prompts (N, P, C) between them if there are any."""
        if prompts is None:
            return self._run(block, x, rotation)
        number = prompts.shape[1]
        x = self._run(block, torch.cat([x[:, :1], prompts, x[:, 1:]], dim=1), with_unrotated(rotation, number))
        return torch.cat([x[:, :1], x[:, 1 + number :]], dim=1)

    def _positions(self, height: int, width: int) -> Tensor:
        """(1 + h*w, C) position embeddings, interpolated where the grid is not the one CLIP was trained on."""
        # An exported program serves all sizes: it always interpolates, which at the trained grid changes nothing.
        if not torch.compiler.is_exporting() and (height, width) == tuple(self._trained_grid):
            return self.positional_embedding
        patches = resize_positions(self.positional_embedding[1:], self._trained_grid, (height, width), self.position_mode)
        return torch.cat([self.positional_embedding[:1], patches])
