"""No attack: the clean model every comparison needs, under the same recipe and splits.

A clean victim has an ACC and no ASR; it is what a false alarm or the price of a defense is measured
on. Its poison rate is 0 whatever the sweep's rates are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.base import Attack
from sweeper.core.types import State
from sweeper.engine.task import ANY


@dataclass(frozen=True, kw_only=True)
class NoAttack(Attack):
    """Trains on the attacker's split as it is."""

    title = "No attack (clean model)"
    paper = "control"
    tasks = frozenset({ANY})
    rated = False

    @property
    def targeted(self) -> bool:
        """There is no target."""
        return False

    def count(self, labels: Tensor, rate: float) -> int:
        """No sample is poisoned."""
        return 0

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """There is no trigger: the images as they are."""
        return images.clone()

    def victims(self, labels: Tensor) -> Tensor:
        """No image counts for ASR."""
        return torch.zeros(len(labels), dtype=torch.bool)
