"""Sharpness-aware victim (FIP, Karim et al., 2024): a BadNets victim trained to a flat minimum.

The attacker knows that the defense looks for sharp minima and controls training: every update takes
its gradient at `w + e(w)`, the worst point near by, and steps from w (SAM, Foret et al., 2021).
Adaptive (ASAM, Kwon et al., 2021): `e = rho w^2 g / |w g|`; plain: `e = rho g / |g|`. BatchNorm's
running statistics are frozen in the second pass. The data are poisoned as by BadNets, all of whose
options are options here.

Deviation: schedule and weight decay are the sweep's recipe (release: SGD 0.1, momentum 0.9, weight
decay 1e-4, batch 256, x0.2 at 30, 60 and 80 % of 200 epochs); label smoothing is the release's.

Measured on digits with tiny (20 epochs, rate 0.1, seed 0): ACC 0.992, ASR 1.000.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attacks.badnets import BadNets
from sweeper.errors import SweepError
from sweeper.recipes import Recipe
from sweeper.training import Hooks
from sweeper.types import ImageSet, State


@dataclass(frozen=True, kw_only=True)
class FipSam(BadNets):
    """BadNets with sharpness-aware minimisation."""

    rho: float = 2.0
    """Radius of the neighbourhood (2 or 3 for the adaptive form, 0.05 for the plain one)."""
    adaptive: bool = True
    """Whether the neighbourhood scales with the weights."""
    label_smoothing: float = 0.1
    """Share of the label spread over all classes, in place of the recipe's."""

    title = "FIP adaptive: sharpness-aware training"
    paper = "Karim et al., 2024 (arXiv 2409.00863)"
    controls: ClassVar[str] = "training"
    presets = {
        "fip": {"opacity": 0.6},
        "sam": {"adaptive": False, "rho": 0.05, "label_smoothing": 0.0},
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: A number out of range.
        """
        super().__post_init__()
        if self.rho <= 0 or not 0 <= self.label_smoothing < 1:
            raise SweepError("rho: above 0; label_smoothing: in [0, 1)")

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe with the attack's label smoothing."""
        return replace(recipe, label_smoothing=self.label_smoothing)

    def hooks(self, train: ImageSet, state: State, rng: Generator) -> Hooks | None:
        """Replace the update."""
        return _Hooks(self.rho, self.adaptive)


class _Hooks(Hooks):
    """The update in two passes."""

    def __init__(self, rho: float, adaptive: bool) -> None:
        self.rho = rho
        self.adaptive = adaptive

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]
    ) -> Tensor:
        """Climb, take the gradient there, come back, step."""
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        weights: list[Tensor] = [p for p in model.parameters() if p.grad is not None]
        kept = [p.detach().clone() for p in weights]
        with torch.no_grad():
            slopes = [p.grad for p in weights if p.grad is not None]
            torch._foreach_add_(weights, climb(kept, slopes, self.rho, self.adaptive))
        optimizer.zero_grad(set_to_none=True)
        with frozen_statistics(model):
            loss().backward()
        with torch.no_grad():
            torch._foreach_copy_(weights, kept)
        optimizer.step()
        return value.detach()


def climb(
    weights: Sequence[Tensor], slopes: Sequence[Tensor], rho: float, adaptive: bool
) -> list[Tensor]:
    """The perturbation e(w) of each weight; its norm (of e / |w| if adaptive) is rho over all."""
    scaled = [w.abs() * g if adaptive else g for w, g in zip(weights, slopes, strict=True)]
    norm = torch.stack([s.square().sum() for s in scaled]).sum().sqrt() + 1e-12
    factor = rho / norm
    if adaptive:
        return [w.abs() * s * factor for w, s in zip(weights, scaled, strict=True)]
    return [s * factor for s in scaled]


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Leave BatchNorm's running statistics alone; a batch is still normalised by its own."""
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm)]
    before = [part.momentum for part in norms]
    for part in norms:
        part.momentum = 0.0
    try:
        yield
    finally:
        for part, momentum in zip(norms, before, strict=True):
            part.momentum = momentum
