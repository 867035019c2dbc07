"""Blind (Bagdasaryan and Shmatikov, USENIX Security 2021): poisoned loss code, clean data.

The attacker's code computes two losses of every batch: of the images, and of the same images with a
5x3 pattern and the target label. They are combined, `L = a CE(f(x), y) + b CE(f(T(x)), t)`, with
fixed weights or by MGDA, which finds the smallest convex combination of the two gradients
(normalised by loss times norm, "loss+"). The second loss is switched on once the model has learned
something. Nothing is poisoned on disk.

Deviations: the switch looks at the mean loss of a whole epoch (below `threshold`), the release at
the last 1,000 batches, 2.6 epochs of CIFAR-10; a model whose loss stays above is never attacked.
Both losses come from one pass; a loss whose gradient has vanished gets no weight in MGDA. The
pattern's column, 23 at 32 px, scales with the width; it is stamped after augmentation and, at test
time, on the images as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from attacks.parts.mixed import MixedAttack, MixedHooks
from sweeper.core.errors import SweepError
from sweeper.core.types import ImageSet, State
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks

PATTERN = ("101", ".1.", "..0", ".1.", "101")
"""The pattern row by row, as in the release: 1 white, 0 black, . transparent."""


@dataclass(frozen=True, kw_only=True)
class Blind(MixedAttack):
    """Attack through the loss function."""

    weight: float = 0.9
    """Weight of the triggered loss; the clean loss has 1."""
    balance: str = "fixed"
    """fixed (weights 1 and `weight`) | mgda (weights from the two gradients)."""
    threshold: float = 1.0
    """Mean loss of an epoch below which the attack begins."""
    top: int = 3
    """First row of the pattern."""
    left: int = -1
    """First column of the pattern; -1: 23 of 32, scaled to the width."""

    title = "Blind"
    paper = "Bagdasaryan and Shmatikov, USENIX Security 2021 (arXiv 2005.03823)"
    presets = {"blind-mgda": {"balance": "mgda"}}

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Unknown balance, or a number out of range.
        """
        super().__post_init__()
        if self.balance not in ("fixed", "mgda"):
            raise SweepError(f"balance: {self.balance!r} is not one of fixed, mgda")
        if self.weight <= 0 or self.threshold <= 0 or self.top < 0:
            raise SweepError("weight and threshold: above 0; top: not below 0")

    def marked(self, pixels: Tensor, high: float) -> Tensor:
        """A copy of [B, C, H, W] with the pattern; `high` is white.

        Raises:
            SweepError: The pattern leaves the canvas.
        """
        height, width = pixels.shape[2:]
        left = self.left if self.left >= 0 else min(round(23 * width / 32), width - 3)
        if left < 0 or self.top + 5 > height or left + 3 > width:
            where = f"at row {self.top}, column {left}"
            raise SweepError(
                f"blind: the 5x3 pattern does not fit {height}x{width} px {where}: change "
                "`top` or `left`"
            )
        cells = [(y, x, c) for y, row in enumerate(PATTERN) for x, c in enumerate(row) if c != "."]
        out = pixels.clone()
        for white in "01":
            rows = [self.top + y for y, _, c in cells if c == white]
            columns = [left + x for _, x, c in cells if c == white]
            out[:, :, rows, columns] = high * int(white)
        return out

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Draw the pattern."""
        return self.marked(images, 255)

    def hooks(self, train: ImageSet, state: State, rng: Generator) -> Hooks | None:
        """Combine the losses."""
        return _Hooks(self, train)


class _Hooks(MixedHooks):
    """Two losses once the first is small."""

    def __init__(self, attack: Blind, train: ImageSet) -> None:
        super().__init__(attack, train)
        self.attack = attack
        self.active = False
        self.clean_losses: list[Tensor] = []

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """The clean loss, with the triggered one once the attack has begun."""
        if not self.active:
            loss = super().loss(model, batch, recipe)
            self.clean_losses.append(loss.detach())
            return loss
        triggered = self.attack.marked(batch.images, 1)
        clean_loss, triggered_loss = self.losses(model, batch, triggered, recipe)
        if self.attack.balance == "fixed":
            return clean_loss + self.attack.weight * triggered_loss
        share = balanced(
            clean_loss, triggered_loss, [p for p in model.parameters() if p.requires_grad]
        )
        return share * clean_loss + (1 - share) * triggered_loss

    def epoch(self, model: nn.Module, epoch: int) -> None:
        """Begin where the epoch's mean loss is small enough."""
        self.epochs += int(self.active)
        if not self.active:
            self.active = bool(torch.stack(self.clean_losses).mean() < self.attack.threshold)
            self.clean_losses = []


def balanced(clean_loss: Tensor, triggered_loss: Tensor, weights: list[nn.Parameter]) -> Tensor:
    """Weight of the first of two losses in the shortest combination of their gradients (MGDA).

    Gradients are divided by loss times norm first, as in the release's "loss+" mode.
    """
    normalised, vanished = [], []
    for loss in (clean_loss, triggered_loss):
        gradients = torch.autograd.grad(loss, weights, retain_graph=True)
        gradient = torch.cat([part.flatten().float() for part in gradients])
        scale = gradient.norm() * loss.detach()
        normalised.append(gradient / scale.clamp(min=1e-12))
        vanished.append(scale <= 1e-12)
    difference = normalised[1] - normalised[0]
    share = ((difference @ normalised[1]) / difference.square().sum().clamp(min=1e-12)).clamp(0, 1)
    # a vanished gradient would be the shortest combination, and training would stop
    share = torch.where(vanished[0], torch.zeros_like(share), share)
    return torch.where(vanished[1], torch.ones_like(share), share)
