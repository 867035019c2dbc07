"""Pre-activation ResNet-18.

He et al. 2016 (arXiv 1603.05027), with the norm and ReLU before the pooling that the paper has and
several CIFAR codes, BackdoorBench's among them, leave out: `final_norm: false`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from sweeper.core.options import Count
from sweeper.models._layers import (
    GlobalAverage,
    Stem,
    initialise,
    preact_stage,
    stem_layers,
)
from sweeper.models.base import Family, Shape


@dataclass(frozen=True, kw_only=True)
class PreActResNet(Family):
    """Four stages of two pre-activation blocks, then norm, ReLU and average pooling."""

    names: ClassVar[tuple[str, ...]] = ("preact-resnet18",)
    """The depth the backdoor literature uses."""

    stem: Stem = "auto"
    """auto (cifar up to 64 pixels, else imagenet), cifar, cifar-pool or imagenet."""
    width: Count = 64
    """Channels of the first stage; the others have 2, 4 and 8 times as many."""

    final_norm: bool = field(default=True, metadata={"added": True})
    """Whether a norm and a ReLU stand before the pooling; BackdoorBench's network has neither."""

    def build(self, classes: int, shape: Shape) -> tuple[nn.Module, nn.Module]:
        """Build trunk and head; the features have 8 x `width` entries."""
        width = self.width
        trunk = nn.Sequential(
            *stem_layers(self.name, self.stem, shape, width),
            preact_stage(width, width, 1, 2),
            preact_stage(width, 2 * width, 2, 2),
            preact_stage(2 * width, 4 * width, 2, 2),
            preact_stage(4 * width, 8 * width, 2, 2),
            *((nn.BatchNorm2d(8 * width), nn.ReLU()) if self.final_norm else ()),
            GlobalAverage(),
        )
        initialise(trunk)
        return trunk, nn.Linear(8 * width, classes)
