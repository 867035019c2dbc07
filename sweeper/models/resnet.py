"""ResNet-18, -34 and -50.

He et al. 2016 (arXiv 1512.03385). Layers and their names are torchvision's, so its weights load
into the trunk; ResNet-50 strides in the 3x3 convolution, as there. Not torchvision's class, because
its width is fixed and its blocks add the shortcut in place, which overwrites what a hook on a norm
has seen.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from sweeper.core.options import Count
from sweeper.models._layers import (
    GlobalAverage,
    Stem,
    conv,
    initialise,
    stem_layers,
)
from sweeper.models.base import Family, Shape


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion: ClassVar[int] = 1
    """Channels out over `width`."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] -> [B, width, H / stride, W / stride]."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        result: Tensor = self.relu(out + self.downsample(x))
        return result


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut."""

    expansion: ClassVar[int] = 4
    """Channels out over `width`."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] -> [B, 4 width, H / stride, W / stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        result: Tensor = self.relu(out + self.downsample(x))
        return result


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Return the shortcut of a block: nothing where the shape stays, else a 1x1 convolution."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


_MEMBERS: dict[str, tuple[type[Block | Bottleneck], tuple[int, ...]]] = {
    "resnet18": (Block, (2, 2, 2, 2)),
    "resnet34": (Block, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


@dataclass(frozen=True, kw_only=True)
class ResNet(Family):
    """ResNet with four stages of `width`, 2, 4 and 8 times `width` channels."""

    names: ClassVar[tuple[str, ...]] = tuple(_MEMBERS)
    """The depths of the paper, table 1."""

    stem: Stem = "auto"
    """auto (cifar up to 64 pixels, else imagenet), cifar, cifar-pool or imagenet."""
    width: Count = 64
    """Channels of the first stage; 64 in the paper."""

    def build(self, classes: int, shape: Shape) -> tuple[nn.Module, nn.Module]:
        """Build trunk and head; at width 64 the features have 512 (ResNet-50: 2,048) entries."""
        block, depths = _MEMBERS[self.name]
        first, pool = stem_layers(self.name, self.stem, shape, self.width)
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=first)
        layers.update(bn1=nn.BatchNorm2d(self.width), relu=nn.ReLU(), maxpool=pool)
        inputs = self.width
        for stage, depth in enumerate(depths):
            blocks = []
            for number in range(depth):
                stride = 2 if stage and not number else 1
                blocks.append(block(inputs, self.width * 2**stage, stride))
                inputs = self.width * 2**stage * block.expansion
            layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
        trunk = nn.Sequential(layers)
        trunk.add_module("avgpool", GlobalAverage())
        initialise(trunk)
        return trunk, nn.Linear(inputs, classes)
