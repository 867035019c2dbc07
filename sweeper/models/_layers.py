"""Layers, stems and the initialisation that several families share."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from sweeper.core.errors import SweepError

Stem = Literal["auto", "cifar", "cifar-pool", "imagenet"]
"""How a network begins: `cifar` 3x3 stride 1, `cifar-pool` the same and a max-pool by 2,
`imagenet` 7x7 stride 2 and a max-pool by 2, `auto` = `cifar` up to 64 pixels, else `imagenet`."""


def is_small(shape: tuple[int, ...]) -> bool:
    """Return whether an image (C, H, W) takes the CIFAR form of a network: sides up to 64."""
    return max(shape[1:]) <= 64


def need_side(name: str, shape: tuple[int, ...], least: int) -> None:
    """Raise SweepError where an image (C, H, W) has a side below `least` pixels."""
    if min(shape[1:]) < least:
        raise SweepError(
            f"models: {name} needs images of at least {least} pixels a side, got "
            f"{shape[1]} x {shape[2]}; use tiny, which takes any size, or larger images."
        )


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that keeps the image size at stride 1."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def stem_layers(
    name: str, stem: Stem, shape: tuple[int, ...], width: int
) -> tuple[nn.Conv2d, nn.Module]:
    """Return the first convolution and the pooling of a network whose body has stride 8.

    Args:
        name: The architecture, for the error.
        stem: Which beginning; see `Stem`.
        shape: (C, H, W) of an image.
        width: Channels the convolution puts out.

    Raises:
        SweepError: The image is smaller than the network's total stride.
    """
    kind = ("cifar" if is_small(shape) else "imagenet") if stem == "auto" else stem
    need_side(name, shape, {"cifar": 8, "cifar-pool": 16, "imagenet": 32}[kind])
    first = conv(shape[0], width, 7, 2) if kind == "imagenet" else conv(shape[0], width, 3)
    pool = nn.Identity() if kind == "cifar" else nn.MaxPool2d(3, stride=2, padding=1)
    return first, pool


def initialise(module: nn.Module) -> None:
    """Initialise a convolutional trunk in place: He normal (fan out), norms 1 and 0, no bias.

    One rule for all convolutional families (He et al. 2015, arXiv 1502.01852). The linear head
    keeps torch's default.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def not_in_place(module: nn.Module) -> None:
    """Make every activation return a new tensor, so that a hook on a norm keeps what it saw."""
    for part in module.modules():
        if isinstance(part, nn.ReLU | nn.ReLU6):
            part.inplace = False


class GlobalAverage(nn.Module):
    """Maps [B, D, H, W] -> [B, D], the mean over the image."""

    def forward(self, x: Tensor) -> Tensor:
        """Average [B, D, H, W] over H and W."""
        return x.mean((2, 3))


class GlobalMaximum(nn.Module):
    """Maps [B, D, ...] -> [B, D], the maximum over an image, or over time and space."""

    def __init__(self, axes: tuple[int, ...] = (2, 3)) -> None:
        super().__init__()
        self.axes = axes  # not asked of the input: CLP traces networks

    def forward(self, x: Tensor) -> Tensor:
        """Take the maximum over the axes."""
        return x.amax(self.axes)


class PreActBlock(nn.Module):
    """Pre-activation block of two 3x3 convolutions (He et al. 2016, arXiv 1603.05027, fig. 1b).

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input, no norm.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.relu = nn.ReLU()
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        active = self.relu(self.bn1(x))
        skip: Tensor = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(self.relu(self.bn2(self.conv1(active))))
        return skip + out


def preact_stage(inputs: int, outputs: int, stride: int, depth: int) -> nn.Sequential:
    """Return `depth` pre-activation blocks, the first of which changes width and stride."""
    first = PreActBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(PreActBlock(outputs, outputs, 1) for _ in range(depth - 1)))
