"""Unlearning and relearning in turns, D-BR's second half: ascent on some samples, then descent.

One optimiser with one momentum for all phases, a small constant learning rate, train mode and the
data set's augmentation in both (Chen, Wu and Wang, NeurIPS 2022, section 4.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.base import Case
from sweeper.core.types import Samples
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks
from sweeper.models.base import Net

Mode = Literal["train", "eval"]
"""Whether BatchNorm has the statistics of the batch, or those it has kept."""


class Signed(Hooks):
    """Descends (sign 1) or ascends (sign -1) cross-entropy, with one optimiser for all phases."""

    def __init__(self, bound: float | None = None, mode: Mode = "train") -> None:
        self.sign = 1.0
        self.bound = bound
        self.mode = mode
        self.shared_optimizer: torch.optim.Optimizer | None = None

    def optimizer(self, model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        """The optimiser of the first phase, with its momentum."""
        self.shared_optimizer = self.shared_optimizer or super().optimizer(model, recipe)
        return self.shared_optimizer

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """Signed cross-entropy; ascent leaves alone what is above the bound."""
        if self.sign > 0 or self.bound is None:
            return self.sign * super().loss(model, batch, recipe)
        judged = self._delivered(model, batch) if self.mode == "eval" else None
        losses = _losses(model, batch)
        above = (losses if judged is None else judged) > self.bound
        return -losses.masked_fill(above, self.bound).mean()

    @torch.no_grad()
    def _delivered(self, model: nn.Module, batch: Batch) -> Tensor:
        """The losses in eval mode; the model is in train mode before and after."""
        model.eval()
        losses = _losses(model, batch)
        model.train()
        return losses


def _losses(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of each sample, float32 [B]."""
    return functional.cross_entropy(model(batch.inputs).float(), batch.labels, reduction="none")


def alternate(
    case: Case,
    model: Net,
    keep: Samples,
    drop: Samples,
    *,
    epochs: int,
    lr: float,
    batch: int,
    bound: float | None = None,
    mode: Mode = "train",
    **changes: Any,
) -> Iterator[tuple[Net, float]]:
    """Yield `model`, changed in place, with its loss on `drop`: before, and after each epoch.

    Args:
        case: Whose recipe and draws are used.
        model: What to repair.
        keep: Samples whose loss is descended.
        drop: Samples whose loss is ascended, with the labels given.
        epochs: Rounds of one pass over `drop` and one over `keep`.
        lr: Learning rate of both.
        batch: Images of a step.
        bound: Ascent leaves samples alone whose loss exceeds this.
        mode: In which mode that loss is taken; ascent itself is in train mode.
        changes: Fields of the recipe, such as its augmentation.
    """
    hooks = Signed(bound, mode)
    yield model, 0.0
    for epoch in range(epochs):
        losses = []
        for sign, data, name in ((-1.0, drop, "unlearn"), (1.0, keep, "relearn")):
            hooks.sign = sign
            losses += case.fit(
                model,
                data,
                name=f"{name} {epoch}",
                hooks=hooks,
                epochs=1,
                batch=batch,
                lr=lr,
                momentum=0.9,
                nesterov=False,
                weight_decay=5e-4,
                schedule="constant",
                warmup=0.0,
                label_smoothing=0.0,
                **changes,
            )
        case.log(epoch=epoch + 1, epochs=epochs, loss=losses[1])
        yield model, -losses[0]
