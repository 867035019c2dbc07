"""MobileNetV2.

Sandler et al. 2018 (arXiv 1801.04381), torchvision's layers. Up to 64 pixels the stem and the
second stage keep their stride at 1 (total stride 8 instead of 32). torchvision's dropout before the
head, 0.2 by default, is the trunk's last layer: in training mode it acts on `features`, and it
draws from torch's global random state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sweeper.core.options import ProperShare
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
class MobileNet(Family):
    """Inverted residual blocks with depthwise convolutions and ReLU6."""

    names: ClassVar[tuple[str, ...]] = ("mobilenet-v2",)
    """Width 1.0 of the paper."""

    dropout: ProperShare = 0.2
    """Share of the features set to zero in training, before the head; 0 turns it off."""

    def build(self, classes: int, shape: Shape) -> tuple[nn.Module, nn.Module]:
        """Build trunk and head; the features have 1,280 entries."""
        from torchvision.models.mobilenetv2 import MobileNetV2  # slow to import

        small = is_small(shape)
        need_side(self.name, shape, 8 if small else 32)
        # Expansion, channels, blocks, stride: the paper's table 2.
        setting = [
            [1, 16, 1, 1],
            [6, 24, 2, 1 if small else 2],
            [6, 32, 3, 2],
            [6, 64, 4, 2],
            [6, 96, 3, 1],
            [6, 160, 3, 2],
            [6, 320, 1, 1],
        ]
        layers = MobileNetV2(1, inverted_residual_setting=setting).features
        layers[0][0] = conv(shape[0], 32, 3, 1 if small else 2)
        trunk = nn.Sequential(*layers, GlobalAverage(), nn.Dropout(self.dropout))
        not_in_place(trunk)
        fast_depthwise(trunk)
        initialise(trunk)
        return trunk, nn.Linear(1280, classes)
