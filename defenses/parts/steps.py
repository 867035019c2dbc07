"""A fixed number of updates on batches drawn with replacement, for methods that count steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from defenses.base import Case
from sweeper.core.errors import DivergedError
from sweeper.core.types import Samples
from sweeper.engine import training
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch

Loss = Callable[[Batch], Tensor]
"""A batch on the device, augmented -> the loss to descend."""


def descend(
    case: Case,
    model: nn.Module,
    data: Samples,
    recipe: Recipe,
    steps: int,
    *,
    loss: Loss,
    name: str = "steps",
    clip: float = 0.0,
    optimizer: torch.optim.Optimizer | None = None,
    rate: Callable[[int], float] | None = None,
) -> list[float]:
    """Update the model's trainable weights in place by the recipe's optimiser and schedule.

    The schedule goes from step to step; modes of modules are the caller's, before and after.

    Args:
        case: Whose draws and progress.
        model: Its parameters that require a gradient are updated.
        data: Batches of `recipe.batch`, augmented by the recipe, are drawn from it.
        recipe: Its epochs, period and warm-up are not looked at.
        steps: Updates.
        loss: The loss of one batch.
        name: Names the random draws.
        clip: Largest norm of the gradient; 0: no bound.
        optimizer: Used in place of the recipe's, with its state.
        rate: Learning rate of a step (from 0); default: the recipe's schedule.

    Returns:
        The mean losses of the first and of the last tenth of the steps.

    Raises:
        DivergedError: A loss or a weight became NaN or infinite.
    """
    recipe = replace(recipe, epochs=steps, period=0, warmup=0.0, milestones=())
    optimizer = optimizer or training.optimizer(model, recipe)
    weights = [value for value in model.parameters() if value.requires_grad]
    losses: list[Tensor] = []
    for batch in training.drawn(data, recipe, steps, case.rng(name), case.device):
        step = batch.step
        for group in optimizer.param_groups:
            group["lr"] = rate(step) if rate else training.learning_rate(recipe, step, 1)
        optimizer.zero_grad(set_to_none=True)
        value = loss(batch)
        value.backward()
        if clip:
            nn.utils.clip_grad_norm_(weights, clip)
        optimizer.step()
        losses.append(value.detach())
        if step % 100 == 99:
            case.log(step=step + 1, steps=steps, loss=value.item())
    optimizer.zero_grad(set_to_none=True)
    ends = _ends(losses, name)
    if not torch.stack([value.isfinite().all() for value in weights]).all():
        raise DivergedError(f"{name}: weights became NaN or infinite")
    return ends


def _ends(losses: Sequence[Tensor], name: str) -> list[float]:
    """Means over the first and the last tenth."""
    if not losses:
        return []
    values, tenth = torch.stack(list(losses)), max(1, len(losses) // 10)
    if not values.isfinite().all():
        step = int((~values.isfinite()).nonzero()[0])
        raise DivergedError(f"{name}: the loss of step {step + 1} is {values[step].item()}")
    return [values[:tenth].mean().item(), values[-tenth:].mean().item()]
