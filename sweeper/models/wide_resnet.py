"""Wide ResNet 16-1 and 28-10.

Zagoruyko and Komodakis 2016 (arXiv 1605.07146), in the CIFAR form at every image size: 3x3 stem of
16 channels, three stages of pre-activation blocks, total stride 4. Without the dropout inside the
blocks, which the paper reports as a variant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sweeper.models._layers import GlobalAverage, conv, initialise, need_side, preact_stage
from sweeper.models.base import Family, Shape

_MEMBERS = {"wrn-16-1": (16, 1), "wrn-28-10": (28, 10)}


@dataclass(frozen=True, kw_only=True)
class WideResNet(Family):
    """WRN-depth-factor: (depth - 4) / 6 blocks a stage, `factor` times 16, 32, 64 channels."""

    names: ClassVar[tuple[str, ...]] = tuple(_MEMBERS)
    """Depth and widening factor, as the paper writes them."""

    def build(self, classes: int, shape: Shape) -> tuple[nn.Module, nn.Module]:
        """Build trunk and head; the features have 64 x factor entries."""
        need_side(self.name, shape, 4)
        depth, factor = _MEMBERS[self.name]
        blocks = (depth - 4) // 6
        trunk = nn.Sequential(
            conv(shape[0], 16, 3),
            preact_stage(16, 16 * factor, 1, blocks),
            preact_stage(16 * factor, 32 * factor, 2, blocks),
            preact_stage(32 * factor, 64 * factor, 2, blocks),
            nn.BatchNorm2d(64 * factor),
            nn.ReLU(),
            GlobalAverage(),
        )
        initialise(trunk)
        return trunk, nn.Linear(64 * factor, classes)
