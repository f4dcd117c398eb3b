"""Feature fusion (Sec. 3.1): Z_f = Z_enc + Z_clip."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class FeatureFusion(nn.Module):
    """Adds CLIP's features to the image encoder's after a LayerNorm, a linear map and bilinear upsampling.

    The LayerNorm tames CLIP's few very large channels; the map brings C channels to D.
    """

    def __init__(self, *, clip_width: int, width: int, norm_eps: float = 1e-5) -> None:
        """``clip_width`` is C, ``width`` is D, ``norm_eps`` what the LayerNorm adds to a variance."""
        super().__init__()
        self.norm = nn.LayerNorm(clip_width, eps=norm_eps)
        self.project = nn.Linear(clip_width, width)

    def forward(self, z_enc: Tensor, z_clip: Tensor) -> Tensor:
        """``z_enc`` (N, D, H, W) and ``z_clip`` (N, C, h, w) -> Z_f (N, D, H, W)."""
        projected = self.project(self.norm(z_clip.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        if projected.shape[-2:] != z_enc.shape[-2:]:
            projected = F.interpolate(projected, size=z_enc.shape[-2:], mode="bilinear", align_corners=False)
        return z_enc + projected
