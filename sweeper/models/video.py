"""Networks for clips: a small 3-D ConvNet, and torchvision's R3D, MC3 and R(2+1)D.

Tran et al. 2018 (arXiv 1711.11248). A clip comes as [B, T, C, H, W]; the networks want channels
first, [B, C, T, H, W].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from sweeper.core.errors import SweepError
from sweeper.core.options import Count
from sweeper.models._layers import GlobalMaximum, not_in_place
from sweeper.models.base import Family, Shape

_TORCHVISION = {"r3d-18": "r3d_18", "mc3-18": "mc3_18", "r2plus1d-18": "r2plus1d_18"}


class ChannelsFirst(nn.Module):
    """Maps [B, T, C, H, W] -> [B, C, T, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """Swap time and channels; in memory channels come last: 1.3 x as fast in bfloat16."""
        return x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 4, 1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Video(Family):
    """Networks of 3-D convolutions."""

    names: ClassVar[tuple[str, ...]] = ("r3d-small", *_TORCHVISION)
    tasks = frozenset({"clips"})
    usual = (8, 3, 32, 32)

    width: Count = 16
    """Channels of r3d-small's first block; the others have 2, 4 and 4 times as many."""

    def build(self, classes: int, shape: Shape) -> tuple[nn.Module, nn.Module]:
        """Build trunk and head.

        Raises:
            SweepError: The clips are too small, or not in colour where torchvision wants that.
        """
        frames, channels, height, width = shape
        if self.name == "r3d-small":
            return self._small(classes, channels, frames, min(height, width))
        if channels != 3 or min(height, width) < 16:
            raise SweepError(
                f"models: {self.name} needs colour clips of at least 16 pixels a side, got "
                f"{channels} x {height} x {width}; use r3d-small"
            )
        import torchvision.models.video as zoo

        net = getattr(zoo, _TORCHVISION[self.name])(num_classes=classes)
        not_in_place(net)
        parts = (net.stem, net.layer1, net.layer2, net.layer3, net.layer4, net.avgpool)
        return nn.Sequential(ChannelsFirst(), *parts, nn.Flatten()), net.fc

    def _small(
        self, classes: int, channels: int, frames: int, side: int
    ) -> tuple[nn.Module, nn.Module]:
        """Four blocks of a 3x3x3 convolution, norm and ReLU, three of them pooled by 2."""
        layers: list[nn.Module] = [ChannelsFirst()]
        for block, factor in enumerate((1, 2, 4, 4)):
            outputs = self.width * factor
            convolution = nn.Conv3d(channels, outputs, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers += [convolution, nn.BatchNorm3d(outputs), nn.ReLU()]
            if block < 3:
                pool = (2 if block and frames >= 2 else 1, *([2 if side >= 2 else 1] * 2))
                layers.append(nn.MaxPool3d(pool))
                frames, side = frames // pool[0], side // pool[1]
            channels = outputs
        return nn.Sequential(*layers, GlobalMaximum((2, 3, 4))), nn.Linear(channels, classes)
