"""ShuffleNetV2 at width 1.0.

Ma et al. 2018 (arXiv 1807.11164), torchvision's layers. Up to 64 pixels the stem keeps its stride
at 1 and has no max-pool (total stride 8 instead of 32). No dropout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sweeper.models._depthwise import fast_depthwise
from sweeper.models._layers import (
    GlobalAverage,
    conv,
    initialise,
    is_small,
    need_side,
    not_in_place,
)
from sweeper.models.base import Family, Shape


@dataclass(frozen=True, kw_only=True)
class ShuffleNet(Family):
    """Three stages of channel-split blocks with depthwise convolutions and a shuffle."""

    names: ClassVar[tuple[str, ...]] = ("shufflenet-v2",)
    """Width 1.0 of the paper, table 5."""

    def build(self, classes: int, shape: Shape) -> tuple[nn.Module, nn.Module]:
        """Build trunk and head; the features have 1,024 entries."""
        from torchvision.models.shufflenetv2 import ShuffleNetV2  # slow to import

        small = is_small(shape)
        need_side(self.name, shape, 8 if small else 32)
        net = ShuffleNetV2([4, 8, 4], [24, 116, 232, 464, 1024], num_classes=1)
        trunk = nn.Sequential(
            conv(shape[0], 24, 3, 1 if small else 2),
            *net.conv1[1:],
            nn.Identity() if small else net.maxpool,
            net.stage2,
            net.stage3,
            net.stage4,
            net.conv5,
            GlobalAverage(),
        )
        not_in_place(trunk)
        fast_depthwise(trunk)
        initialise(trunk)
        return trunk, nn.Linear(1024, classes)
