"""Networks that hide bits in an image and read them again, after StegaStamp (Tancik et al., 2020).

Variant A (BackdoorBox) gives a residual and reads through a spatial transformer; variant B
(BackdoorBench) gives the encoded image itself through a sigmoid and reads it directly. Images are
[B, C, H, W] in [0, 1] of any side; bits are float [B, N] of 0 and 1.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (32, 32, 64, 128, 256)
"""Channels of the encoder's way down; every convolution but the first halves the image."""
READER = ((32, 2), (32, 1), (64, 2), (64, 1), (64, 2), (128, 2), (128, 2))
"""(channels, stride) of the decoder's convolutions."""
SECRET_SIDE = 16
"""Side on which variant B lays out the bits."""


class Encoder(nn.Module):
    """A U-Net over the image and the bits."""

    def __init__(self, shape: tuple[int, int, int], bits: int, *, residual: bool) -> None:
        super().__init__()
        self.shape, self.residual = shape, residual
        channels, height, width = shape
        self.plane = (height, width) if residual else (SECRET_SIDE, SECRET_SIDE)
        self.secret = nn.Linear(bits, channels * self.plane[0] * self.plane[1])
        down_widths = itertools.pairwise((2 * channels, *WIDTHS))
        self.down = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=2 if level else 1, padding=1)
            for level, (i, o) in enumerate(down_widths)
        )
        up_widths = (128, 64, 32, 32)
        skip_widths = (128, 64, 32, 32 + 2 * channels)
        self.narrow = nn.ModuleList(
            nn.Conv2d(i, o, 2) for i, o in itertools.pairwise((WIDTHS[-1], *up_widths))
        )
        self.merge = nn.ModuleList(
            nn.Conv2d(o + m, o, 3, padding=1) for o, m in zip(up_widths, skip_widths, strict=True)
        )
        self.more = nn.Identity() if residual else nn.Conv2d(32, 32, 3, padding=1)
        self.last = nn.Conv2d(32, channels, 1)

    def forward(self, pixels: Tensor, bits: Tensor) -> Tensor:
        """Hide the bits; the encoded images, in [0, 1]."""
        shift = 0.5 if self.residual else 0.0
        plane = functional.relu(self.secret(bits - shift))
        plane = plane.view(-1, pixels.shape[1], *self.plane)
        plane = functional.interpolate(plane, pixels.shape[2:])
        inputs = torch.cat([plane, pixels - shift], 1)
        x, skips = inputs, []
        for part in self.down:
            x = functional.relu(part(x))
            skips.append(x)
        mirrored = [skips[3], skips[2], skips[1], torch.cat([skips[0], inputs], 1)]
        for narrow, merge, skip in zip(self.narrow, self.merge, mirrored, strict=True):
            x = functional.interpolate(x, skip.shape[2:])
            x = functional.relu(narrow(functional.pad(x, (0, 1, 0, 1))))
            x = functional.relu(merge(torch.cat([x, skip], 1)))
        if self.residual:
            encoded: Tensor = pixels + self.last(x)
            return encoded.clamp(0, 1)
        encoded = self.last(functional.relu(self.more(x)))
        return encoded.sigmoid()


class Decoder(nn.Module):
    """Reads the bits of encoded images."""

    def __init__(self, shape: tuple[int, int, int], bits: int, *, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        channels, height, width = shape
        self.look = _strided(channels, ((32, 2), (64, 2), (128, 2)))
        self.pose = nn.Sequential(
            nn.Linear(128 * _shrunk(height, 3) * _shrunk(width, 3), 128),
            nn.ReLU(),
            nn.Linear(128, 6),
        )
        final = self.pose[2]
        assert isinstance(final, nn.Linear)
        nn.init.zeros_(final.weight)
        with torch.no_grad():
            final.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]))
        self.read = _strided(channels, READER)
        halvings = sum(stride == 2 for _, stride in READER)
        size = 128 * _shrunk(height, halvings) * _shrunk(width, halvings)
        self.head = nn.Sequential(nn.Linear(size, 512), nn.ReLU(), nn.Linear(512, bits))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of the bits, float [B, N]."""
        x = pixels
        if self.residual:
            x = x - 0.5
            theta = self.pose(self.look(x).flatten(1)).view(-1, 2, 3)
            grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
            x = functional.grid_sample(x, grid, align_corners=False)
        out: Tensor = self.head(self.read(x).flatten(1))
        return out


def _strided(channels: int, layers: tuple[tuple[int, int], ...]) -> nn.Sequential:
    """3x3 convolutions of these (channels, stride), each with ReLU."""
    parts: list[nn.Module] = []
    for outputs, stride in layers:
        parts += [nn.Conv2d(channels, outputs, 3, stride=stride, padding=1), nn.ReLU()]
        channels = outputs
    return nn.Sequential(*parts)


def _shrunk(side: int, times: int) -> int:
    """A side after this many convolutions of stride 2, padding 1."""
    for _ in range(times):
        side = (side + 1) // 2
    return side
