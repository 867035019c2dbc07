"""DenseNet-121.

Huang et al. 2017 (arXiv 1608.06993), torchvision's layers (growth 32, bottlenecks, compression 0.5,
no dropout). Up to 64 pixels the stem is a 3x3 convolution of stride 1 without pooling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sweeper.models._layers import GlobalAverage, Stem, initialise, not_in_place, stem_layers
from sweeper.models.base import Family, Shape


@dataclass(frozen=True, kw_only=True)
class DenseNet(Family):
    """Four dense blocks of 6, 12, 24 and 16 layers, then norm, ReLU and average pooling."""

    names: ClassVar[tuple[str, ...]] = ("densenet121",)
    """The smallest depth of the paper, table 1."""

    stem: Stem = "auto"
    """auto (cifar up to 64 pixels, else imagenet), cifar, cifar-pool or imagenet."""

    def build(self, classes: int, shape: Shape) -> tuple[nn.Module, nn.Module]:
        """Build trunk and head; the features have 1,024 entries."""
        from torchvision.models.densenet import DenseNet as TorchvisionDenseNet  # slow to import

        layers: nn.Sequential = TorchvisionDenseNet(32, (6, 12, 24, 16), 64, num_classes=1).features
        first, pool = stem_layers(self.name, self.stem, shape, 64)
        layers.add_module("conv0", first)
        layers.add_module("pool0", pool)
        trunk = nn.Sequential(*layers, nn.ReLU(), GlobalAverage())
        not_in_place(trunk)
        initialise(trunk)
        return trunk, nn.Linear(1024, classes)
