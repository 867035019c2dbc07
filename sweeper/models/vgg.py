"""VGG-11, -16 and -19 with batch norm, in the CIFAR form.

Simonyan and Zisserman 2015 (arXiv 1409.1556), configurations A, D and E. The convolutions are
torchvision's; average pooling to 1x1 and one linear layer stand for the paper's three, so there is
no dropout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sweeper.models._layers import GlobalAverage, initialise, need_side, not_in_place
from sweeper.models.base import Family, Shape

_MEMBERS = {"vgg11-bn": "A", "vgg16-bn": "D", "vgg19-bn": "E"}


@dataclass(frozen=True, kw_only=True)
class VGG(Family):
    """3x3 convolutions with bias, norm and ReLU in five stages, each ended by a max-pool by 2."""

    names: ClassVar[tuple[str, ...]] = tuple(_MEMBERS)
    """The paper's configurations by their depth."""

    def build(self, classes: int, shape: Shape) -> tuple[nn.Module, nn.Module]:
        """Build trunk and head; the features have 512 entries."""
        from torchvision.models.vgg import cfgs, make_layers  # slow to import

        need_side(self.name, shape, 32)
        layers: nn.Sequential = make_layers(cfgs[_MEMBERS[self.name]], batch_norm=True)
        layers[0] = nn.Conv2d(shape[0], 64, 3, padding=1)
        trunk = nn.Sequential(*layers, GlobalAverage())
        not_in_place(trunk)
        initialise(trunk)
        return trunk, nn.Linear(512, classes)
