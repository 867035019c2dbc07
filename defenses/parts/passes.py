"""Training one pass at a time, for repairs that measure, and may end, between passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from defenses.base import Case
from sweeper.core.types import ImageSet
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
    data: ImageSet,
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


def last_within(
    case: Case,
    model: nn.Module,
    rounds: Iterable[float],
    holdout: ImageSet,
    tau: float | None,
) -> dict[str, Any]:
    """Run all rounds; leave the model as after the last whose hold-out accuracy stays within tau.

    Fair rule H for a repair whose strength is its length. A round may dip below and a later one
    come back; where all are below, the model is left as it was.

    Args:
        case: Whose accuracy.
        model: What the rounds change in place.
        rounds: The loss of each.
        holdout: Images the rounds do not train on.
        tau: Accuracy a round may cost, absolute, at least two images; None: the last round.

    Returns:
        For the notes: losses, hold-out accuracies (the first is the incoming model's), and the
        number of rounds kept.
    """
    curve, losses = [case.accuracy(model, holdout)], []
    least = -1.0 if tau is None else curve[0] - max(tau, 2 / len(holdout)) - 1e-9
    rounds_kept, state = 0, _weights(model)
    for loss in rounds:
        losses.append(loss)
        curve.append(case.accuracy(model, holdout))
        if curve[-1] >= least:
            rounds_kept, state = len(losses), _weights(model)
    model.load_state_dict(state)
    return {"losses": losses, "holdout": curve, "kept": rounds_kept}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
