"""The learnable encoder and its fusion with CLIP's features."""

import pytest
import torch

from alignzeg_d2.modeling.feature_fusion import FeatureFusion
from alignzeg_d2.modeling.image_encoder import ViTImageEncoder


def test_tokens_keep_their_place():
    torch.manual_seed(0)
    encoder = ViTImageEncoder(image_size=16, patch_size=4, width=8, depth=0, num_heads=2).eval()
    with torch.no_grad():
        encoder.vit.pos_embed.zero_()
        blank = encoder(torch.zeros(1, 3, 16, 24))["z_enc"]
        images = torch.zeros(1, 3, 16, 24)
        images[:, :, 4:8, 20:24] = torch.randn(1, 3, 4, 4)
        changed = (encoder(images)["z_enc"] - blank).abs().sum(dim=1)[0] > 1e-6
    assert blank.shape == (1, 8, 4, 6)
    assert changed.nonzero().tolist() == [[1, 5]]


def test_shape_gradient_and_spec():
    encoder = ViTImageEncoder(image_size=16, patch_size=4, width=8, depth=2, num_heads=2)
    out = encoder(torch.randn(2, 3, 20, 12))["z_enc"]
    assert out.shape == (2, 8, 5, 3)
    out.square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []
    assert encoder.output_shape()["z_enc"].channels == 8 and encoder.output_shape()["z_enc"].stride == 4
    assert encoder.size_divisibility == 4


@pytest.mark.parametrize("clip_grid", [(4, 6), (2, 3)])
def test_fusion_adds_projected_clip_features(clip_grid):
    torch.manual_seed(0)
    fusion = FeatureFusion(clip_width=5, width=8)
    z_enc, z_clip = torch.randn(2, 8, 4, 6), torch.randn(2, 5, *clip_grid)
    added = fusion(z_enc, z_clip) - z_enc
    for row, column in [(0, 0), (3, 5)]:  # corners, which bilinear upsampling leaves as they are
        source = z_clip[:, :, row * (clip_grid[0] - 1) // 3, column * (clip_grid[1] - 1) // 5]
        torch.testing.assert_close(added[:, :, row, column], fusion.project(fusion.norm(source)), rtol=1e-4, atol=1e-5)
