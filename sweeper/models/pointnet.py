"""PointNet: one multi-layer perceptron for every point, then the maximum over the points.

Qi et al., CVPR 2017 (arXiv 1612.00593). Clouds come as [B, P, 3]. No feature transform, as in PCBA
(Xiang et al., ICCV 2021); `pointnet` has the input transform, `pointnet-small` has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sweeper.core.options import ProperShare
from sweeper.models.base import Family, Shape


@dataclass(frozen=True, kw_only=True)
class PointNet(Family):
    """PointNets with BatchNorm after every layer but the last."""

    names: ClassVar[tuple[str, ...]] = ("pointnet", "pointnet-small")
    tasks = frozenset({"points"})
    usual = (256, 3)

    dropout: ProperShare = 0.3
    """Share of the last features dropped in training; pointnet alone."""

    def build(self, classes: int, shape: Shape) -> tuple[nn.Module, nn.Module]:
        """Build trunk and head for any number of points; the features have 256 entries, or 64."""
        if self.name == "pointnet-small":
            trunk = nn.Sequential(Pooled((3, 32, 64, 256)), *dense((256, 128, 64)))
            return trunk, nn.Linear(64, classes)
        trunk = nn.Sequential(
            InputTransform(),
            Pooled((3, 64, 64, 64, 128, 1024)),
            *dense((1024, 512, 256)),
            nn.Dropout(self.dropout),
        )
        return trunk, nn.Linear(256, classes)


class Pooled(nn.Module):
    """Maps clouds [B, P, 3] -> [B, D]: layers of one point each, then their maximum."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            convolution = nn.Conv1d(inputs, outputs, 1, bias=False)
            layers += [convolution, nn.BatchNorm1d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, P, 3] -> [B, D]."""
        out: Tensor = self.layers(x.transpose(1, 2)).amax(2)
        return out


class InputTransform(nn.Module):
    """Turns each cloud by a 3x3 matrix of its own, which begins as the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Pooled((3, 64, 128, 1024)), *dense((1024, 512, 256)))
        self.matrix = nn.Linear(256, 9)
        nn.init.zeros_(self.matrix.weight)
        nn.init.zeros_(self.matrix.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, P, 3] to the same shape."""
        turn = self.matrix(self.layers(x)).view(-1, 3, 3)
        out: Tensor = x @ (turn + torch.eye(3, device=x.device, dtype=turn.dtype)).to(x.dtype)
        return out


def dense(widths: Sequence[int]) -> list[nn.Module]:
    """Fully connected layers, each with norm and ReLU."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
    return layers
