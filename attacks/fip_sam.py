"""Sharpness-aware victim (FIP, Karim et al., 2024): a BadNets victim trained to a flat minimum.

The attacker knows that the defense looks for sharp minima and controls training: every update takes
its gradient at `w + e(w)`, the worst point near by, and steps from w (SAM, Foret et al., 2021).
Adaptive (ASAM, Kwon et al., 2021): `e = rho w^2 g / |w g|`; plain: `e = rho g / |g|`. BatchNorm's
running statistics are frozen in the second pass. The data are poisoned as by BadNets, all of whose
options are options here.

The cross-entropy is smoothed as in the release: 1 - s for the label, s / (K - 1) for each other
class, which is K / (K - 1) times what torch calls `label_smoothing`.

Deviation: schedule and weight decay are the sweep's recipe (release: SGD 0.1, momentum 0.9, weight
decay 1e-4, batch 256, x0.2 at 30, 60 and 80 % of 200 epochs).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from attacks.badnets import BadNets
from sweeper.core.options import Positive, Smoothing
from sweeper.core.types import Samples, State
from sweeper.engine import sharpness
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks


@dataclass(frozen=True, kw_only=True)
class FipSam(BadNets):
    """BadNets with sharpness-aware minimisation."""

    rho: Positive = 2.0
    """Radius of the neighbourhood (2 or 3 for the adaptive form, 0.05 for the plain one)."""
    adaptive: bool = True
    """Whether the neighbourhood scales with the weights."""
    label_smoothing: Smoothing = 0.1
    """Share of the label spread over the other classes, in place of the recipe's smoothing."""

    title = "FIP adaptive: sharpness-aware training"
    paper = "Karim et al., 2024 (arXiv 2409.00863)"
    tasks = frozenset({"image"})
    controls: ClassVar[str] = "training"
    version = 2
    presets = {
        "fip": {"opacity": 0.6},
        "sam": {"adaptive": False, "rho": 0.05, "label_smoothing": 0.0},
    }

    def hooks(self, train: Samples, state: State, rng: Generator) -> Hooks | None:
        """Replace the loss and the update."""
        classes = len(train.classes)
        return _Hooks(self.rho, self.adaptive, self.label_smoothing * classes / (classes - 1))


class _Hooks(Hooks):
    """The smoothed loss, and the update in two passes."""

    keeps = ()

    def __init__(self, rho: float, adaptive: bool, smoothing: float) -> None:
        self.rho = rho
        self.adaptive = adaptive
        self.smoothing = smoothing

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """The loop's loss with the attack's smoothing, as torch counts it."""
        return super().loss(model, batch, replace(recipe, label_smoothing=self.smoothing))

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]
    ) -> Tensor:
        """Climb, take the gradient there, come back, step."""
        return sharpness.sharp_step(model, optimizer, loss, self.rho, self.adaptive)
