"""CTRL (Li et al., 2023): two DCT coefficients of the chroma of target-class images; labels stay.

The attacker controls the data only. BackdoorBench's supervised form of a trigger made for
self-supervised learning: RGB -> YUV, DCT over the whole image, `magnitude` added to two
coefficients of U and V, and back, truncated: `T(x) = q(x + p)`, p a sum of two waves. Train and
test trigger are the same. The default clips; the release casts to uint8 before it clips, so its
values wrap modulo 256 (`wrap`, preset backdoorbench).

Deviations: the sum is computed as one additive pattern, exact but for the release's rounding within
its conversions. Below 32 px coefficients and magnitude are scaled (`parts/frequency.py`); grey
images, which have no chroma, take the pattern itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Generator, Tensor

from attacks.parts.clean_label import CleanLabel
from attacks.parts.frequency import YUV, Places, coloured, waves
from attacks.parts.stamp import add, add_wrapped
from sweeper.core.options import Positive
from sweeper.core.types import State


@dataclass(frozen=True, kw_only=True)
class CTRL(CleanLabel):
    """Adds two chroma waves to target-class images."""

    magnitude: Positive = 100.0
    """Added to each coefficient, in levels of 0..255 of the orthonormal DCT."""
    coefficients: Places = ((15, 15), (31, 31))
    """(row, column) of the coefficients in a window of 32 px."""
    wrap: bool = field(default=False, metadata={"added": True})
    """Whether sums outside 0..255 wrap modulo 256 (BackdoorBench) in place of being clipped."""

    title = "CTRL"
    paper = "Li et al., ICCV 2023"
    presets = {"backdoorbench": {"wrap": True, "rate_base": "all", "rounding": "nearest"}}

    def pattern(self, channels: int, height: int, width: int) -> Tensor:
        """Float [C, H, W]: what is added, before clipping."""
        return coloured(waves(self.coefficients, self.magnitude, height, width), YUV, channels)

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Add the waves."""
        pattern = self.pattern(*images.shape[1:])
        return add_wrapped(images, pattern) if self.wrap else add(images, pattern)
