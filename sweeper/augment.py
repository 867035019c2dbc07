"""Whole-batch augmentation on the device: crop, flip, rotate, erase, each drawn per sample.

Batches are uint8 [B, H, W, C] in and float [B, C, H, W] in [0, 1] out, channels last in memory. One
gather does crop and flip together; its index is drawn on the CPU so that the same generator gives
the same crops on every device.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional


def crop_flip(images: Tensor, pad: int, flip: bool, rng: Generator) -> Tensor:
    """Shift each image by up to `pad` pixels over a black border and mirror every second one.

    Args:
        images: uint8 [B, H, W, C].
        pad: Pixels of border; 0 leaves images where they are.
        flip: Whether to mirror with probability one half.
        rng: A CPU generator.

    Returns:
        uint8 [B, H, W, C].
    """
    if not pad and not flip:
        return images
    count, height, width, _ = images.shape
    top = torch.randint(2 * pad + 1, (count, 1), generator=rng)
    left = torch.randint(2 * pad + 1, (count, 1), generator=rng)
    rows = top + torch.arange(height)
    columns = torch.arange(width).expand(count, width)
    if flip:
        mirrored = torch.rand(count, 1, generator=rng) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    columns = columns + left
    padded = functional.pad(images, (0, 0, pad, pad, pad, pad)) if pad else images
    flat = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]
    flat += torch.arange(count)[:, None, None] * (height + 2 * pad) * (width + 2 * pad)
    index = flat.flatten().to(images.device)
    return padded.view(-1, images.shape[3]).index_select(0, index).view(images.shape)


def rotate(images: Tensor, degrees: float, rng: Generator) -> Tensor:
    """Rotate each image [B, C, H, W] by U(-degrees, degrees), nearest pixel, black outside."""
    count = len(images)
    angle = (torch.rand(count, generator=rng) * 2 - 1) * math.radians(degrees)
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros(count)
    ratio = images.shape[2] / images.shape[3]
    theta = torch.stack(
        [
            torch.stack([cosine, -sine * ratio, zero], 1),
            torch.stack([sine / ratio, cosine, zero], 1),
        ],
        1,
    ).to(images.device)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="nearest", align_corners=False)


def erase(images: Tensor, probability: float, rng: Generator) -> Tensor:
    """Blacken, with this probability, a box of 2-33 % of each image's area (random erasing)."""
    count, _, height, width = images.shape
    area = (torch.rand(count, generator=rng) * 0.31 + 0.02) * height * width
    ratio = torch.exp((torch.rand(count, generator=rng) * 2 - 1) * math.log(3.3))
    tall = (area * ratio).sqrt().clamp(max=height)
    wide = (area / ratio).sqrt().clamp(max=width)
    top = torch.rand(count, generator=rng) * (height - tall)
    left = torch.rand(count, generator=rng) * (width - wide)
    hit = torch.rand(count, generator=rng) < probability
    rows, columns = torch.arange(height), torch.arange(width)
    in_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None]) & hit[:, None]
    in_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    box = (in_rows[:, :, None] & in_columns[:, None, :]).to(images.device)
    return images.masked_fill(box[:, None], 0)


def to_float(images: Tensor) -> Tensor:
    """uint8 [B, H, W, C] -> float [B, C, H, W] in [0, 1], channels last."""
    return images.permute(0, 3, 1, 2).float().div_(255)
