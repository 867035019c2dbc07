"""BadNets (Gu et al., 2017): a small patch overwrites a corner; the label becomes the target.

`T(x) = (1 - a m) x + a m p`, m the cells of the patch p. The attacker controls the data only; the
same patch triggers at training and test time, stamped before any augmentation. Every frame of a
clip has it. Variants of the
releases are presets; patches keep their pixel size on larger canvases as the releases' do, except
`white`, whose side grows with the width (3 px at 32), and `softened`: BackdoorBench resizes the
picture of the patch at 32 px with its canvas, which softens the border.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from attacks.base import Attack
from attacks.parts.stamp import GRID, mix, paste
from sweeper.core.errors import SweepError
from sweeper.core.options import Offset, PositiveShare, Whole
from sweeper.core.types import State

TRIGGERS = ("grid", "white", "softened", "square")
REFERENCE = 32
"""Side of the canvas a softened patch is drawn on."""


@dataclass(frozen=True, kw_only=True)
class BadNets(Attack):
    """Patch attack with all-to-one or all-to-all labels."""

    trigger: str = "grid"
    """grid (3x3 checkerboard, flush) | white (flush) | softened (white at 32 px, resized) | square
    (white, side W/10, 1 px margin)."""
    size: Whole = 0
    """Side of a white patch in pixels, of a softened one at 32 px; 0: the trigger's own rule."""
    margin: Offset = -1
    """Pixels between patch and corner; -1: the trigger's own rule."""
    opacity: PositiveShare = 1.0
    """Share of the patch in the blended cells; 1 overwrites."""

    title = "BadNets"
    paper = "Gu et al., 2017 (IEEE Access 2019)"
    rules = ("all2one", "all2all")
    tasks = frozenset({"image", "clips"})
    presets = {
        "d-br": {},
        "d-br-all2all": {"rule": "all2all", "trigger": "square"},
        "d-br-imagenet": {"trigger": "square", "size": 22, "margin": 0},
        "anp": {},
        "fip": {"opacity": 0.6},
        "backdoor-toolbox": {"rate_base": "all"},
        "backdoorbench": {"trigger": "softened", "rate_base": "all", "rounding": "nearest"},
        "backdoorbench-all2all": {
            "rule": "all2all",
            "trigger": "softened",
            "rounding": "nearest",
        },
        "backdoorbox": {"trigger": "white", "rate_base": "all"},
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Unknown trigger, or a size of the grid.
        """
        super().__post_init__()
        if self.trigger not in TRIGGERS:
            raise SweepError(f"trigger: {self.trigger!r} is not one of {', '.join(TRIGGERS)}")
        if self.trigger == "grid" and self.size:
            raise SweepError("size: the grid is always 3x3; use trigger: white or square")

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Paste the patch at the bottom-right corner of each image, or frame."""
        height, width = images.shape[-2:]
        if self.trigger == "softened":
            picture = self._softened(height, width)
            return torch.where(picture > 0, mix(images, picture, self.opacity), images)
        patch, top, left = self._placed(height, width)
        return paste(images, patch, top, left, self.opacity)

    def _softened(self, height: int, width: int) -> Tensor:
        """Float [H, W] of whole 0..255: the white patch on black at 32 px, resized."""
        patch, top, left = self._placed(REFERENCE, REFERENCE)
        side = len(patch)
        picture = torch.zeros(1, 1, REFERENCE, REFERENCE)
        picture[:, :, top : top + side, left : left + side] = patch
        resized = functional.interpolate(picture, (height, width), mode="bilinear", antialias=True)
        return resized[0, 0].round()

    def _placed(self, height: int, width: int) -> tuple[Tensor, int, int]:
        """The patch [h, h], its top and its left.

        Raises:
            SweepError: It does not fit the canvas.
        """
        if self.trigger == "grid":
            patch = torch.tensor(GRID)
        else:
            default_side = int(0.1 * width) if self.trigger == "square" else round(3 * width / 32)
            side = self.size or max(2, default_side)
            patch = torch.full((side, side), 255)
        margin = self.margin if self.margin >= 0 else int(self.trigger == "square")
        side = len(patch)
        if side + margin > min(height, width):
            raise SweepError(
                f"badnets: a {side} px patch with margin {margin} does not fit {height}x{width} "
                "px: lower `size` or `margin`, or use larger images"
            )
        return patch, height - margin - side, width - margin - side
