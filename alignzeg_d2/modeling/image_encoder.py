"""The learnable image encoder (Sec. 3.1 and 4.2): a plain ViT whose tokens are the features Z_enc.

Shapes: N images, D width, p patch size.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from zeroshot_d2.ranges import check_multiple


def patch_vit(
    image_size: int, patch_size: int, width: int, depth: int, num_heads: int, drop_path_rate: float, **options: Any
) -> VisionTransformer:
    """timm's ViT on patches alone: without [CLS], pooling and head. ``options`` are further ones of timm's."""
    return VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=width,
        depth=depth,
        num_heads=num_heads,
        drop_path_rate=drop_path_rate,
        class_token=False,
        global_pool="",
        num_classes=0,
        **options,
    )


@BACKBONE_REGISTRY.register()
class ViTImageEncoder(Backbone):
    """An 8-layer ViT of width 240 and patch 16 (Sec. 4.2), trained from scratch; timm's VisionTransformer does the work.

    Output: ``{"z_enc": (N, D, H/p, W/p)}``.
    """

    @configurable
    def __init__(
        self, *, image_size: int, patch_size: int, width: int, depth: int, num_heads: int, drop_path_rate: float = 0.0
    ) -> None:
        """
        Args:
            image_size: the side in pixels for which the position embeddings are laid out; other sizes interpolate them.
            patch_size, width, depth, num_heads: of the transformer.
            drop_path_rate: stochastic depth.

        Raises:
            ValueError: the patches do not fill the image, or the heads do not share the width.
        """
        super().__init__()
        section = "MODEL.ALIGNZEG.IMAGE_ENCODER"
        check_multiple(f"{section}.IMAGE_SIZE", image_size, f"{section}.PATCH_SIZE", patch_size)
        check_multiple(f"{section}.WIDTH", width, f"{section}.NUM_HEADS", num_heads)
        self.vit = patch_vit(image_size, patch_size, width, depth, num_heads, drop_path_rate, dynamic_img_size=True)
        self._width, self._patch_size = width, patch_size

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        encoder = cfg.MODEL.ALIGNZEG.IMAGE_ENCODER
        return {
            "image_size": encoder.IMAGE_SIZE,
            "patch_size": encoder.PATCH_SIZE,
            "width": encoder.WIDTH,
            "depth": encoder.DEPTH,
            "num_heads": encoder.NUM_HEADS,
            "drop_path_rate": encoder.DROP_PATH_RATE,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``images`` (N, 3, H, W), normalised, H and W divisible by the patch size."""
        height, width = (side // self._patch_size for side in images.shape[-2:])
        tokens = self.vit.forward_features(images)
        return {"z_enc": tokens.transpose(1, 2).reshape(images.shape[0], self._width, height, width)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"z_enc": ShapeSpec(channels=self._width, stride=self._patch_size)}

    @property
    def size_divisibility(self) -> int:
        return self._patch_size
