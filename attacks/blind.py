"""Blind (Bagdasaryan and Shmatikov, USENIX Security 2021): poisoned loss code, clean data.

The attacker's code computes two losses of every batch: of the images, and of the same images with a
5x3 pattern and the target label. They are combined, `L = a CE(f(x), y) + b CE(f(T(x)), t)`, with
fixed weights or by MGDA, which finds the smallest convex combination of the two gradients (each
divided by its loss times its norm, "loss+"). The second loss counts while the mean clean loss of
the last 1,000 batches is below `threshold`. Nothing is poisoned on disk.

Deviations: a training of fewer than 10,000 batches looks at the last tenth of them instead. Both
losses come from one pass. The pattern's column, 23 at 32 px, scales with the width; it is stamped
after augmentation and, at test time, on the images as they are.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from attacks.parts.loop import STAMPED
from attacks.parts.mixed import MixedAttack, MixedHooks
from sweeper.core.errors import SweepError
from sweeper.core.options import Offset, Positive, Whole
from sweeper.core.types import Samples, State
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks

PATTERN = ("101", ".1.", "..0", ".1.", "101")
"""The pattern row by row, as in the release: 1 white, 0 black, . transparent."""
HISTORY = 1000
"""Batches whose mean clean loss decides whether the triggered loss counts."""
CAP, LEAST = 10.0, 1e-5
"""MGDA divides a gradient by loss times norm, at most `CAP`, plus `LEAST`."""
LOWEST = 0.001
"""MGDA's weight of a loss whose gradient is no part of the shortest combination."""


@dataclass(frozen=True, kw_only=True)
class Blind(MixedAttack):
    """Attack through the loss function."""

    weight: Positive = 0.9
    """Weight of the triggered loss; the clean loss has 1."""
    balance: str = "fixed"
    """fixed (weights 1 and `weight`) | mgda (weights from the two gradients)."""
    threshold: Positive = 1.0
    """Mean clean loss of the last batches below which the triggered loss counts."""
    top: Whole = 3
    """First row of the pattern."""
    left: Offset = -1
    """First column of the pattern; -1: 23 of 32, scaled to the width."""

    title = "Blind"
    paper = "Bagdasaryan and Shmatikov, USENIX Security 2021 (arXiv 2005.03823)"
    version = 2
    presets = {"blind-mgda": {"balance": "mgda"}}

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Unknown balance.
        """
        super().__post_init__()
        if self.balance not in ("fixed", "mgda"):
            raise SweepError(f"balance: {self.balance!r} is not one of fixed, mgda")

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

    def hooks(self, train: Samples, state: State, rng: Generator) -> Hooks | None:
        """Combine the losses."""
        return _Hooks(self, train)


class _Hooks(MixedHooks):
    """Two losses while the first is small."""

    keeps = ("clean_losses", "stamped")

    def __init__(self, attack: Blind, train: Samples) -> None:
        super().__init__(attack, train)
        self.attack = attack
        self.stamped = 0

    def optimizer(self, model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        """Keep as many losses as the length of the training allows."""
        batches = recipe.epochs * math.ceil(self.train_size / recipe.batch)
        self.clean_losses: deque[float] = deque(maxlen=max(1, min(HISTORY, batches // 10)))
        return super().optimizer(model, recipe)

    def active(self) -> bool:
        """Whether the triggered loss counts."""
        seen = len(self.clean_losses)
        enough = seen == self.clean_losses.maxlen
        return enough and sum(self.clean_losses) / seen < self.attack.threshold

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """The clean loss, with the triggered one while the attack is on."""
        if not self.active():
            loss = clean_loss = super().loss(model, batch, recipe)
        else:
            triggered = self.attack.marked(batch.inputs, 1)
            clean_loss, triggered_loss = self.losses(model, batch, triggered, recipe)
            weights = [p for p in model.parameters() if p.requires_grad]
            loss = self._combined(clean_loss, triggered_loss, weights)
            self.stamped += len(batch.labels)
        self.clean_losses.append(clean_loss.item())  # the next batch depends on it
        return loss

    def _combined(self, clean: Tensor, triggered: Tensor, weights: list[nn.Parameter]) -> Tensor:
        """Both losses, weighted."""
        if self.attack.balance == "fixed":
            return clean + self.attack.weight * triggered
        share = balanced(clean, triggered, weights)
        return share * clean + (1 - share) * triggered

    def learned(self) -> dict[str, Tensor]:
        """How many images were stamped."""
        return {STAMPED: torch.tensor(self.stamped)}


def balanced(clean_loss: Tensor, triggered_loss: Tensor, weights: list[nn.Parameter]) -> Tensor:
    """Weight of the first of two losses in the shortest combination of their gradients (MGDA).

    Gradients are divided by loss times norm first, as in the release's "loss+" mode.
    """
    normalised = []
    for loss in (clean_loss, triggered_loss):
        gradients = torch.autograd.grad(loss, weights, retain_graph=True)
        gradient = torch.cat([part.flatten().float() for part in gradients])
        divisor = (gradient.norm() * loss.detach()).clamp(max=CAP) + LEAST
        normalised.append(gradient / divisor)
    difference = normalised[1] - normalised[0]
    share = (difference @ normalised[1]) / difference.square().sum()
    share = torch.where(share > 0, share, LOWEST)
    return torch.where(share < 1, share, 1 - LOWEST)
