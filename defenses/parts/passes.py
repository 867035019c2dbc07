"""Training one pass at a time, for repairs that measure, and may end, between passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from defenses.base import Case
from sweeper.core.types import Samples
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Hooks

PLAIN: dict[str, Any] = {"crop": 0, "flip": False, "rotation": 0.0, "erase": 0.0}
"""Of a recipe: no augmentation."""


class Lasting(Hooks):
    """Hooks whose optimiser is made at the first pass and lasts over the others."""

    def __init__(self, adam: bool = False) -> None:
        self.adam = adam
        self.shared_optimizer: torch.optim.Optimizer | None = None

    def optimizer(self, model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        """The recipe's SGD, or Adam at its learning rate; with its state."""
        if self.shared_optimizer is None:
            self.shared_optimizer = (
                torch.optim.Adam(model.parameters(), lr=recipe.lr)
                if self.adam
                else super().optimizer(model, recipe)
            )
        return self.shared_optimizer


def passes(
    case: Case,
    model: nn.Module,
    data: Samples,
    epochs: int,
    hooks: Lasting,
    *,
    name: str = "pass",
    **changes: Any,
) -> Iterator[float]:
    """Train in place at a constant learning rate, and yield the mean loss after each pass.

    Between passes the model is in eval mode and the caller's. See `Case.fit`.
    """
    settings = {"schedule": "constant", "warmup": 0.0, "label_smoothing": 0.0, **changes}
    for epoch in range(epochs):
        (loss,) = case.fit(model, data, name=f"{name} {epoch}", hooks=hooks, epochs=1, **settings)
        case.log(epoch=epoch + 1, epochs=epochs, loss=loss)
        yield loss
