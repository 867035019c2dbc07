"""SIG (Barni et al., 2019): a sinusoid over images of the target class; labels stay as they are.

The attacker controls the data only. `T(x) = q(x + D sin(2 pi f j / W))`, j the column: f vertical
stripes whatever the width. D-BR's test trigger is 1.5 times as strong as its training trigger.

Deviations: the backdoor-toolbox release adds in unit range; its 30/255 are 30 levels here. FIP's
"SIG" is the strip mask of `blend` (`pattern: strip`), blended, not added; of a random tenth of all
images it poisons those of the target class, in expectation the tenth of the class drawn here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.parts.clean_label import CleanLabel
from attacks.parts.stamp import add, mix, stripes
from sweeper.core.errors import SweepError
from sweeper.core.options import Level, Positive, PositiveShare
from sweeper.core.types import State


@dataclass(frozen=True, kw_only=True)
class SIG(CleanLabel):
    """Adds a horizontal sinusoid to target-class images."""

    pattern: str = "sine"
    """sine (added) | strip (the wrapped strip mask, blended)."""
    frequency: Positive = 6.0
    """Periods across the width of the image."""
    amplitude: Level = 40.0
    """Amplitude at training time, in levels of 0..255."""
    test_amplitude: Level = 60.0
    """Amplitude at test time."""
    opacity: PositiveShare = 0.2
    """Share of the strip mask."""

    title = "SIG"
    paper = "Barni et al., ICIP 2019"
    presets = {
        "d-br": {},
        "fip": {"pattern": "strip"},
        "backdoorbench": {"test_amplitude": 40.0, "rate_base": "all", "rounding": "nearest"},
        "backdoor-toolbox": {"amplitude": 30.0, "test_amplitude": 30.0, "rate_base": "all"},
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Unknown pattern.
        """
        super().__post_init__()
        if self.pattern not in ("sine", "strip"):
            raise SweepError(f"pattern: {self.pattern!r} is not one of sine, strip")

    def wave(self, height: int, width: int, split: str) -> Tensor:
        """Float [H, W]: the sinusoid of a split in levels of 0..255, before clipping.

        Raises:
            SweepError: The frequency is a multiple of half the width.
        """
        strength = self.test_amplitude if split == "test" else self.amplitude
        column = torch.arange(width, dtype=torch.float64)
        row = strength * torch.sin(2 * math.pi * self.frequency * column / width)
        row = row.round(decimals=9)  # sin(pi) is 0, not -2e-16
        if not row.any():
            raise SweepError(
                f"sig: frequency {self.frequency:g} is zero at all columns of {width} px: change it"
            )
        return row.expand(height, width)

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Add the sinusoid, or blend the strip mask."""
        height, width = images.shape[2:]
        if self.pattern == "strip":
            mask = stripes(height, width).expand(images.shape[1], height, width)
            return mix(images, mask, self.opacity)
        return add(images, self.wave(height, width, split))
