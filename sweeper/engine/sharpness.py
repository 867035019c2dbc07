"""Sharpness-aware updates (SAM, Foret et al., 2021; ASAM, Kwon et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sweeper.engine.curvature import side_pass


def sharp_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], Tensor],
    rho: float,
    adaptive: bool,
) -> Tensor:
    """One update whose gradient is taken at the worst point near by (SAM).

    Running statistics move in the first of the two passes alone.

    Returns:
        The loss where the weights are, detached.
    """
    optimizer.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    weights: list[Tensor] = [p for p in model.parameters() if p.grad is not None]
    gradients = [p.grad for p in weights if p.grad is not None]
    kept = [p.detach().clone() for p in weights]
    with torch.no_grad():
        torch._foreach_add_(weights, sam_perturbation(kept, gradients, rho, adaptive))
    optimizer.zero_grad(set_to_none=True)
    with side_pass(model):
        loss().backward()
    with torch.no_grad():
        torch._foreach_copy_(weights, kept)
    optimizer.step()
    return value.detach()


def sam_perturbation(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float, adaptive: bool
) -> list[Tensor]:
    """The perturbation e(w) of each weight; its norm (of e / |w| if adaptive) is rho over all."""
    scaled = [w.abs() * g if adaptive else g for w, g in zip(weights, gradients, strict=True)]
    norm = torch.stack([s.square().sum() for s in scaled]).sum().sqrt() + 1e-12
    factor = rho / norm
    if adaptive:
        return [w.abs() * s * factor for w, s in zip(weights, scaled, strict=True)]
    return [s * factor for s in scaled]
