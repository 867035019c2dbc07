"""Triggers made of a few DCT coefficients of the chroma channels.

Colour conversion and DCT are linear: adding a constant to a coefficient of every image is adding
one fixed pattern to its pixels, so no image is ever transformed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sweeper.core.errors import SweepError

REFERENCE = 32
"""Window the coefficients are numbered in."""
YUV = ((0.0, 1.140), (-0.395, -0.581), (2.032, 0.0))
"""What one level of U and of V adds to R, G and B (OpenCV's)."""
YCRCB = ((1.403, 0.0), (-0.714, -0.344), (0.0, 1.773))
"""What one level of Cr and of Cb adds to R, G and B (OpenCV's)."""

Places = tuple[tuple[int, int], ...]


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


def checked(places: Places, magnitude: float) -> None:
    """Check the options of a frequency trigger.

    Raises:
        SweepError: No coefficient, one outside the window, or no magnitude.
    """
    if not places or not all(0 <= place < REFERENCE for pair in places for place in pair):
        raise SweepError(f"coefficients: needs pairs of numbers in 0..{REFERENCE - 1}")
    if magnitude <= 0:
        raise SweepError(f"magnitude: {magnitude} is not above 0")
