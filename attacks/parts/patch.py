"""Static patches of the Trojan family: drawn at random, or made to excite units of a model.

The releases store one array from an activation-maximisation run; its exact values hardly matter for
ASR, so both ways stand in for it.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional

from sweeper.core import seeds
from sweeper.core.errors import SweepError
from sweeper.models.base import Net

MEANS, SD = (140.0, 129.0, 122.0), 84.0
"""Channel means and overall standard deviation of the array the D-BR release stores."""
GOAL = 100.0
"""Activation the chosen units are driven to, as in the releases."""


def corner(attack: str, images: Tensor, size: int, margin: int) -> tuple[int, int, int]:
    """Top, left and side of a square patch near the bottom-right corner.

    Args:
        attack: Whose patch it is, for the error.
        images: [N, C, H, W], the canvas.
        size: Side in pixels; 0: 8 at 32 px, less on smaller canvases and no more on larger ones.
        margin: Pixels to the border at 32 px, less on smaller canvases.

    Raises:
        SweepError: The patch leaves the canvas.
    """
    height, width = images.shape[2:]
    short = min(height, width, 32)
    side, gap = size or max(2, round(8 * short / 32)), round(margin * short / 32)
    if side + gap > min(height, width):
        raise SweepError(
            f"{attack}: a {side} px patch with margin {gap} does not fit {height}x{width} px: "
            "lower `size`"
        )
    return height - gap - side, width - gap - side, side


def drawn(channels: int, side: int) -> Tensor:
    """Float [C, side, side] of whole 0..255: one fixed draw with the stored array's statistics."""
    means = torch.tensor(MEANS) if channels == 3 else torch.full((channels,), sum(MEANS) / 3)
    noise = torch.randn(channels, side, side, generator=seeds.generator("trojan", channels, side))
    return (means[:, None, None] + SD * noise).round().clamp(0, 255)


def excite(
    model: Net,
    canvas: tuple[int, ...],
    box: tuple[int, int, int],
    units: int,
    steps: int,
    rng: Generator,
) -> Tensor:
    """Optimise a patch on black so that the strongest penultimate units reach `GOAL`.

    Args:
        model: A clean model in eval mode; left as it is.
        canvas: (C, H, W) of its images.
        box: Top, left and side of the patch.
        units: How many units: those with the largest sum of |weight| in the last layer.
        steps: Steps of Adam at 0.1 with a cosine to 0.
        rng: For the start, N(0, 1) before tanh.

    Returns:
        Float [C, side, side] of whole 0..255, on the CPU.
    """
    (channels, height, width), (top, left, side) = canvas, box
    weight = model.get_parameter("classifier.weight").detach()
    strongest = weight.abs().sum(0).topk(min(units, weight.shape[1])).indices
    z = torch.randn(1, channels, side, side, generator=rng).to(weight.device).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    border = (left, width - left - side, top, height - top - side)
    for _ in range(steps):
        pixels = functional.pad((z.tanh() + 1) / 2, border)
        loss = (model.features(pixels)[:, strongest].abs() - GOAL).square().sum()
        (z.grad,) = torch.autograd.grad(loss, z)
        optimizer.step()
        schedule.step()
    return ((z.detach()[0].tanh() + 1) / 2 * 255).floor().cpu()
