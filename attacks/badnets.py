"""BadNets (Gu et al., 2017): a small patch overwrites a corner; the label becomes the target.

`T(x) = (1 - a m) x + a m p`, m the cells of the patch p. The attacker controls the data only; the
same patch triggers at training and test time, stamped before any augmentation. Variants of the
releases are presets; patches keep their pixel size on larger canvases as the releases' do, except
`white`, whose side grows with the width (3 px at 32).

Deviation: BackdoorBench resizes a picture of the patch at 64 px, which softens its border; `white`
has hard edges instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.base import Attack
from attacks.parts.stamp import GRID, paste
from sweeper.core.errors import SweepError
from sweeper.core.types import State


@dataclass(frozen=True, kw_only=True)
class BadNets(Attack):
    """Patch attack with all-to-one or all-to-all labels."""

    trigger: str = "grid"
    """grid (3x3 checkerboard, flush) | white (flush) | square (white, side W/10, 1 px margin)."""
    size: int = 0
    """Side of a white or square patch in pixels; 0: the trigger's own rule."""
    margin: int = -1
    """Pixels between patch and corner; -1: the trigger's own rule."""
    opacity: float = 1.0
    """Share of the patch in the blended cells; 1 overwrites."""

    title = "BadNets"
    paper = "Gu et al., 2017 (IEEE Access 2019)"
    rules = ("all2one", "all2all")
    presets = {
        "d-br": {},
        "d-br-all2all": {"rule": "all2all", "trigger": "square"},
        "d-br-imagenet": {"trigger": "square", "size": 22, "margin": 0},
        "anp": {},
        "fip": {"opacity": 0.6},
        "backdoor-toolbox": {"rate_base": "all"},
        "backdoorbench": {"trigger": "white", "rate_base": "all", "rounding": "nearest"},
        "backdoorbench-all2all": {"rule": "all2all", "trigger": "white", "rounding": "nearest"},
        "backdoorbox": {"trigger": "white", "rate_base": "all"},
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Unknown trigger, or an opacity outside (0, 1].
        """
        super().__post_init__()
        if self.trigger not in ("grid", "white", "square"):
            raise SweepError(f"trigger: {self.trigger!r} is not one of grid, white, square")
        if not 0 < self.opacity <= 1:
            raise SweepError(f"opacity: {self.opacity} is not in (0, 1]")
        if self.trigger == "grid" and self.size:
            raise SweepError("size: the grid is always 3x3; use trigger: white or square")

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Paste the patch at the bottom-right corner."""
        height, width = images.shape[2:]
        if self.trigger == "grid":
            patch = torch.tensor(GRID)
        else:
            default_side = round(3 * width / 32) if self.trigger == "white" else int(0.1 * width)
            side = self.size or max(2, default_side)
            patch = torch.full((side, side), 255)
        margin = self.margin if self.margin >= 0 else int(self.trigger == "square")
        side = len(patch)
        if side + margin > min(height, width):
            raise SweepError(
                f"badnets: a {side} px patch with margin {margin} does not fit {height}x{width} "
                "px: lower `size` or `margin`, or use larger images"
            )
        return paste(images, patch, height - margin - side, width - margin - side, self.opacity)
