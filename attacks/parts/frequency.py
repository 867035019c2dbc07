"""Triggers made of a few DCT coefficients of the chroma channels.

Colour conversion and DCT are linear: adding a constant to a coefficient of every image is adding
one fixed pattern to its pixels, so no image is ever transformed. Rounding in between is not linear:
`add_in_integers` converts.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from attacks.parts.stamp import CHUNK, wrapped
from sweeper.core.errors import SweepError
from sweeper.core.options import Some

REFERENCE = 32
"""Window the coefficients are numbered in."""
YUV = ((0.0, 1.140), (-0.395, -0.581), (2.032, 0.0))
"""What one level of U and of V adds to R, G and B (OpenCV's)."""
YCRCB = ((1.403, 0.0), (-0.714, -0.344), (0.0, 1.773))
"""What one level of Cr and of Cb adds to R, G and B (OpenCV's)."""

Place = Annotated[int, Field(ge=0, lt=REFERENCE)]
Places = Some[tuple[Place, Place]]
"""(row, column) of coefficients, one or more."""


def basis(order: int, size: int) -> Tensor:
    """Float64 [size]: the orthonormal DCT-II basis function of this order."""
    angle = math.pi * (2 * torch.arange(size, dtype=torch.float64) + 1) * order / (2 * size)
    return math.sqrt((1 if order == 0 else 2) / size) * angle.cos()


def waves(places: Places, magnitude: float, height: int, width: int) -> Tensor:
    """Float64 [height, width]: what adding `magnitude` to the coefficients at `places` adds.

    Below 32 px the places are scaled to keep their share of the highest frequency, and the
    magnitude to keep the amplitude in pixels; from 32 px on both are as given.
    """
    total = torch.zeros(height, width, dtype=torch.float64)
    for row, column in places:
        y, x = scaled(row, height), scaled(column, width)
        total += torch.outer(basis(y, height), basis(x, width))
    return total * magnitude * math.sqrt(min(1.0, height / REFERENCE) * min(1.0, width / REFERENCE))


def scaled(order: int, size: int) -> int:
    """The order of a coefficient in a window of `size`."""
    return order if size >= REFERENCE else round(order * (size - 1) / (REFERENCE - 1))


def coloured(pattern: Tensor, weights: tuple[tuple[float, float], ...], channels: int) -> Tensor:
    """Float [C, H, W]: the pattern [H, W] added to both chroma channels; to grey images, itself.

    Raises:
        SweepError: Neither RGB nor grey.
    """
    if channels == 1:
        return pattern.float()[None]
    if channels != 3:
        raise SweepError(
            f"chroma channels need RGB or grey images, not {channels} channels: use other data"
        )
    gains = torch.tensor(weights, dtype=torch.float64).sum(1)
    return (gains[:, None, None] * pattern).float()


def add_in_integers(images: Tensor, wave: Tensor) -> Tensor:
    """Add a wave to Cr and Cb with conversions in whole numbers, as OpenCV's on uint8 are.

    The sum is truncated and wraps modulo 256, as BackdoorBench's cast does; the constants are
    OpenCV's, in units of 2^-14.

    Args:
        images: uint8 [B, 3, H, W].
        wave: Float64 [H, W], added to both chroma channels.

    Returns:
        uint8 [B, 3, H, W].
    """
    out = torch.empty_like(images)
    for part, done in zip(images.split(CHUNK), out.split(CHUNK), strict=True):
        red, green, blue = part.int().unbind(1)
        luma = _rounded(4899 * red + 9617 * green + 1868 * blue)
        cr, cb = (
            # a sum that is a whole number must not fall to the level below
            wrapped(_rounded(chroma + (128 << 14)).clamp(0, 255) + wave + 1e-9).int() - 128
            for chroma in (11682 * (red - luma), 9241 * (blue - luma))
        )
        colours = 22987 * cr, -11698 * cr - 5636 * cb, 29049 * cb
        rgb = torch.stack([luma + _rounded(colour) for colour in colours], 1)
        done.copy_(rgb.clamp(0, 255))
    return out


def _rounded(scaled: Tensor) -> Tensor:
    """A whole number in units of 2^-14, rounded to a whole number."""
    return (scaled + 8192) >> 14
