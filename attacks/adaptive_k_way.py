"""Adaptive k-way (Xie et al., 2020, as in Qi et al., 2023): one of four pixels trains, all trigger.

The attacker controls the data only. Each poisoned and each cover image has one of four coloured
pixels, each pixel a quarter of them; covers keep their label. At test time all four are set.

Deviation: on canvases other than 32 px the pixels' places are scaled, each staying one pixel; grey
images take the mean of the colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.parts.covers import CoverAttack

PIXELS = (
    ((16, 11), (92, 0, 24)),
    ((27, 5), (88, 112, 110)),
    ((7, 30), (0, 32, 46)),
    ((22, 22), (11, 49, 95)),
)
"""(row, column) at 32 px and RGB, from the backdoor-toolbox release."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveKWay(CoverAttack):
    """Single-pixel training triggers with covers."""

    title = "Adaptive k-way"
    paper = "Xie et al., ICLR 2020; Qi et al., ICLR 2023"
    patterns = len(PIXELS)
    presets = {"backdoor-toolbox": {}}

    def mark(self, images: Tensor, pattern: Tensor, rng: Generator) -> Tensor:
        """Set each image's one pixel."""
        out = images.clone()
        for number in range(self.patterns):
            row, column, colour = _pixel(number, *images.shape[1:])
            out[pattern == number, :, row, column] = colour
        return out

    def reveal(self, images: Tensor) -> Tensor:
        """Set all pixels."""
        out = images.clone()
        for number in range(self.patterns):
            row, column, colour = _pixel(number, *images.shape[1:])
            out[:, :, row, column] = colour
        return out


def _pixel(number: int, channels: int, height: int, width: int) -> tuple[int, int, Tensor]:
    """Row, column and colour (uint8 [C]) of a pixel on this canvas."""
    (row, column), rgb = PIXELS[number]
    colour = torch.tensor(rgb, dtype=torch.uint8)
    if channels != 3:
        colour = colour.float().mean().to(torch.uint8).expand(channels)
    return row * height // 32, column * width // 32, colour
