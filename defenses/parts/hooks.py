"""Changes to the training loop's update that several methods share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sweeper.engine.training import Hooks


class Enough(Exception):
    """Raised after an epoch to end a training; who trains catches it."""


class Clipped(Hooks):
    """Bounds the norm of the gradient."""

    def __init__(self, clip: float) -> None:
        """Set the bound; 0: none."""
        self.clip = clip

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]
    ) -> Tensor:
        """One update."""
        if not self.clip:
            return super().step(model, optimizer, loss)
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), self.clip)
        optimizer.step()
        return value.detach()


class EveryStep(Hooks):
    """Gives each update a learning rate of its own, in place of the recipe's schedule."""

    def __init__(self, rate: Callable[[int], float] | None) -> None:
        """Take the learning rate as a function of the step (from 0); None: the recipe's."""
        self.rate = rate
        self.done = 0

    def pace(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the learning rate of the next update; once before each."""
        if self.rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = self.rate(self.done)
        self.done += 1

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]
    ) -> Tensor:
        """One update."""
        self.pace(optimizer)
        return super().step(model, optimizer, loss)
