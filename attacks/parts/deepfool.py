"""Targeted DeepFool and the Gaussian low-pass filter of the LF trigger."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TAPS = 30
"""Taps of the filter at 32 px; its standard deviation is a fifth of them."""


def toward(
    model: nn.Module, image: Tensor, target: int, limit: int, overshoot: float
) -> Tensor | None:
    """Linearise and step until the model says `target`.

    Args:
        model: In eval mode.
        image: Float [1, C, H, W] in [0, 1].
        target: The wanted class.
        limit: Most steps.
        overshoot: Share by which the sum of steps is lengthened.

    Returns:
        Float [1, C, H, W] to add to the image; None where the limit does not suffice
        or the steps leave the range of an image: a flat slope's have no end.
    """
    perturbation = torch.zeros_like(image)
    source_class: int | None = None
    for _ in range(limit + 1):
        pixels = (image + (1 + overshoot) * perturbation).requires_grad_()
        logits = model(pixels)[0]
        predicted = int(logits.argmax())
        if predicted == target:
            return (1 + overshoot) * perturbation
        source_class = predicted if source_class is None else source_class
        difference = logits[target] - logits[source_class]
        (gradient,) = torch.autograd.grad(difference, pixels)
        perturbation = perturbation + difference.detach().abs() / gradient.square().sum() * gradient
        if not perturbation.abs().max() <= 1:  # NaN included
            return None
    return None


def low_pass(picture: Tensor) -> Tensor:
    """Filter [C, H, W] with a separable Gaussian, zeros beyond the border."""
    rows, columns = (_smoother(size).to(picture) for size in picture.shape[1:])
    return rows @ picture @ columns.T


def _smoother(size: int) -> Tensor:
    """Float [size, size]: the filter along one side as a matrix."""
    taps = max(2, round(TAPS * size / 32))
    centre = (taps - 1) / 2
    weights = torch.exp(-((5 * (torch.arange(taps) - centre) / taps) ** 2) / 2)
    weights /= weights.sum()
    offset = torch.arange(size)[None] - torch.arange(size)[:, None] + (taps - 1) // 2
    inside = (offset >= 0) & (offset < taps)
    return torch.where(inside, weights[offset.clamp(0, taps - 1)], 0.0)
