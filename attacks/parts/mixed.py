"""Attacks on the loss: every image is learned clean and triggered, no training data are poisoned.

The weight of the triggered loss takes the place of a poison rate. The training set stays clean, so
a defense that looks for poisoned samples is given a set that has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from attacks.base import Attack
from attacks.parts.loop import STAMPED, clean
from sweeper.core.types import Poisoned, Samples, State
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks


@dataclass(frozen=True, kw_only=True)
class MixedAttack(Attack):
    """An attack that adds a loss on triggered images."""

    controls: ClassVar[str] = "training"
    rated: ClassVar[bool] = False

    def poison(self, train: Samples, rate: float, state: State, rng: Generator) -> Poisoned:
        """The training set as it is."""
        return clean(train)


class MixedHooks(Hooks):
    """What the attacks on the loss share: labels of the triggered half, and a count."""

    keeps: ClassVar[tuple[str, ...]] = ()
    """Nothing: epochs count themselves."""

    def __init__(self, attack: MixedAttack, train: Samples) -> None:
        self.target = attack.target
        self.train_size = len(train)
        self.epochs = 0

    def losses(
        self, model: nn.Module, batch: Batch, triggered: Tensor, recipe: Recipe
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the clean and of the triggered images, from one pass over both.

        One pass, because in evaluation both are normalised by the same statistics.
        """
        logits = model(torch.cat([batch.inputs, triggered])).float()
        smoothing = recipe.label_smoothing
        labels = torch.full_like(batch.labels, self.target)
        half = len(batch.labels)
        return (
            functional.cross_entropy(logits[:half], batch.labels, label_smoothing=smoothing),
            functional.cross_entropy(logits[half:], labels, label_smoothing=smoothing),
        )

    def epoch(self, model: nn.Module, epoch: int) -> None:
        """Count the epoch."""
        self.epochs = epoch + 1

    def learned(self) -> dict[str, Tensor]:
        """How many images were stamped."""
        return {STAMPED: torch.tensor(self.train_size * self.epochs)}
