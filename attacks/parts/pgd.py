"""Untargeted projected gradient ascent on a model's loss, in levels of 0..255."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from attacks.parts.stamp import wrapped

BATCH = 256


def perturb(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    step: float,
    steps: int,
    norm: str,
    rng: Generator,
) -> Tensor:
    """Move images up the cross-entropy of their labels, from a random start within the ball.

    Args:
        model: In eval mode, takes pixels in [0, 1]; left as it is.
        images: uint8 [N, C, H, W]; not modified.
        labels: int64 [N].
        epsilon: Radius of the ball in levels of 0..255.
        step: Length of a step in levels.
        steps: Number of steps.
        norm: inf | two: the ball's norm, and whether steps follow the sign or the direction.
        rng: For the start, uniform in the ball's box (norm two: projected onto the ball).

    Returns:
        uint8 [N, C, H, W] on the CPU, truncated; under norm inf within epsilon of the images.
    """
    device = next(model.parameters()).device
    perturbed = [torch.empty_like(images[:0])]
    for part, true in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        noise = 2 * torch.rand(part.shape, generator=rng) - 1
        pixels, delta = part.to(device).float(), (epsilon * noise).to(device)
        true = true.to(device)
        delta = _within(pixels, delta, epsilon, norm)
        for _ in range(steps):
            delta = delta.detach().requires_grad_()
            loss = functional.cross_entropy(model((pixels + delta) / 255), true, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, delta)
            direction = gradient.sign() if norm == "inf" else gradient / _length(gradient)
            delta = _within(pixels, delta.detach() + step * direction, epsilon, norm)
        perturbed.append((pixels + delta).to(torch.uint8).cpu())
    return torch.cat(perturbed)


def perturb_unclipped(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    step: float,
    steps: int,
    rng: Generator,
) -> Tensor:
    """As `perturb` under norm inf, but free to leave 0..255, where the cast wraps (D-BR).

    It works in [0, 1] and sums in the release's order: many moved pixels are whole levels, and the
    last bit decides whether they are truncated to the level below.
    """
    device = next(model.parameters()).device
    radius, stride = epsilon / 255, step / 255
    perturbed = [torch.empty_like(images[:0])]
    for part, true in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        noise = 2 * radius * torch.rand(part.shape, generator=rng) - radius
        pixels, true = part.to(device).float() / 255, true.to(device)
        moved = pixels + noise.to(device)
        for _ in range(steps):
            moved.requires_grad_()
            loss = functional.cross_entropy(model(moved), true, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
            moved = moved.detach() + stride * gradient.sign()
            moved = pixels + (moved - pixels).clamp(-radius, radius)
        perturbed.append(wrapped(255 * moved).cpu())
    return torch.cat(perturbed)


def _length(delta: Tensor) -> Tensor:
    length: Tensor = delta.flatten(1).norm(dim=1).clamp(min=1e-12)
    return length[:, None, None, None]


def _within(pixels: Tensor, delta: Tensor, epsilon: float, norm: str) -> Tensor:
    """Project onto the ball, then onto the images' range."""
    if norm == "inf":
        delta = delta.clamp(-epsilon, epsilon)
    else:
        delta = delta * (epsilon / _length(delta)).clamp(max=1)
    return (pixels + delta).clamp(0, 255) - pixels
