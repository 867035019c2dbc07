"""ViT-Tiny, a vision transformer with layer norm and no batch norm.

Dosovitskiy et al. 2021 (arXiv 2010.11929), sizes of DeiT-Ti (Touvron et al. 2021, arXiv 2012.12877,
table 1), torchvision's layers. The head starts from a truncated normal of 0.02 as in DeiT;
torchvision's starts at zero. No dropout, as torchvision's default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sweeper.core.errors import SweepError
from sweeper.core.options import Count, Whole
from sweeper.models._layers import need_side
from sweeper.models.base import Family, Shape


@dataclass(frozen=True, kw_only=True)
class ViT(Family):
    """Patches and a class token through `depth` transformer blocks; the token is the feature."""

    names: ClassVar[tuple[str, ...]] = ("vit-tiny",)
    """One size; the options change it."""

    patch: Whole = 0
    """Side of a patch in pixels; 0 = 4 for images up to 32 pixels, 8 up to 64, 16 above."""
    depth: Count = 12
    """Transformer blocks."""
    dim: Count = 192
    """Entries of a token, and of the features; the blocks' inner layers have 4 times as many."""
    heads: Count = 3
    """Attention heads; they divide `dim`."""

    def build(self, classes: int, shape: Shape) -> tuple[nn.Module, nn.Module]:
        """Build trunk and head; the images must be square and a multiple of the patch."""
        from torchvision.models.vision_transformer import VisionTransformer  # slow to import

        patch = self._check(shape)
        trunk = VisionTransformer(
            image_size=shape[1],
            patch_size=patch,
            num_layers=self.depth,
            num_heads=self.heads,
            hidden_dim=self.dim,
            mlp_dim=4 * self.dim,
        )
        trunk.conv_proj = nn.Conv2d(shape[0], self.dim, patch, patch)
        # The variance torchvision gives the same layer: 1 / fan in.
        nn.init.trunc_normal_(trunk.conv_proj.weight, std=(shape[0] * patch**2) ** -0.5)
        nn.init.zeros_(trunk.conv_proj.bias)
        trunk.heads = nn.Identity()
        head = nn.Linear(self.dim, classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return trunk, head

    def _check(self, shape: tuple[int, ...]) -> int:
        """Return the side of a patch; raise SweepError where options and image do not fit."""
        if self.dim % self.heads:
            raise SweepError(
                f"models: {self.name}: dim {self.dim} is no multiple of heads {self.heads}; "
                "change one of them."
            )
        _, height, width = shape
        patch = self.patch or (4 if height <= 32 else 8 if height <= 64 else 16)
        need_side(self.name, shape, 2 * patch)
        if height != width or height % patch:
            raise SweepError(
                f"models: {self.name} needs square images whose side is a multiple of its patch, "
                f"got {height} x {width} and a patch of {patch}; set `patch` or use another model."
            )
        return patch
