"""FTrojan (Wang et al., 2022): two DCT coefficients of the chroma; the label becomes the target.

The attacker controls the data only. RGB -> YCrCb, DCT in windows of 32x32 pixels, `magnitude` added
to two coefficients of both chroma channels, and back, truncated: `T(x) = q(x + p)`, p a sum of two
waves. Train and test trigger are the same.

By default the sum is one additive pattern, without rounding within the conversions. The release
works in whole numbers (`integers`, preset backdoorbench), which changes two thirds of CIFAR-10's
values, by up to 3 levels.

Deviations: the release's DCT is in single precision, and its noise decides whether a chroma value
that is a whole number is truncated to the level below; here it stays, so up to a tenth of the
values is one level off. Below 32 px the window is the image, with coefficients and magnitude scaled
(`parts/frequency.py`); grey images, which have no chroma, take the pattern itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Generator, Tensor

from attacks.base import Attack
from attacks.parts.frequency import YCRCB, Places, add_in_integers, coloured, waves
from attacks.parts.stamp import add
from sweeper.core.options import Positive
from sweeper.core.types import State

WINDOW = 32
"""Side of the blocks that are transformed."""


@dataclass(frozen=True, kw_only=True)
class FTrojan(Attack):
    """Adds two chroma waves to every block of the image."""

    magnitude: Positive = 30.0
    """Added to each coefficient, in levels of 0..255 of the orthonormal DCT."""
    coefficients: Places = ((15, 15), (31, 31))
    """(row, column) of the coefficients in a window of 32 px."""
    integers: bool = field(default=False, metadata={"added": True})
    """Whether colours are converted, and chroma truncated, in whole numbers (BackdoorBench)."""

    title = "FTrojan"
    paper = "Wang et al., ECCV 2022"
    presets = {"backdoorbench": {"integers": True, "rate_base": "all", "rounding": "nearest"}}

    def pattern(self, channels: int, height: int, width: int) -> Tensor:
        """Float [C, H, W]: what is added, before clipping."""
        return coloured(self.chroma(height, width), YCRCB, channels)

    def chroma(self, height: int, width: int) -> Tensor:
        """Float64 [H, W]: what is added to both chroma channels; windows from the top left."""
        block = waves(self.coefficients, self.magnitude, min(height, WINDOW), min(width, WINDOW))
        return block.repeat(-(-height // WINDOW), -(-width // WINDOW))[:height, :width]

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Add the waves."""
        channels, height, width = images.shape[1:]
        if self.integers and channels == 3:
            return add_in_integers(images, self.chroma(height, width))
        return add(images, self.pattern(channels, height, width))
