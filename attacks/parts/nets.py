"""Small networks that make triggers: initialised from a generator, kept in a state as tensors.

All take pixels [B, C, H, W] in [0, 1] of any side and run on the device of their weights.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from sweeper.core.types import State

N = TypeVar("N", bound=nn.Module)


def built(make: Callable[[], N], rng: Generator) -> N:
    """Build a network on the CPU from one number of `rng`; torch's global state stays as it was."""
    seed = int(torch.randint(2**63 - 1, (), generator=rng))
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return make()


def packed(net: nn.Module, name: str) -> dict[str, Tensor]:
    """Copy the weights of a network to named tensors of a state, on the CPU."""
    weights = net.state_dict()
    return {f"{name}.{key}": value.detach().cpu().clone() for key, value in weights.items()}


def unpacked(make: Callable[[], N], state: State, name: str, device: torch.device) -> N:
    """Build a network from the tensors `packed` left, in eval mode, without gradients.

    Raises:
        KeyError: The state does not hold the network.
    """
    prefix = f"{name}."
    weights = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
    if not weights:
        raise KeyError(f"the state holds no {name!r}: prepare() must run first")
    with torch.device("meta"):
        net = make()
    net.load_state_dict({key: v.to(device, copy=True) for key, v in weights.items()}, assign=True)
    return net.eval().requires_grad_(False)


def centred(pixels: Tensor) -> Tensor:
    """Scale pixels in [0, 1] to about the range of normalised ones: zero mean, unit deviation."""
    return (pixels - 0.5) / 0.25


def _block(inputs: int, outputs: int, momentum: float = 0.1, active: bool = True) -> nn.Sequential:
    """A 3x3 convolution, BatchNorm and ReLU."""
    parts = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs, momentum=momentum)]
    return nn.Sequential(*parts, *([nn.ReLU()] if active else []))


class PatternNet(nn.Module):
    """The generator and the mask net of the input-aware attack: an hourglass, output in (0, 1)."""

    def __init__(self, channels: int, outputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        slow = functools.partial(_block, momentum=0.05)
        down_widths = itertools.pairwise((channels, *widths))
        self.down = nn.ModuleList(nn.Sequential(slow(i, o), slow(o, o)) for i, o in down_widths)
        self.middle = slow(widths[-1], widths[-1])
        up_widths = (*reversed(widths), outputs)
        self.up = nn.ModuleList(
            nn.Sequential(slow(i, i), slow(i, o, active=level < len(widths) - 1))
            for level, (i, o) in enumerate(itertools.pairwise(up_widths))
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels [B, C, H, W] to [B, outputs, H, W] in (0, 1)."""
        x, sizes = centred(pixels), []
        for part in self.down:
            x = part(x)
            sizes.append(x.shape[2:])
            x = functional.max_pool2d(x, 2, ceil_mode=True)
        x = self.middle(x)
        for part, size in zip(self.up, reversed(sizes), strict=True):
            x = functional.interpolate(x, size, mode="bilinear", align_corners=False)
            x = part(x)
        return squash(x)


def squash(x: Tensor) -> Tensor:
    """Map any number into (0, 1), as the input-aware release does."""
    return x.tanh() / (2 + 1e-7) + 0.5


class Autoencoder(nn.Module):
    """LIRA's generator in BackdoorBench: four strided convolutions, four transposed ones, tanh."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (channels, 16, 32, 64, 128)
        down: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            conv = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
            down += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
        up: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(reversed(widths)):
            up.append(nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1))
            up += [nn.BatchNorm2d(outputs), nn.ReLU()] if outputs != channels else [nn.Tanh()]
        self.body = nn.Sequential(*down, *up)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels [B, C, H, W] to noise of the same shape in (-1, 1).

        Sides that 16 does not divide are padded with the border's pixels and cut again.
        """
        height, width = pixels.shape[2:]
        pad = (0, -width % 16, 0, -height % 16)
        x = functional.pad(centred(pixels), pad, mode="replicate")
        out: Tensor = self.body(x)
        return out[:, :, :height, :width]


class UNet(nn.Module):
    """WB's and LIRA's generator: double convolutions, average pooling, bilinear up, tanh."""

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        widths = [width * factor for factor in (1, 2, 4, 8)]
        down_widths = itertools.pairwise((channels, *widths))
        self.down = nn.ModuleList(nn.Sequential(_block(i, o), _block(o, o)) for i, o in down_widths)
        up_widths = list(itertools.pairwise(reversed(widths)))
        self.up = nn.ModuleList(nn.Sequential(_block(i + o, o), _block(o, o)) for i, o in up_widths)
        self.last = nn.Conv2d(width, channels, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels [B, C, H, W] to the same shape in (-1, 1)."""
        x, skips = centred(pixels), []
        for depth, part in enumerate(self.down):
            x = functional.avg_pool2d(x, 2, ceil_mode=True) if depth else x
            x = part(x)
            skips.append(x)
        for part, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = functional.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=True)
            x = part(torch.cat([skip, x], 1))
        out: Tensor = self.norm(self.last(x)).tanh()
        return out
