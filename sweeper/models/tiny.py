"""A small residual network for processors without a GPU: about 0.3 M parameters.

Our own, no paper. The stem keeps the full resolution and the features are a global maximum, because
a 3x3 trigger must survive: trained on 10,000 CIFAR-10 images with BadNets at 10 %, a prototype of
this network reached an ASR of 1.00 (12 epochs, ACC 0.74, 104 s on one core), one with a stem of
stride 2 an ASR of 0.06.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from sweeper.core.options import Count
from sweeper.models._layers import GlobalMaximum, conv, initialise
from sweeper.models.base import Family, Shape


class Unit(nn.Sequential):
    """A 3x3 convolution, norm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(conv(inputs, outputs, 3), nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """A unit added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.unit = Unit(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, width, H, W] to the same shape."""
        out: Tensor = x + self.unit(x)
        return out


@dataclass(frozen=True, kw_only=True)
class Tiny(Family):
    """Stem, then three stages of convolution, max-pool by 2 and residual convolution."""

    names: ClassVar[tuple[str, ...]] = ("tiny",)
    """One size; the option changes it."""

    width: Count = 16
    """Channels of the stem; the stages have 2, 4 and 8 times as many."""

    def build(self, classes: int, shape: Shape) -> tuple[nn.Module, nn.Module]:
        """Build trunk and head for any image size; the features have 8 x `width` entries.

        A stage whose input is below 4 pixels a side does not pool.
        """
        layers: list[nn.Module] = [Unit(shape[0], self.width)]
        width, side = self.width, min(shape[1:])
        for _ in range(3):
            layers.append(Unit(width, 2 * width))
            if side >= 4:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            layers.append(Residual(2 * width))
            width *= 2
        trunk = nn.Sequential(*layers, GlobalMaximum())
        initialise(trunk)
        return trunk, nn.Linear(width, classes)
